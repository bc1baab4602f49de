"""The Pareto front of the shapes: what fewer DSPs, less memory or more cycles buy, by the cost model alone.

In go an integer network, a board and what the user fixed, out come the shapes that no other shape beats in cycles, DSPs,
block RAM and URAM at once. A `Point` holds the settings that make `plan` choose its shape again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from moehls.boards import Board
from moehls.errors import DoesNotFit, MoehlsError
from moehls.integer.operations import IntegerNetwork
from moehls.plan.cost import ExpertLoad, frame_cycles
from moehls.plan.memory import LUT_LIMIT
from moehls.plan.program import build_program
from moehls.plan.resources import plan_resources
from moehls.plan.search import Settings, candidates, fitted, program_key, search, splits
from moehls.plan.shape import Shape
from moehls.plan.steps import Program

_FIFO_SHARES = (1, 2, 4, 16)
"""the stream's FIFO as deep as the board allows, and these parts of it"""
_WORTH = 1.005
"""a shape that is faster than a cheaper one by less than this factor is not shown"""


@dataclass(frozen=True)
class Point:
    """One shape of the front, estimated."""

    cycles: int
    """a frame"""
    dsp: int
    bram36: float
    uram: int
    lut: int
    settings: dict[str, str]
    """`--set` settings that give this shape"""

    @property
    def costs(self) -> tuple[float, ...]:
        """What the front compares: less is better in each."""
        return self.cycles, self.dsp, self.bram36, self.uram


def explore(
    network: IntegerNetwork,
    board: Board,
    clock_mhz: float,
    settings: Settings,
    load: ExpertLoad,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Point, ...]:
    """The front, from the fewest cycles on.

    Raises:
        MoehlsError: the settings contradict each other, or nothing fits the board; the message says what would.
    """
    points = next(
        filter(None, (_points(network, board, clock_mhz, trial, load, progress) for trial in splits(settings))), []
    )
    if not points:
        search(network, board, clock_mhz, settings, load)  # says what would fit
        raise MoehlsError(f"no accelerator for {board.name} fits with these settings")
    return front(points)


def _points(
    network: IntegerNetwork, board: Board, clock_mhz: float, settings: Settings, load: ExpertLoad,
    progress: Callable[[float], None],
) -> list[Point]:  # fmt: skip
    """Every accelerator that fits, with the parts that the settings say."""
    points: list[Point] = []
    shapes = sorted(candidates(network, board, settings), key=lambda shape: (shape.block, shape.token_parallel))
    program: Program | None = None
    built: tuple[object, ...] | None = None
    for number, candidate in enumerate(shapes):
        if program is None or built != program_key(candidate):
            program, built = build_program(network, candidate), program_key(candidate)
        for shape in _fitting(program, candidate, board, settings):
            points.append(_point(program, shape, board, clock_mhz, load, settings.hidden_parts))
        progress((number + 1) / len(shapes))
    return points


def front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other beats, by cycles; the fastest is always one of them.

    Another beats a point that takes as much or more of everything, and is faster by less than half a percent if at all.
    """
    ordered = sorted(points, key=lambda point: point.costs)
    unique = [ordered[0], *(b for a, b in pairwise(ordered) if a.costs != b.costs)]
    return tuple(p for n, p in enumerate(unique) if n == 0 or not any(_beats(other, p) for other in unique))


def _beats(other: Point, point: Point) -> bool:
    cheaper = all(a <= b for a, b in zip(other.costs[1:], point.costs[1:], strict=True))
    if other.costs[1:] == point.costs[1:]:
        return other.cycles < point.cycles
    return cheaper and other.cycles <= point.cycles * _WORTH


def _fitting(program: Program, candidate: Shape, board: Board, settings: Settings) -> Iterator[Shape]:
    """The candidate with memories that fit, and with smaller FIFOs where the user has not fixed it."""
    try:
        shape = fitted(program, candidate, board, settings)
    except DoesNotFit:
        return
    if plan_resources(shape).lut > LUT_LIMIT * board.lut:
        return
    shares = (1,) if settings.fifo_beats else _FIFO_SHARES
    for beats in dict.fromkeys(max(shape.fifo_beats // share, _least_beats(shape)) for share in shares):
        yield replace(shape, fifo_beats=beats)


def _least_beats(shape: Shape) -> int:
    """A FIFO of 64 words."""
    return min(shape.fifo_beats, 64 * shape.word_bits // (128 * shape.ports))


def _point(
    program: Program, shape: Shape, board: Board, clock_mhz: float, load: ExpertLoad, hidden_parts: int | None
) -> Point:
    resources = plan_resources(shape)
    fixed = {name: str(value) for name, value in vars(shape).items() if name in Settings.__dataclass_fields__}
    return Point(
        round(frame_cycles(program, shape, board, clock_mhz, load)),
        resources.dsp,
        resources.bram36,
        resources.uram,
        resources.lut,
        fixed if hidden_parts is None else fixed | {"hidden_parts": str(hidden_parts)},
    )
