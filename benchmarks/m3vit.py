"""The whole way of M3ViT-tiny, and its figures: `make bench-m3vit`, or `python -m benchmarks m3vit [OPTIONS]`.

Exports the model (`--weights FILE.npz` for trained ones, else random ones), calibrates on photographs, compiles for the
ZCU104, runs a frame of each task at every level, counts the RTL's resources (`--no-resources` leaves that out), and prints
cycles, resources, utilisation, and the published accelerators of the same model. Exits 1 where a bit differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.images import natural_images
from moehls import api, show
from moehls.boards import load_board
from moehls.plan import Plan
from moehls.plan.cost import bytes_a_cycle
from moehls.project import open_project

MODEL, HEIGHT, WIDTH, TASKS = "m3vit-tiny", 128, 256, 2
MARK, GOAL = 600_000, 390_000
"""cycles a frame"""


@dataclass(frozen=True)
class Published:
    """A published accelerator for M3ViT, one image at a time; None where the publication has no figure."""

    name: str
    board: str
    bits: str
    clock_mhz: int
    milliseconds: float
    dsp: int | None
    bram36: int | None
    lut: str | None


PUBLISHED = (
    Published("Edge-MoE (Sarkar et al., 2023)", "ZCU102", "W16 A32", 300, 34.64, None, None, None),
    Published("UbiMoE (Dong et al., 2025)", "ZCU102", "W16 A32", 300, 25.76, 1850, 458, "123 k"),
    Published("CoQMoE (Dong et al., 2025)", "ZCU102", "W8 A8", 300, 6.47, 1754, 383, "156 k"),
)


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks m3vit")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench-m3vit"), help="folder of its files")
    parser.add_argument(
        "--weights", type=Path, help="trained weights in the layout of docs/zoo.md; random ones without"
    )
    parser.add_argument("--no-resources", action="store_true", help="do not count the resources by yosys")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    project = prepare(options.output, options.weights, console)
    with show.progress(console) as progress:
        found = api.verify(project, api.LEVELS, options.output / "frames.npz", progress=progress)
    show.verification(console, found)
    if not options.no_resources:
        console.print("counting resources by yosys")
        api.resources(project)
    summary = open_project(project).summary()
    for table in (
        frame_table(summary, project),
        class_table(summary),
        resource_table(summary),
        published_table(summary),
    ):
        console.print(table)
    if not found.passed:
        sys.exit(1)


def prepare(folder: Path, weights: Path | None, console: Console) -> Path:
    """Export, calibrate and compile in `folder`; returns the project."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{MODEL}.onnx"
    console.print(f"exporting {MODEL}, {'random weights' if weights is None else weights.name}")
    api.zoo_export(MODEL, model, weights, "all", "dynamo", 20, {})
    images = natural_images(HEIGHT, WIDTH)
    np.savez(folder / "calibration.npz", image=images)
    np.savez(folder / "frames.npz", image=images[:1].repeat(TASKS, 0), task=np.arange(TASKS))
    project = folder / "project"
    with show.progress(console) as progress:
        api.compile(model, project, calibration=folder / "calibration.npz", force=True, progress=progress)
    return project


def frame_table(summary: dict[str, Any], project: Path) -> Table:
    """The frame as a whole: cycles, time, how busy the array and the memory ports are."""
    plan = open_project(project).plan
    steps, cycles = summary["steps"], summary["cycles_rtl"]
    rate = bytes_a_cycle(plan.shape, plan.board, plan.clock_mhz)
    read = sum(step["read_bytes_rtl"] for step in steps)
    starved = [step for step in steps if step["bound"] == "stream"]
    whole = [
        step for step in steps if step["class"] in ("linear", "mlp") and step["macs"] and step["bound"] == "multiply"
    ]
    table = _table(
        f"a frame of {MODEL}, {summary['tokens']} tokens, {summary['precision']}, {summary['board']}", "", ""
    )
    table.add_row("shape", f"{plan.shape.token_parallel} × {plan.shape.block}, Le {plan.shape.epilogue_lanes}, "
                  f"{plan.shape.ports} ports")  # fmt: skip
    table.add_row("cycles in RTL", f"{cycles:,}")
    table.add_row("planned", f"{summary['cycles_estimated']:,}")
    table.add_row(f"time at {summary['clock_mhz']:g} MHz", f"{cycles / summary['clock_mhz'] / 1e3:.3f} ms")
    table.add_row("at most wanted, goal", f"{MARK:,}, {GOAL:,}")
    exact = summary["bit_exact"]
    table.add_row("equal to the reference in every bit", ", ".join(f"{k}: {_yes(v)}" for k, v in exact.items()))
    table.add_row("array busy, frame", _share(summary["macs"], cycles * plan.shape.macs_a_cycle))
    table.add_row(
        "array busy, linear steps of all tokens",
        _share(_sum(whole, "macs"), _sum(whole, "cycles_rtl") * plan.shape.macs_a_cycle),
    )
    table.add_row(f"DRAM busy ({rate:g} bytes a cycle), frame", _share(read, cycles * rate))
    table.add_row(
        "DRAM busy, steps bound by weights", _share(_sum(starved, "read_bytes_rtl"), _sum(starved, "cycles_rtl") * rate)
    )
    table.add_row("bytes read, of weights.bin and image", f"{read:,} of {_stream_bytes(plan):,}")
    return table


def class_table(summary: dict[str, Any]) -> Table:
    """Cycles by class of step."""
    table = _table("where the cycles go", "class", "steps", "planned", "measured", "share")
    groups: dict[str, list[dict[str, Any]]] = {}
    for step in summary["steps"]:
        groups.setdefault(step["class"], []).append(step)
    for name, steps in groups.items():
        measured = _sum(steps, "cycles_rtl")
        share = _share(measured, summary["cycles_rtl"])
        table.add_row(name, f"{len(steps):,}", f"{_sum(steps, 'cycles'):,}", f"{measured:,}", share)
    start = summary["cycles_rtl"] - _sum(summary["steps"], "cycles_rtl")
    table.add_row("start", "", "", f"{start:,}", _share(start, summary["cycles_rtl"]))
    return table


def resource_table(summary: dict[str, Any]) -> Table:
    """What the plan expects, what yosys counts, what the board has."""
    board = load_board(summary["board"])
    table = _table("resources", "", "planned", "yosys", board.name)
    for name in ("dsp", "bram36", "uram", "lut", "ff"):
        counts = (summary["resources"].get(origin, {}).get(name) for origin in ("planned", "yosys"))
        table.add_row(name, *("" if c is None else f"{c:,g}" for c in counts), f"{getattr(board, name):,}")
    return table


def published_table(summary: dict[str, Any]) -> Table:
    """This accelerator beside the published ones."""
    ours = summary["cycles_rtl"] / summary["clock_mhz"] / 1e3
    table = _table(
        "M3ViT, one image at a time",
        "accelerator",
        "board",
        "bits",
        "MHz",
        "ms",
        "DSP",
        "BRAM36",
        "LUT",
        "times as fast",
    )
    for p in PUBLISHED:
        counts = ("" if value is None else str(value) for value in (p.dsp, p.bram36, p.lut))
        table.add_row(
            p.name, p.board, p.bits, str(p.clock_mhz), f"{p.milliseconds:.2f}", *counts, f"{p.milliseconds / ours:.1f}"
        )
    used = [summary[name]["value"] for name in ("dsp", "bram36", "lut")]
    own = f"{used[0]:g}", f"{used[1]:g}", f"{used[2] / 1000:.0f} k"
    name = f"moehls, {summary['tokens']} tokens, {summary['dsp']['origin']} resources"
    table.add_row(name, summary["board"].upper(), "W8 A8", f"{summary['clock_mhz']:g}", f"{ours:.2f}", *own, "")
    table.caption = (
        "theirs as published, on a larger board and measured on it; ours in RTL simulation with a model of the DRAM"
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _stream_bytes(plan: Plan) -> int:
    return 16 * (plan.weight_beats * plan.shape.ports + plan.input_beats)


def _sum(steps: Sequence[dict[str, Any]], key: str) -> int:
    return sum(step[key] for step in steps)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"


def _yes(value: bool | None) -> str:
    return "not run" if value is None else "yes" if value else "NO"
