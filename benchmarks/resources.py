"""Planned and counted resources of a project: `python -m benchmarks resources PROJECT`.

In goes a project whose RTL was counted (`make -C PROJECT resources`); out come DSPs by process and memories by name, planned
beside counted, LUTs and flip-flops by process, the totals beside the board's, and what of yosys's LUTs the device does not
need, with the reason. It ends with status 1 where DSP, BRAM36, URAM or LUT of the plan are more than 15 % off in all. With
`--calibrate` the plan's LUTs and flip-flops are held against several shapes (`calibrate.py`).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import calibrate
from benchmarks.calibrate import cascade_luts
from moehls.errors import MoehlsError
from moehls.plan.memory import memory_map
from moehls.project import Project, open_project

LIMIT = 0.15
KINDS = ("dsp", "bram36", "uram", "lut", "ff")
_CLASSES = {
    "write_tiles": "write",
    **dict.fromkeys(("moments", "inverse_deviation", "normalise", "norm"), "norm"),
    **dict.fromkeys(("score", "rank", "prune", "settle", "exponentials", "enqueue", "route"), "route"),
    **dict.fromkeys(("form_passes", "copy_tokens", "gather"), "gather"),
}
"""the plan's name for what a process belongs to; all that it does not name is control"""
_MEMORIES = {
    **{name: f"compute.{name}" for name in ("m0", "m1", "m2", "m3", "residual", "raw", "queue")},
    "kept": "weights.kept",
    "norm parameters": "normalise.parameters",
    "norm blocks": "norm.blocks",
    "context parameters": "weights.block_parameters",
    "stream": "moehls_kernel.words",
}


def counted(project: Project) -> Mapping[str, Any]:
    """`report/resources.json` of a project.

    Raises:
        MoehlsError: it was not counted.
    """
    path = project.path / "report/resources.json"
    if not path.exists():
        raise MoehlsError(f"{project.path} has no counted resources; run make -C {project.path} resources first")
    found: Mapping[str, Any] = json.loads(path.read_text())
    return found


def dsp_rows(planned: Mapping[str, int], processes: Mapping[str, Mapping[str, float]]) -> list[tuple[str, int, int]]:
    """(process, planned, counted) in the plan's order."""
    found: Counter[str] = Counter()
    for process, cells in processes.items():
        name = _CLASSES.get(process, process)
        found[name if name in planned else "control"] += int(cells["dsp"])
    return [(name, dsps, found[name]) for name, dsps in planned.items()]


def ratio(planned: float, found: float) -> float:
    """Planned of counted; 1 where both are nothing."""
    return planned / found if found else float(planned == 0) or float("inf")


def table(project: Project) -> tuple[str, bool]:
    """The figures as Markdown, and whether the plan is within `LIMIT`."""
    plan, found = project.plan, counted(project)
    processes, storage, total = found["processes"], found["storage"], found["total"]
    lines = ["| DSP | planned | counted |", "|---|---|---|"]
    lines += [f"| `{name}` | {a:,} | {b:,} |" for name, a, b in dsp_rows(plan.resources.dsp_by_process, processes)]
    lines += ["", "| memory | banks × width × depth | planned | counted |", "|---|---|---|---|"]
    for use in memory_map(plan.shape):
        cells = storage.get(_MEMORIES[use.name])
        kind, unit = {"bram": ("bram36", "BRAM36"), "uram": ("uram", "URAM"), "lutram": ("lut", "LUT")}[use.storage]
        value = f"{cells[kind]:,g} {unit}" if cells else "none"
        size = f"{use.banks} × {use.width} × {use.depth:,}"
        lines.append(f"| {use.name} | {size} | {getattr(use, kind):,g} {unit} | {value} |")
    lines += ["", "| process | LUT | in sites | FF |", "|---|---|---|---|"]
    rows = sorted(processes.items(), key=lambda row: -row[1]["lut"])
    lines += [f"| `{name}` | {c['lut']:,} | {c['lut_sites']:,} | {c['ff']:,} |" for name, c in rows]
    lines += ["", "| total | planned | counted | planned / counted | board |", "|---|---|---|---|---|"]
    available = project.summary()["available"]
    for kind in KINDS:
        a, b = getattr(plan.resources, kind), total[kind]
        lines.append(f"| {kind} | {a:,g} | {b:,g} | {ratio(a, b):.2f} | {available[kind]:,} |")
    lines += ["", *_correction(project, total)]
    good = all(abs(ratio(getattr(plan.resources, kind), total[kind]) - 1) <= LIMIT for kind in KINDS[:4])
    lines.append(f"\nDSP, BRAM36, URAM and LUT planned within {LIMIT:.0%}: {'yes' if good else 'NO'}")
    return "\n".join(lines), good


def corrected(project: Project, total: Mapping[str, float]) -> list[tuple[str, int, str]]:
    """What is taken from yosys's count of LUTs, step by step: (what, LUTs with their sign, why)."""
    stream = next(use for use in memory_map(project.plan.shape) if use.name == "stream")
    shared = round(total["lut_sites"] - total["lut"])
    why = "a LUT6 has two outputs: functions with an input in common and five at most together"
    return [
        ("counted by yosys", round(total["lut"]), "each function a LUT"),
        ("in a site with another", shared, why),
        ("multiplexers of the stream's ultra RAM", -cascade_luts(stream), "in the blocks' own cascade"),
    ]


def _correction(project: Project, total: Mapping[str, float]) -> list[str]:
    rows, board = corrected(project, total), project.summary()["available"]["lut"]
    left = sum(n for _, n, _ in rows)
    lines = ["| LUT | | why |", "|---|---|---|", *(f"| {what} | {n:,} | {why} |" for what, n, why in rows)]
    return [*lines, f"| corrected | {left:,} | {left / board:.1%} of the board's {board:,} |"]


def main(arguments: Sequence[str]) -> None:
    """Print the tables of one project."""
    if arguments[:1] == ["--calibrate"]:
        calibrate.main(arguments[1:])
        return
    if len(arguments) != 1:
        sys.exit("usage: python -m benchmarks resources PROJECT (after make -C PROJECT resources), or --calibrate")
    try:
        text, good = table(open_project(Path(arguments[0])))
    except MoehlsError as error:
        sys.exit(f"error: {error}")
    print(text)
    if not good:
        sys.exit(1)
