"""The plan of one project: shape, memory map, stages, estimated cycles, resources, and how host data is laid out.

In go an integer network, a board and what the user fixed, out comes a frozen `Plan`, which can be saved and loaded. The
program itself is not in it: `build_program(network, plan.shape)` gives it again, the same every time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moehls import serialize
from moehls.boards import Board
from moehls.errors import MoehlsError
from moehls.integer.operations import IntegerNetwork
from moehls.integer.precision import Precision
from moehls.plan.check import check_program
from moehls.plan.cost import ExpertLoad, StepCost, estimate, uniform_load
from moehls.plan.layout import stream_words
from moehls.plan.memory import MemoryUse, memory_map
from moehls.plan.payload import Bytes
from moehls.plan.program import build_program
from moehls.plan.resources import Resources, plan_resources
from moehls.plan.search import parse_settings, search
from moehls.plan.shape import Shape
from moehls.plan.steps import Channels, InputPlace, OutputPlace, Place, Stage

_CLASSES = (
    Board,
    Channels,
    InputPlace,
    MemoryUse,
    OutputPlace,
    Place,
    Precision,
    Resources,
    Shape,
    Stage,
    StepCost,
)
_HIGHEST_CLOCK = 1000.0


@dataclass(frozen=True)
class Plan:
    """Everything the emitter, the simulators and the report need to know of the machine for one network."""

    network: str
    shape: Shape
    board: Board
    clock_mhz: float
    memories: tuple[MemoryUse, ...]
    stages: tuple[Stage, ...]
    costs: tuple[StepCost, ...]
    """one a step of the program, in its order"""
    cycles: int
    """estimated cycles a frame"""
    resources: Resources
    input: InputPlace
    outputs: tuple[OutputPlace, ...]
    weight_words: int
    """words of the stream"""
    weight_beats: int
    """128-bit chunks a port"""
    first_beats: int
    """of them those of the first section: all where experts are streamed"""
    input_beats: int
    output_beats: int

    @property
    def latency_ms(self) -> float:
        """Estimated time a frame."""
        return self.cycles / self.clock_mhz / 1e3

    @property
    def macs(self) -> int:
        """Multiply-accumulates a frame, with the expected expert loads."""
        return sum(cost.macs for cost in self.costs)


def plan(
    network: IntegerNetwork,
    board: Board,
    clock_mhz: float,
    settings: Mapping[str, str],
    expert_load: ExpertLoad | None = None,
) -> Plan:
    """The plan with the fewest estimated cycles for `network` on `board`.

    `settings` fix parts of the shape (`moehls.plan.search.Settings`). `expert_load` gives the tokens each expert is
    expected to get, by the name of the experts operation; without it all get the same.

    Raises:
        MoehlsError: a bad setting, clock or load, an operation the machine cannot run, or memories that do not fit.
    """
    if not 0 < clock_mhz <= _HIGHEST_CLOCK:
        raise MoehlsError(f"a clock of {clock_mhz} MHz is not possible; give one between 0 and {_HIGHEST_CLOCK:g}")
    load = _checked_load(network, expert_load)
    shape, program = search(network, board, clock_mhz, parse_settings(settings), load)
    check_program(program, shape)
    costs = estimate(program, shape, board, clock_mhz, load)
    return Plan(
        network=network.name,
        shape=shape,
        board=board,
        clock_mhz=float(clock_mhz),
        memories=memory_map(shape),
        stages=program.stages,
        costs=costs,
        cycles=costs[-1].start + costs[-1].cycles,
        resources=plan_resources(shape),
        input=program.input,
        outputs=program.outputs,
        weight_words=program.words,
        weight_beats=program.words * shape.word_bits // (128 * shape.ports),
        first_beats=program.first_words * shape.word_bits // (128 * shape.ports),
        input_beats=program.input.beats,
        output_beats=program.output_beats,
    )


def weights_bytes(network: IntegerNetwork, plan: Plan) -> Bytes:
    """The bytes of `weights.bin`: the program with its parameters and weights, `[weight_words · word bytes]`."""
    return stream_words(build_program(network, plan.shape), plan.shape).ravel()


def save_plan(path: Path, plan: Plan) -> None:
    """Write `plan`; the same plan gives the same bytes."""
    serialize.save(path, plan)


def load_plan(path: Path) -> Plan:
    """Read what `save_plan` wrote.

    Raises:
        MoehlsError: the file is missing, damaged or of another version.
    """
    try:
        loaded = serialize.load(path, (Plan, *_CLASSES))
    except TypeError as error:
        raise MoehlsError(f"{path}: written by another version of moehls ({error}); compile the model again") from error
    if not isinstance(loaded, Plan):
        raise MoehlsError(f"{path}: holds a {type(loaded).__name__}, not a plan; compile the model again")
    return loaded


def _checked_load(network: IntegerNetwork, given: ExpertLoad | None) -> dict[str, list[float]]:
    load = uniform_load(network)
    for name, tokens in (given or {}).items():
        if name not in load or len(tokens) != len(load[name]):
            raise MoehlsError(f"expert load of {name!r}: the network has { ({k: len(v) for k, v in load.items()}) }")
        load[name] = [float(t) for t in tokens]
    return load
