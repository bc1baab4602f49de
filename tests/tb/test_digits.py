"""The trained model of the repository in RTL: whole frames of both tasks under stalls, and the benches of its own units."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moehls import api
from moehls.plan.instruction import ANY_TASK
from moehls.project import open_project
from moehls.resources import resource
from tests.cli.support import call

DIGITS = resource("models") / "digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "digits"
    settings = {"token_parallel": "2", "block": "8"}  # the machine that builds fastest
    api.compile(DIGITS / "digits.onnx", path, calibration=DIGITS / "calibration.npz", settings=settings)
    return path


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
