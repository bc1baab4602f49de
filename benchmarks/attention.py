"""Reordered attention: loads of keys and values against the token parallelism, `python -m benchmarks attention [MODEL.onnx]`.

The model (the committed digits model without one) is compiled for several token parallelisms Tt and a frame of each is run in
RTL. A *vector* is the block of channels of one token. The reordered loop holds Tt queries and lets the keys pass once for all of
them: each of the Tt banks of the key memory gives one vector a cycle, whatever Tt is. The unordered loop, which takes each
query by itself, would load every vector for every query: Tt times as many a cycle at the same speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from moehls import api
from moehls.plan.instruction import Kind, Mode
from moehls.project import open_project

DIGITS = Path(__file__).parent.parent / "models" / "digits"
PARALLELISMS = (1, 2, 4, 8)
_BLOCK = 8
_WIDTH = 110
"""characters, whatever the terminal: a table cut short says nothing"""


@dataclass(frozen=True)
class Loads:
    """The attention steps of one frame at one token parallelism."""

    token_parallel: int
    cycles: int
    reads: int
    """addresses read of the key or value memory; each gives a vector a bank"""
    vectors: int
    """loaded by the reordered loop"""
    unordered: int
    """that the unordered loop loads"""
    exact: bool


def loads(model: Path, token_parallel: int, folder: Path) -> Loads:
    """Compile `model` with `token_parallel`, run a frame in RTL, and count."""
    settings = {"token_parallel": str(token_parallel), "block": str(_BLOCK)}
    api.compile(model, folder, settings=settings, force=True)
    exact = api.verify(folder, ["rtl"], samples=1).passed
    project = open_project(folder)
    cycles = reads = vectors = unordered = 0
    for step, measured in zip(project.program.steps, project.summary()["steps"], strict=True):
        i = step.instruction
        if i.kind != Kind.LINEAR or i.mode not in (Mode.SOFTMAX, Mode.CONTEXT):
            continue
        cycles += measured["cycles_rtl"]
        reads += i.n0 * i.n1 * i.n2
        blocks = i.n2 if i.mode == Mode.SOFTMAX else i.n1
        vectors += i.n0 * i.rows * blocks  # every token's block once for each group of queries
        unordered += step.reads[0].place.rows * i.rows * blocks
    return Loads(token_parallel, cycles, reads, vectors, unordered, exact)


def main(arguments: Sequence[str]) -> None:
    """Print the sweep."""
    model = Path(arguments[0]) if arguments else DIGITS / "digits.onnx"
    table = Table(title=f"attention of {model.stem}, a frame in RTL", title_justify="left")
    columns = (
        "Tt",
        "cycles",
        "reads a cycle of a bank",
        "vectors loaded",
        "unordered",
        "fewer by",
        "unordered, a cycle",
        "exact",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for token_parallel in PARALLELISMS:
        with tempfile.TemporaryDirectory() as folder:
            found = loads(model, token_parallel, Path(folder) / "project")
        table.add_row(
            str(token_parallel),
            f"{found.cycles:,}",
            f"{found.reads / found.cycles:.2f}",
            f"{found.vectors:,}",
            f"{found.unordered:,}",
            f"{found.unordered / found.vectors:.1f}",
            f"{found.unordered / found.cycles:.2f}",
            "yes" if found.exact else "NO",
        )
    Console(width=_WIDTH).print(table)
