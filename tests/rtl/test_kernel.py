"""The whole accelerator: every loop reaches its interval within the clock, and the SystemVerilog has no warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.emit.hls import emit_hls
from moehls.rtl.generate import LIBRARY, generate
from moehls.rtl.report import RtlReport
from moehls.simulate.verilator import lint
from tests.csim.conftest import SHAPES


@pytest.fixture(scope="module", params=sorted(SHAPES))
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RtlReport]:
    folder = tmp_path_factory.mktemp(request.param)
    emit_hls(SHAPES[request.param], "exact", folder)
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
