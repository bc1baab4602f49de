"""`RTL=vitis`: the benches on the Verilog of a Vitis solution, here a stand-in of the same form (tests/tb/vitis.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.errors import MoehlsError
from moehls.project import Project
from moehls.reference import run
from moehls.simulate.rtl import RtlSimulator, dram_of, vitis_sources
from moehls.simulate.rtl_kernel import kernel_frame, run_kernel_bench
from moehls.simulate.verify import compare
from tests.support.random_networks import random_image
from tests.tb.projects import pixels_of, write_random_project
from tests.tb.vitis import write_solution

KERNEL_TESTS = 6
"""all but the read error, which shows in a register of our own"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = write_random_project(tmp_path_factory.mktemp("vitis"), 2)
    write_solution(found, found.path / "build/hls/solution/syn/verilog")
    for path in found.path.glob("rtl/*.sv"):
        path.unlink()  # nothing of ours is left to run on
    return found


@pytest.fixture(autouse=True)
def _origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTL", "vitis")


def test_the_kernel_bench(project: Project) -> None:
    frames = [kernel_frame(project, random_image(project.integer, 20 + n), task) for n, task in enumerate((0, 1))]
    assert run_kernel_bench(project, frames, limit=600).tests == KERNEL_TESTS


def test_frames_behind_the_dram_model(project: Project) -> None:
    simulator = RtlSimulator(project, dram_of(project, stall=0.1))
    try:
        for task in (0, 1):
            found = simulator.run(pixels_of(project.integer, 5 + task), task, trace=True)
            execution = run(project.integer, random_image(project.integer, 5 + task), task)
            assert compare(project.integer, project.program, execution, found, 0, task) is None
            assert found.cycles
            assert (found.stages, found.steps) == ({}, ())
    finally:
        simulator.close()


def test_where_the_verilog_is_found(tmp_path: Path) -> None:
    with pytest.raises(MoehlsError, match="make csynth"):
        vitis_sources(tmp_path)
    for stage in ("impl", "syn"):
        folder = tmp_path / f"build/hls/solution/{stage}/verilog"
        folder.mkdir(parents=True)
        (folder / "kernel.v").write_text("")
        assert vitis_sources(tmp_path) == (folder / "kernel.v",)
