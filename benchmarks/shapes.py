"""Planned cycles beside those in RTL, for ten shapes: `python -m benchmarks shapes [-o DIR] [NUMBER …]`.

Each shape is another accelerator for another small network: the committed digits model, calibrated, or a random integer network.
A frame of it runs in Verilator behind the board's DRAM. Out comes a line a shape: cycles by the plan (expected tokens of the
experts), by the cost model with the tokens of this very frame, and in RTL; then the kinds of steps over all shapes. Exits 1
where a plan is more than 10 % off, or an output differs from the reference.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from moehls import api
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntegerExperts
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan.cost import estimate
from moehls.project import Project, open_project
from moehls.reference import run
from moehls.simulate.rtl import RtlSimulator, dram_of
from moehls.simulate.verify import compare
from tests.support.random_networks import Sizes, random_image
from tests.tb.projects import write_random_project

DIGITS = Path(__file__).parent.parent / "models" / "digits"
LIMIT = 0.1
_SEED = 3
_WIDTH = 130


@dataclass(frozen=True)
class Case:
    """A network, by its sizes or `None` for digits, and what is fixed of its accelerator."""

    network: str
    sizes: Sizes | None
    token_parallel: int
    block: int
    epilogue_lanes: int
    ports: int
    experts: str = "streamed"
    lut_columns: int = 0
    precision: Precision = W8A8

    @property
    def settings(self) -> dict[str, str]:
        """As `--set` takes them."""
        names = ("token_parallel", "block", "epilogue_lanes", "ports", "experts", "lut_columns")
        return {name: str(getattr(self, name)) for name in names}

    @property
    def label(self) -> str:
        return (
            f"{self.token_parallel} × {self.block}, Le {self.epilogue_lanes}, {self.ports} "
            f"port{'s' * (self.ports > 1)}{f', {self.lut_columns} columns' * (self.lut_columns > 0)}"
        )


_WIDE = Sizes(tokens=26, width=90, heads=3, layers=2, mlp=150, experts=6, hidden=70, k=2, tasks=1, head=10)
_MANY = Sizes(tokens=21, width=48, heads=2, layers=4, mlp=60, experts=12, hidden=40, k=1, tasks=2, head=5)
_GATED = Sizes(tokens=19, width=60, heads=2, layers=2, mlp=80, experts=4, hidden=40, gated=True, centred=False, head=0)
_DENSE = Sizes(tokens=50, width=64, heads=2, layers=3, mlp=128, experts=0, tasks=1, head=10)
CASES = (
    Case("digits", None, 4, 8, 2, 1),
    Case("digits", None, 8, 8, 4, 2),
    Case("digits", None, 3, 8, 8, 4, lut_columns=2),
    Case("digits", None, 5, 8, 4, 2, "prefetched"),
    Case("digits", None, 2, 16, 8, 4),
    Case("wide", _WIDE, 4, 16, 4, 4),
    Case("many experts", _MANY, 6, 8, 2, 2, "prefetched"),
    Case("gated", _GATED, 3, 8, 4, 2),
    Case("dense", _DENSE, 1, 8, 2, 1),
    Case("many experts, 16 bits", _MANY, 2, 8, 2, 4, precision=W16A16),
)


@dataclass(frozen=True)
class Measured:
    """A frame of one shape."""

    case: Case
    planned: int
    counted: int
    """with the tokens that the experts had in this frame"""
    cycles: int
    steps: tuple[tuple[str, int, int], ...]
    """(kind, by the cost model, in RTL)"""
    exact: bool

    @property
    def error(self) -> float:
        """Of the plan."""
        return self.planned / self.cycles - 1


def prepare(case: Case, folder: Path) -> tuple[Project, np.ndarray]:
    """The project and an image."""
    if case.sizes is not None:
        project = write_random_project(folder, _SEED, case.sizes, case.settings, precision=case.precision)  # type: ignore[arg-type]
        return project, random_image(project.integer, _SEED)
    api.compile(
        DIGITS / "digits.onnx", folder, calibration=DIGITS / "calibration.npz", settings=case.settings, force=True
    )
    with np.load(DIGITS / "test.npz") as samples:
        return open_project(folder), samples["image"][0]


def measure(case: Case, folder: Path) -> Measured:
    """Build the accelerator and run a frame."""
    project, image = prepare(case, folder)
    integer, plan = project.integer, project.plan
    execution = run(integer, image, 0)
    load = {
        op.name: execution.routing(op.routing).tokens(len(op.first_weight)).tolist()
        for op in integer.operations
        if isinstance(op, IntegerExperts)
    }
    costs = estimate(project.program, plan.shape, plan.board, plan.clock_mhz, load, counted=True)
    simulator = RtlSimulator(project, dram_of(project))
    try:
        found = simulator.run(quantise_image(integer, image), 0, trace=False)
    finally:
        simulator.close()
    difference = compare(integer, project.program, execution, found, 0, 0)
    steps = tuple((c.kind, c.cycles, n) for c, n in zip(costs, found.step_cycles(), strict=True))
    counted = costs[-1].start + costs[-1].cycles
    return Measured(case, plan.cycles, counted, found.cycles or 0, steps, difference is None)


def table(rows: Sequence[Measured]) -> Table:
    """A line a shape."""
    found = Table(title="cycles of a frame, planned and in RTL", title_justify="left")
    for name in ("network", "tokens × width", "shape", "experts", "planned", "of this frame", "RTL", "error", "exact"):
        found.add_column(name, justify="left" if name in ("network", "shape", "experts") else "right")
    for row in rows:
        sizes = row.case.sizes
        found.add_row(
            row.case.network,
            "17 × 32" if sizes is None else f"{sizes.tokens} × {sizes.width}",
            row.case.label,
            row.case.experts if sizes is None or sizes.experts else "none",
            f"{row.planned:,}",
            f"{row.counted:,}",
            f"{row.cycles:,}",
            f"{100 * row.error:+.1f} %",
            "yes" if row.exact else "NO",
        )
    return found


def kinds(rows: Sequence[Measured]) -> Table:
    """The steps of all shapes by kind: where the cost model is off."""
    planned: Counter[str] = Counter()
    measured: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for kind, a, b in (step for row in rows for step in row.steps):
        planned[kind] += a
        measured[kind] += b
        count[kind] += 1
    found = Table(title="steps by kind, with the tokens of the frame", title_justify="left")
    for name in ("kind", "steps", "planned", "RTL", "planned - RTL a step"):
        found.add_column(name, justify="left" if name == "kind" else "right")
    for kind, n in sorted(count.items()):
        a, b = planned[kind], measured[kind]
        found.add_row(kind, f"{n:,}", f"{a:,}", f"{b:,}", f"{(a - b) / n:+.1f}")
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks shapes")
    parser.add_argument("numbers", nargs="*", type=int, help=f"of shapes, 0 to {len(CASES) - 1}; all without")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench-shapes"), help="folder of its files")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=_WIDTH)
    rows = []
    for number in options.numbers or range(len(CASES)):
        case = CASES[number]
        row = measure(case, options.output / str(number))
        console.print(f"{number}: {case.network}, {case.label}: {row.planned:,} planned, {row.cycles:,} in RTL")
        rows.append(row)
    console.print(table(rows), kinds(rows))
    worst = max(abs(row.error) for row in rows)
    good = worst <= LIMIT
    console.print(f"largest error {worst:.1%}, at most {LIMIT:.0%}: {'yes' if good else 'NO'}")
    if not good or not all(row.exact for row in rows):
        sys.exit(1)
