"""What logic takes, planned beside counted, in several shapes: `python -m benchmarks resources --calibrate [--fit] [FOLDER]`.

Each shape is made into C++ and RTL and counted by yosys in FOLDER (`build/calibrate`), where counts are kept. Out come the LUTs
(as yosys counts them) and flip-flops of every process, memories aside, planned beside counted, with their sums, and the DSPs. It
ends with status 1 where LUTs or flip-flops are more than 15 % off, or the DSPs more than 2 %. With `--fit` it prints what a
unit of each term of `moehls.plan.logic` takes by these counts, as that file has it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.emit.hls import emit_hls
from moehls.integer.precision import W8A8, W16A16
from moehls.plan.logic import logic_by_process, name_of, terms
from moehls.plan.memory import MemoryUse, memory_map
from moehls.plan.resources import plan_resources
from moehls.plan.shape import Shape
from moehls.rtl.generate import generate
from moehls.rtl.resources import count

LIMIT, DSP_LIMIT = 0.15, 0.02
_SMALL = Shape(W8A8, 4, 8, 4, 2, 256, 128, 64, 64, 8, 8, 32, 10, 64)
_WIDE = replace(_SMALL, precision=W16A16)
_BOUNDS: Mapping[str, Any] = {
    "scaled_bits": 25,
    "shift_low": 9,
    "shift_high": 27,
    "second_bits": 25,
    "second_shift_low": 13,
    "second_shift_high": 25,
    "channel_bias_bits": 21,
    "activated_bias_bits": 18,
    "channel_shift_bits": 5,
}
"""as the plan bounds sums, shifts and parameters of M3ViT-tiny"""
_LARGE = Shape(W8A8, 12, 16, 4, 4, 528, 132, 129, 48, 12, 4, 129, 16, 49152, lut_columns=5, **_BOUNDS)
SHAPES = {
    "1 × 8": replace(_SMALL, token_parallel=1, ports=1, max_experts=3),
    "3 × 8 gated, columns": replace(_SMALL, token_parallel=3, epilogue_lanes=8, ports=4, lut_columns=3, gated=True),
    "4 × 8 options": replace(_SMALL, epilogue_lanes=2, pools=True, plain_norms=True, thresholds=True, capacities=True),
    "3 × 8, 16 bits": replace(_WIDE, token_parallel=3, max_experts=6),
    "6 × 8 prefetched, bounded": replace(_SMALL, token_parallel=6, max_experts=16, experts="prefetched", **_BOUNDS),
    "6 × 16 bounded": replace(_LARGE, token_parallel=6, epilogue_lanes=2, ports=2, lut_columns=0),
    "12 × 16 bounded, columns": _LARGE,
}
Logic = Mapping[str, tuple[int, int]]
"""(LUTs, flip-flops) by the plan's names of processes"""
_HOLDERS = {
    "kept": "weights",
    "context parameters": "weights",
    "norm parameters": "norm",
    "norm blocks": "norm",
    "segments": "sections",
}
"""what holds a memory that may be LUT RAM"""


def cascade_luts(stream: MemoryUse) -> int:
    """LUTs that yosys puts behind ultra RAM of several cascaded blocks: the blocks' own multiplexers, not fabric."""
    blocks = -(-stream.depth // 4096) if stream.storage == "uram" else 1
    return stream.width * -(-(blocks - 1) // 3)


def logic(shape: Shape, processes: Mapping[str, Mapping[str, float]]) -> Logic:
    """What was counted, memories of LUT RAM aside."""
    cells: dict[str, list[float]] = {name: [0, 0] for name in terms(shape)}
    for process, counts in processes.items():
        name = name_of(process)
        cells[name][0] += counts["lut"]
        cells[name][1] += counts["ff"]
    for use in memory_map(shape):
        if use.storage == "lutram":
            cells[_HOLDERS.get(use.name, "compute")][0] -= use.lut
        if use.name == "stream":
            cells["stream"][0] -= cascade_luts(use)
    return {name: (round(luts), round(registers)) for name, (luts, registers) in cells.items()}


def counted(shape: Shape, folder: Path) -> Mapping[str, Mapping[str, float]]:
    """Cells of every process of the accelerator of a shape."""
    folder.mkdir(parents=True, exist_ok=True)
    emit_hls(shape, ("exact",), folder)
    report = generate(folder)
    usage = count(sorted((folder / "rtl").glob("*.sv")), report.top, folder / "build" / "resources")
    return {name: asdict(cells) for name, cells in usage.processes.items()}


def table(name: str, shape: Shape, processes: Mapping[str, Mapping[str, float]]) -> tuple[str, bool]:
    """Planned beside counted as Markdown, and whether the sums are within their limits."""
    planned, found = logic_by_process(shape), logic(shape, processes)
    lines = [
        f"| {name} | LUT planned | counted | ratio | FF planned | counted | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    ratios: list[float] = []
    for row in (*planned, "all"):
        pairs = list(
            zip(*((planned[row], found[row]) if row != "all" else (_sums(planned), _sums(found))), strict=True)
        )
        ratios = [_ratio(a, b) for a, b in pairs]
        cells = "".join(f" {a:,} | {b:,} | {r:.2f} |" for (a, b), r in zip(pairs, ratios, strict=True))
        if any(number for pair in pairs for number in pair):
            lines.append(f"| {row} |{cells}")
    dsps = sum(round(cells["dsp"]) for cells in processes.values())
    expected = plan_resources(shape).dsp
    lines += ["", f"DSP: planned {expected:,}, counted {dsps:,}", ""]
    good = all(abs(r - 1) <= LIMIT for r in ratios) and abs(_ratio(expected, dsps) - 1) <= DSP_LIMIT
    return "\n".join(lines), good


def _ratio(planned: float, found: float) -> float:
    return planned / found if found else float(planned == 0) or float("inf")


def _sums(cells: Logic) -> tuple[int, int]:
    return sum(luts for luts, _ in cells.values()), sum(registers for _, registers in cells.values())


def fitted(found: Mapping[str, Logic]) -> dict[str, dict[str, tuple[float, float]]]:
    """What a unit of each term takes: least squares of errors relative to the whole shape, nothing negative."""
    units = {name: terms(SHAPES[name]) for name in found}
    coefficients: dict[str, dict[str, tuple[float, float]]] = {}
    for process, names in next(iter(units.values())).items():
        matrix = np.array([[units[name][process][term] for term in names] for name in found], dtype=np.float64)
        both = []
        for kind in (0, 1):
            whole = np.array([_sums(found[name])[kind] for name in found], dtype=np.float64)
            target = np.array([found[name][process][kind] for name in found], dtype=np.float64)
            both.append(_least_squares(matrix / whole[:, None], target / whole))
        coefficients[process] = {
            term: (float(f"{both[0][i]:.3g}"), float(f"{both[1][i]:.3g}")) for i, term in enumerate(names)
        }
    return coefficients


def _least_squares(matrix: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The solution without negative numbers: terms that would be negative are left out, the most negative first."""
    used = [i for i in range(matrix.shape[1]) if matrix[:, i].any()]
    solution = np.zeros(matrix.shape[1])
    while used:
        scale = np.abs(matrix[:, used]).max(axis=0)
        part = np.linalg.lstsq(matrix[:, used] / scale, target, rcond=None)[0] / scale
        if part.min() >= 0:
            solution[used] = part
            break
        del used[int(np.argmin(part * scale))]
    return solution


def main(arguments: Sequence[str]) -> None:
    """Print planned beside counted for every shape; `--fit`: what the counts say a unit takes."""
    fit = "--fit" in arguments
    folder = Path(next((a for a in arguments if not a.startswith("--")), "build/calibrate"))
    found: dict[str, Logic] = {}
    good = True
    for i, (name, shape) in enumerate(SHAPES.items()):
        processes = counted(shape, folder / str(i))
        found[name] = logic(shape, processes)
        if not fit:
            text, within = table(name, shape, processes)
            print(text, "" if within else "too far off\n", sep="\n", flush=True)
            good = good and within
    if fit:
        for process, each in fitted(found).items():
            print(f'    "{process}": {{')
            print("".join(f'        "{term}": {value},\n' for term, value in each.items()) + "    },")
    if not good:
        sys.exit(1)
