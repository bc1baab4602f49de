"""The trained model of the repository, whole, in RTL: both tasks, with random stalls on every AXI channel."""

from __future__ import annotations

from pathlib import Path

from moehls import api
from moehls.plan.instruction import ANY_TASK
from moehls.project import open_project
from moehls.resources import resource

DIGITS = resource("models") / "digits"


def test_frames_of_both_tasks_equal_the_reference_under_stalls(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    settings = {"token_parallel": "2", "block": "8"}  # the machine that builds fastest
    api.compile(DIGITS / "digits.onnx", folder, calibration=DIGITS / "calibration.npz", settings=settings)
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
