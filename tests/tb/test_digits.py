"""The trained model of the repository in RTL: whole frames of both tasks under stalls, and the benches of its own units."""

from __future__ import annotations

import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from moehls import api
from moehls.emit.hls import emit_hls
from moehls.plan import save_plan
from moehls.plan.instruction import ANY_TASK
from moehls.plan.shape import Shape
from moehls.project import open_project
from moehls.resources import resource
from tests.cli.support import call

DIGITS = resource("models") / "digits"


SETTINGS = {"token_parallel": "2", "block": "8"}
"""of the machine that builds fastest"""
IN_PARTS = {"token_blocks": "2", "head_groups": "2"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Values whole, and in two blocks of tokens and two groups of heads: two programs for one machine, compiled once."""
    path = tmp_path_factory.mktemp("trained")
    whole, parts = path / "digits", path / "parts"
    for folder, settings in ((whole, SETTINGS), (parts, SETTINGS | IN_PARTS)):
        api.compile(DIGITS / "digits.onnx", folder, calibration=DIGITS / "calibration.npz", settings=settings)
    plans = [open_project(folder).plan for folder in (whole, parts)]
    own = [{name: getattr(plan.shape, name) for name in IN_PARTS} for plan in plans]
    machine = joint(*(replace(plan.shape, **own[0]) for plan in plans))
    (whole / "build").mkdir()
    (parts / "build").symlink_to(whole / "build")
    for folder, plan, splits in zip((whole, parts), plans, own, strict=True):
        emit_hls(machine, open_project(folder).integer.activations, folder)
        save_plan(folder / "data/plan.npz", replace(plan, shape=replace(machine, **splits)))
    return whole, parts


def joint(one: Shape, other: Shape) -> Shape:
    """A machine that has room and hardware for the programs of both."""
    others = {name: getattr(other, name) for name in asdict(one)}
    different = {name: value for name, value in others.items() if value != getattr(one, name)}
    assert all(name.endswith("_depth") or name in ("beside", "fifo_beats") for name in different)
    return replace(one, **{name: max(value, getattr(one, name)) for name, value in different.items()})


@pytest.fixture(scope="module")
def folder(folders: tuple[Path, Path]) -> Path:
    return folders[0]


def test_frames_of_both_tasks_equal_the_reference_under_stalls(folder: Path) -> None:
    found = api.verify(folder, ["rtl"], inputs=DIGITS / "test.npz", samples=4, stall=0.2)

    (level,) = found.levels
    assert found.passed, found.failure()
    assert level.samples == 4
    tasks = {stage.task for stage in open_project(folder).plan.stages}
    assert tasks == {ANY_TASK, 0, 1}
    assert level.stages == len([stage for stage in open_project(folder).plan.stages if stage.task in (ANY_TASK, 0)])
    summary = open_project(folder).summary()
    assert summary["cycles_rtl"] == level.cycles
    assert summary["bit_exact"]["rtl"] is True


def test_frames_in_parts_equal_the_reference(folders: tuple[Path, Path]) -> None:
    whole, parts = folders

    found = api.verify(parts, ["rtl"], inputs=DIGITS / "test.npz", samples=2, stall=0.2)

    (level,) = found.levels
    assert found.passed, found.failure()
    assert level.samples == 2
    project = open_project(parts)
    assert [project.plan.shape.token_blocks, project.plan.shape.head_groups] == [2, 2]
    assert len(project.plan.stages) > len(open_project(whole).plan.stages)


def test_benches_run_in_the_folder_of_a_project(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make sim` calls them, there on all units: steps of the project's own program, on its samples."""
    monkeypatch.chdir(folder)
    found = call(capsys, monkeypatch, "bench", ".", "--only", "gather")
    assert found.code == 0, found.err
    assert "1 benches, 2 tests passed" in found.out
    assert call(capsys, monkeypatch, "bench", ".", "--only", "nothing").code == 2


def test_make_sim_runs_frames_and_benches(folder: Path) -> None:
    command = ["make", "sim", "MOEHLS=echo", "RTL=vitis"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "verify . --levels rtl --benches" in done.stdout
