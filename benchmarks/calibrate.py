"""LUTs and flip-flops in several shapes, planned beside counted: `python -m benchmarks resources --calibrate [FOLDER]`.

Each shape is made into C++ and RTL and counted by yosys in FOLDER (`build/calibrate`), where counts are kept. Out come the LUTs,
LUT6 sites and flip-flops of every process, and the plan's totals beside the counted ones (LUTs: the sites, less what yosys puts
behind cascaded ultra RAM). It ends with status 1 where a total is more than 15 % off.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from moehls.emit.hls import emit_hls
from moehls.integer.precision import W8A8, W16A16
from moehls.plan.memory import MemoryUse, memory_map
from moehls.plan.resources import plan_resources
from moehls.plan.shape import Shape
from moehls.rtl.generate import generate
from moehls.rtl.resources import count

LIMIT = 0.15
_SMALL = Shape(W8A8, 4, 8, 4, 2, 256, 128, 64, 64, 8, 8, 32, 10, 64)
_WIDE = replace(_SMALL, precision=W16A16)
_LARGE = Shape(W8A8, 12, 16, 2, 4, 528, 132, 129, 48, 12, 2, 129, 16, 49152, lut_columns=5)
SHAPES = {
    "1 × 8": replace(_SMALL, token_parallel=1, ports=1, max_experts=3),
    "3 × 8 gated, columns": replace(_SMALL, token_parallel=3, epilogue_lanes=8, ports=4, lut_columns=3, gated=True),
    "4 × 8 options": replace(_SMALL, epilogue_lanes=2, pools=True, plain_norms=True, thresholds=True, capacities=True),
    "3 × 8, 16 bits": replace(_WIDE, token_parallel=3, max_experts=6),
    "6 × 16": replace(_LARGE, token_parallel=6, epilogue_lanes=4, lut_columns=0),
    "12 × 16": _LARGE,
}


def cascade_luts(stream: MemoryUse) -> int:
    """LUTs that yosys puts behind ultra RAM of several cascaded blocks: the blocks' own multiplexers, not fabric."""
    blocks = -(-stream.depth // 4096) if stream.storage == "uram" else 1
    return stream.width * -(-(blocks - 1) // 3)


def counted(shape: Shape, folder: Path) -> Mapping[str, Mapping[str, float]]:
    """Cells of every process of the accelerator of a shape."""
    folder.mkdir(parents=True, exist_ok=True)
    emit_hls(shape, "exact", folder)
    report = generate(folder)
    usage = count(sorted((folder / "rtl").glob("*.sv")), report.top, folder / "build" / "resources")
    return {name: asdict(cells) for name, cells in usage.processes.items()}


def table(name: str, shape: Shape, processes: Mapping[str, Mapping[str, float]]) -> tuple[str, bool]:
    """Counted processes and planned totals as Markdown, and whether both totals are within `LIMIT`."""
    plan = plan_resources(shape)
    lines = [f"| {name} | LUT | in sites | FF |", "|---|---|---|---|"]
    rows = sorted(processes.items(), key=lambda row: -row[1]["lut_sites"])
    lines += [f"| `{row}` | {c['lut']:,} | {c['lut_sites']:,} | {c['ff']:,} |" for row, c in rows]
    sites = sum(c["lut_sites"] for c in processes.values())
    sites -= sum(cascade_luts(use) for use in memory_map(shape) if use.name == "stream")
    registers = sum(c["ff"] for c in processes.values())
    lines += ["", f"| {name} | planned | counted | planned / counted |", "|---|---|---|---|"]
    lines += [
        f"| {kind} | {a:,} | {b:,} | {a / b:.2f} |"
        for kind, a, b in (("LUT, corrected", plan.lut, sites), ("FF", plan.ff, registers))
    ]
    return "\n".join(lines), all(abs(a / b - 1) <= LIMIT for a, b in ((plan.lut, sites), (plan.ff, registers)))


def main(arguments: Sequence[str]) -> None:
    """Print the tables of every shape."""
    folder, good = Path(arguments[0] if arguments else "build/calibrate"), True
    for i, (name, shape) in enumerate(SHAPES.items()):
        text, within = table(name, shape, counted(shape, folder / str(i)))
        print(text, "" if within else f"more than {LIMIT:.0%} off", sep="\n", flush=True)
        good = good and within
    if not good:
        sys.exit(1)
