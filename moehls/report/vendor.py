"""Reports of Vitis HLS and Vivado: in goes a text, out come the figures for `report/summary.json`.

    csynth.xml        Vitis HLS, estimated resources and clock         resources
    *_cosim.rpt       Vitis HLS, cycles of the co-simulated sample     cosim_cycles
    utilization.rpt   Vivado report_utilization                        resources
    timing.rpt        Vivado report_timing_summary                     worst_slack
    power.rpt         Vivado report_power                              total_power

Resources are keyed as in the summary: dsp, bram36, uram, lut, ff. A BRAM18 is half a BRAM36.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import MoehlsError

RESOURCES = ("dsp", "bram36", "uram", "lut", "ff")
_ROWS = {"CLB LUTs": "lut", "CLB Registers": "ff", "Block RAM Tile": "bram36", "URAM": "uram", "DSPs": "dsp"}


@dataclass(frozen=True)
class VendorReports:
    """What was found in a project's `report/vendor`; `None` where a report is not there."""

    vitis: dict[str, float] | None
    clock_ns: float | None
    """clock period that Vitis HLS estimates"""
    cosim_cycles: int | None
    vivado: dict[str, float] | None
    worst_slack_ns: float | None
    power_w: float | None


def read_vendor_reports(folder: Path) -> VendorReports:
    """Every report in `folder`.

    Raises:
        MoehlsError: a report is there but lacks what it should hold.
    """

    def text(pattern: str) -> tuple[str, str] | None:
        files = sorted(folder.glob(pattern))
        return (files[0].read_text(errors="replace"), str(files[0])) if files else None

    csynth, cosim = text("csynth.xml"), text("*_cosim.rpt")
    utilisation, timing, power = text("utilization.rpt"), text("timing.rpt"), text("power.rpt")
    vitis, clock_ns = csynth_resources(*csynth) if csynth else (None, None)
    return VendorReports(
        vitis=vitis,
        clock_ns=clock_ns,
        cosim_cycles=cosim_cycles(*cosim) if cosim else None,
        vivado=utilisation_resources(*utilisation) if utilisation else None,
        worst_slack_ns=worst_slack(*timing) if timing else None,
        power_w=total_power(*power) if power else None,
    )


def csynth_resources(text: str, name: str = "csynth.xml") -> tuple[dict[str, float], float]:
    """Resources and the estimated clock period in ns of a csynth.xml."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise MoehlsError(f"{name}: not a report of Vitis HLS ({error}); run make csynth again") from error
    area = root.find("AreaEstimates/Resources")
    period = root.findtext("PerformanceEstimates/SummaryOfTimingAnalysis/EstimatedClockPeriod")
    if area is None or period is None:
        raise MoehlsError(f"{name}: has no AreaEstimates or no EstimatedClockPeriod; run make csynth again")

    def count(*tags: str) -> float:
        return next((float(found) for tag in tags if (found := area.findtext(tag)) is not None), 0.0)

    found = {
        "dsp": count("DSP", "DSP48E"),
        "bram36": count("BRAM_18K") / 2,
        "uram": count("URAM"),
        "lut": count("LUT"),
        "ff": count("FF"),
    }
    return found, float(period)


def cosim_cycles(text: str, name: str = "cosim.rpt") -> int:
    """Latency in cycles of the co-simulated kernel; a failed co-simulation is an error."""
    row = re.search(r"^\|\s*Verilog\s*\|\s*(\w+)\s*\|\s*(\d+|NA)\s*\|\s*(\d+|NA)\s*\|\s*(\d+|NA)\s*\|", text, re.M)
    if row is None or row[1].lower() != "pass" or row[4] == "NA":
        raise MoehlsError(f"{name}: the co-simulation did not pass; see the log of make cosim")
    return int(row[4])


def utilisation_resources(text: str, name: str = "utilization.rpt") -> dict[str, float]:
    """Used resources of a `report_utilization`."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        key = _ROWS.get(cells[0].rstrip("*"))
        if line.lstrip().startswith("|") and len(cells) > 2 and key is not None and key not in found:
            found[key] = float(cells[1])
    missing = [key for key in RESOURCES if key not in found]
    if missing:
        raise MoehlsError(f"{name}: has no row for {', '.join(missing)}; is it a report_utilization of UltraScale+?")
    return {key: found[key] for key in RESOURCES}


def worst_slack(text: str, name: str = "timing.rpt") -> float:
    """Worst negative slack in ns of a `report_timing_summary`; positive where timing is met."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.split()[:2] == ["WNS(ns)", "TNS(ns)"]:
            for row in lines[index + 1 : index + 4]:
                if re.match(r"\s*-?\d+\.\d+\s", row):
                    return float(row.split()[0])
    raise MoehlsError(f"{name}: has no design timing summary")


def total_power(text: str, name: str = "power.rpt") -> float:
    """Total on-chip power in W of a `report_power`."""
    row = re.search(r"Total On-Chip Power \(W\)\s*\|\s*(\d+\.\d+)", text)
    if row is None:
        raise MoehlsError(f"{name}: has no total on-chip power")
    return float(row[1])
