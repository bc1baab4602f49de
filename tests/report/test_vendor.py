"""Reports of Vitis HLS and Vivado, on hand-made samples in the vendors' layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from moehls.errors import MoehlsError
from moehls.report.vendor import cosim_cycles, csynth_resources, read_vendor_reports, utilisation_resources, worst_slack

SAMPLES = Path(__file__).parent / "vendor"


def test_every_report_of_a_folder_is_read() -> None:
    found = read_vendor_reports(SAMPLES)
    assert found.vitis == {"dsp": 1310, "bram36": 150.5, "uram": 64, "lut": 98765, "ff": 101234}
    assert found.clock_ns == 2.433
    assert found.cosim_cycles == 412345
    assert found.vivado == {"dsp": 1299, "bram36": 150.5, "uram": 64, "lut": 120345, "ff": 140222}
    assert found.worst_slack_ns == -0.057
    assert found.power_w == 9.871


def test_a_missing_report_is_none(tmp_path: Path) -> None:
    shutil.copy(SAMPLES / "timing.rpt", tmp_path)
    found = read_vendor_reports(tmp_path)
    assert (found.vitis, found.vivado, found.cosim_cycles, found.power_w) == (None, None, None, None)
    assert found.worst_slack_ns == -0.057


def test_old_vitis_calls_a_dsp_dsp48e() -> None:
    text = (SAMPLES / "csynth.xml").read_text().replace("<DSP>1310</DSP>", "<DSP48E>1311</DSP48E>")
    assert csynth_resources(text)[0]["dsp"] == 1311


@pytest.mark.parametrize("text", ["", "<profile>", "<profile></profile>"])
def test_a_broken_csynth_report_is_refused(text: str) -> None:
    with pytest.raises(MoehlsError, match="csynth"):
        csynth_resources(text)


def test_a_failed_cosimulation_is_refused() -> None:
    text = (SAMPLES / "kernel_cosim.rpt").read_text()
    with pytest.raises(MoehlsError, match="did not pass"):
        cosim_cycles(text.replace("Pass", "Fail"))


def test_a_utilisation_report_without_a_row_is_refused() -> None:
    text = (SAMPLES / "utilization.rpt").read_text().replace("| URAM ", "| XRAM ")
    with pytest.raises(MoehlsError, match="no row for uram"):
        utilisation_resources(text)


def test_a_timing_report_without_summary_is_refused() -> None:
    with pytest.raises(MoehlsError, match="timing summary"):
        worst_slack("no such table")
