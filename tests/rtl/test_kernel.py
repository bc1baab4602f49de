"""The whole accelerator: every loop reaches its interval within the clock, and the SystemVerilog has no warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.emit.hls import emit_hls
from moehls.integer.precision import W8A8
from moehls.plan.shape import Shape
from moehls.rtl.generate import LIBRARY, generate
from moehls.rtl.report import RtlReport
from moehls.simulate.verilator import lint
from tests.csim.conftest import SHAPES

MODELS = {
    "digits": Shape(W8A8, 2, 8, 8, 1, 81, 36, 17, 8, 4, 2, 17, 8, 16384),
}
"""the machine of `test_digits.py`"""


@pytest.fixture(scope="module", params=sorted(SHAPES))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RtlReport]:
    folder = tmp_path_factory.mktemp(request.param)
    emit_hls(SHAPES[request.param], ("exact",), folder)
    return folder, generate(folder)


def test_every_loop_starts_a_step_a_cycle_within_the_clock(project: tuple[Path, RtlReport]) -> None:
    _, report = project
    assert report.missed() == []
    assert report.slow() == []
    assert {"multiply", "weights", "activate", "compute"} <= {p.name for p in report.processes}


def test_lint_has_nothing_to_say(project: tuple[Path, RtlReport]) -> None:
    folder, report = project
    files = sorted((folder / "rtl").glob("*.sv"))
    assert [f.name for f in files] == list(report.files)
    assert lint([LIBRARY / "waivers.vlt", *files], report.top) == []


def test_a_process_is_a_file_that_says_what_it_is(project: tuple[Path, RtlReport]) -> None:
    folder, _ = project
    text = (folder / "rtl" / "form_passes.sv").read_text()
    assert text.startswith("// form_passes: made by moehls")
    assert "queue_read_address" in text
    assert "to_address" in text


@pytest.mark.parametrize("model", MODELS)
def test_lint_has_nothing_to_say_of_whole_models(model: str, tmp_path: Path) -> None:
    """`verilator --lint-only -Wall` on the machine of a model; every waiver stands with its reason."""
    emit_hls(MODELS[model], ("exact",), tmp_path)
    report = generate(tmp_path)
    assert lint([LIBRARY / "waivers.vlt", *sorted((tmp_path / "rtl").glob("*.sv"))], report.top) == []
    assert report.missed() == []
