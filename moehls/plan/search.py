"""The search for a shape: the parallelism with the fewest estimated cycles under a board's limits.

In go a network, a board and what the user fixed, out comes a shape. Every candidate is estimated with the cost model;
equal cycles go to fewer DSPs, then to fewer LUTs. The search has no randomness.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from moehls.boards import Board
from moehls.errors import DoesNotFit, MoehlsError
from moehls.integer.operations import IntegerExperts, IntegerNetwork
from moehls.plan.cost import ExpertLoad, frame_cycles, frame_macs
from moehls.plan.instruction import HEADER_BITS
from moehls.plan.memory import DSP_LIMIT, LUT_LIMIT, fit_memories
from moehls.plan.program import build_program
from moehls.plan.resources import column_dsps, dsp_by_process, plan_resources
from moehls.plan.shape import Experts, Shape, Storage
from moehls.plan.steps import Program
from moehls.plan.uses import most_blocks

BLOCKS = (8, 16, 32)
WORD_BITS_LIMIT = 4096
"""the widest ap_uint of Vitis HLS"""
_STORAGES: tuple[Storage, ...] = ("bram", "uram", "lutram")
_EXPERTS: tuple[Experts, ...] = ("streamed", "prefetched")


@dataclass(frozen=True)
class Settings:
    """What the user fixes of the shape (`--set key=value`); None is searched for."""

    token_parallel: int | None = None
    block: int | None = None
    epilogue_lanes: int | None = None
    ports: int | None = None
    fifo_beats: int | None = None
    activation_storage: Storage | None = None
    residual_storage: Storage | None = None
    hidden_parts: int | None = None
    """parts in which hidden layers are computed (`moehls.plan.parts`)"""
    lut_columns: int | None = None
    experts: Experts | None = None
    """`streamed` in order, those without tokens drained, or `prefetched` by choice"""


def parse_settings(settings: Mapping[str, str]) -> Settings:
    """Settings from text.

    Raises:
        MoehlsError: an unknown key (the message lists the known ones) or a value of the wrong kind.
    """
    keys = list(Settings.__dataclass_fields__)
    values: dict[str, int | str] = {}
    for key, text in settings.items():
        if key not in keys:
            raise MoehlsError(f"unknown setting {key!r}; known are {', '.join(keys)}")
        if key.endswith("storage"):
            if text not in _STORAGES:
                raise MoehlsError(f"setting {key} = {text!r}: a memory is one of {', '.join(_STORAGES)}")
            values[key] = text
        elif key == "experts":
            if text not in _EXPERTS:
                raise MoehlsError(f"setting experts = {text!r}: experts are {' or '.join(_EXPERTS)}")
            values[key] = text
        elif not (text.isascii() and text.isdigit() and int(text) >= (key != "lut_columns")):
            raise MoehlsError(f"setting {key} = {text!r} is not a positive whole number")
        else:
            values[key] = int(text)
    return Settings(**values)  # type: ignore[arg-type]


def search(
    network: IntegerNetwork, board: Board, clock_mhz: float, settings: Settings, load: ExpertLoad
) -> tuple[Shape, Program]:
    """The best shape for `network` on `board`, and the program for it.

    Raises:
        MoehlsError: the settings contradict each other, or nothing fits the board (`DoesNotFit` where that is for the
            memories); the message says what would.
    """
    best: tuple[tuple[float, int, int, int], Shape, Program] | None = None
    failure: tuple[float, MoehlsError] = math.inf, MoehlsError(_no_candidate(network, board, settings))
    program: Program | None = None
    built: tuple[int, int, Experts] | None = None
    for candidate in sorted(candidates(network, board, settings), key=lambda c: -c.macs_a_cycle):
        if best is not None and _ideal_cycles(best[2], candidate, load) > best[0][0]:
            break
        if program is None or built != program_key(candidate):
            program, built = build_program(network, candidate), program_key(candidate)
        try:
            shape = fitted(program, candidate, board, settings)
        except DoesNotFit as error:
            failure = min(failure, (_activation_bits(program, candidate), error), key=_first)
            continue
        resources = plan_resources(shape)
        if resources.lut > LUT_LIMIT * board.lut:
            large = MoehlsError(_too_many_luts(shape, resources.lut, board))
            failure = min(failure, (_activation_bits(program, candidate), large), key=_first)
            continue
        score = (frame_cycles(program, shape, board, clock_mhz, load), resources.dsp, resources.lut, shape.ports)
        if best is None or score < best[0]:
            best = score, shape, program
    if best is None:
        raise failure[1]
    return best[1], best[2]


def program_key(shape: Shape) -> tuple[int, int, Experts]:
    """What of a shape its program depends on."""
    return shape.token_parallel, shape.block, shape.experts


def candidates(network: IntegerNetwork, board: Board, settings: Settings) -> Iterator[Shape]:
    """Every parallelism that the machine allows and whose DSPs the board has; memories without depth."""
    for block in _choices(settings.block, BLOCKS):
        word_bits = block * block * network.precision.weight_bits
        if word_bits > WORD_BITS_LIMIT or word_bits < HEADER_BITS or block % 8:
            continue
        norm_depth = most_blocks(network, block)
        for token_parallel in _choices(settings.token_parallel, range(1, block + 1)):
            for experts, lanes, ports in itertools.product(
                _experts(network, settings),
                _choices(settings.epilogue_lanes, _divisors(block)),
                _choices(settings.ports, _divisors(word_bits // 128)),
            ):
                if token_parallel > block or block % lanes or word_bits % (128 * ports) or ports > board.hp_ports:
                    continue
                parallel = token_parallel, block, lanes, ports
                shape = Shape(network.precision, *parallel, 0, 0, 0, 0, 0, 0, 0, 0, fifo_beats=0, experts=experts)
                shape = replace(shape, norm_depth=norm_depth)
                shape = replace(shape, lut_columns=_lut_columns(shape, board, settings))
                if _has_dsps(shape, board):
                    yield shape


def _experts(network: IntegerNetwork, settings: Settings) -> tuple[Experts, ...]:
    """Both ways to read experts, where there is a choice of them."""
    if settings.experts is not None:
        return (settings.experts,)
    choice = any(isinstance(op, IntegerExperts) and len(op.first_weight) > 1 for op in network.operations)
    return _EXPERTS if choice else ("streamed",)


def _has_dsps(shape: Shape, board: Board) -> bool:
    return shape.lut_columns <= shape.block and sum(dsp_by_process(shape).values()) <= DSP_LIMIT * board.dsp


def _lut_columns(shape: Shape, board: Board, settings: Settings) -> int:
    """The fewest columns of the array in LUTs with which the DSPs suffice."""
    if settings.lut_columns is not None:
        return settings.lut_columns
    over = sum(dsp_by_process(shape).values()) - DSP_LIMIT * board.dsp
    return max(0, math.ceil(over / column_dsps(shape)))


def fitted(program: Program, candidate: Shape, board: Board, settings: Settings) -> Shape:
    parallel = candidate.token_parallel, candidate.block, candidate.epilogue_lanes, candidate.ports
    shape = fit_memories(
        program.requirements,
        board,
        candidate.precision,
        parallel,
        program.words,
        fifo_beats=settings.fifo_beats,
        activation_storage=settings.activation_storage,
        residual_storage=settings.residual_storage,
    )
    shape = replace(shape, lut_columns=_lut_columns(shape, board, settings), experts=candidate.experts)
    if not _has_dsps(shape, board):  # of a candidate they were without what depends on the network
        raise DoesNotFit(_too_many_dsps(shape, board))
    return shape


def _first(pair: tuple[float, MoehlsError]) -> float:
    return pair[0]


def _ideal_cycles(program: Program, shape: Shape, load: ExpertLoad) -> float:
    """Every real multiply-accumulate of the frame on a full array: no shape can do better."""
    return frame_macs(program, load) / shape.macs_a_cycle


def _activation_bits(program: Program, shape: Shape) -> float:
    """Size of an activation memory: what fails with the smallest one is what the user should hear of."""
    bits = shape.block * shape.precision.activation_bits + 8
    return float(program.requirements.activation_depth * shape.token_parallel * bits)


def _too_many_luts(shape: Shape, luts: int, board: Board) -> str:
    return (
        f"{shape.token_parallel} tokens and blocks of {shape.block} channels in parallel take about {luts} LUTs, "
        f"{board.name} has {LUT_LIMIT * board.lut:.0f} (of {board.lut}, less a reserve); set a smaller token_parallel, "
        "block or epilogue_lanes, or choose a larger board"
    )


def _too_many_dsps(shape: Shape, board: Board) -> str:
    return (
        f"{shape.token_parallel} tokens and blocks of {shape.block} channels in parallel take more DSPs than {DSP_LIMIT:.0%} "
        f"of the {board.dsp} of {board.name}; set a smaller token_parallel, block or epilogue_lanes"
    )


def _choices(fixed: int | None, choices: Iterable[int]) -> Iterable[int]:
    return choices if fixed is None else (fixed,)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _no_candidate(network: IntegerNetwork, board: Board, settings: Settings) -> str:
    fixed = {name: value for name, value in vars(settings).items() if value is not None}
    return (
        f"no accelerator for {board.name} has {fixed or 'any shape'}: block is a multiple of 8 whose words of weights "
        f"(block² · {network.precision.weight_bits} bits) have at most {WORD_BITS_LIMIT} bits, token_parallel at most "
        f"block, epilogue_lanes divides block, lut_columns is at most block, ports (at most {board.hp_ports}) divide "
        "the word in 128-bit parts, and "
        f"the DSPs are at most {DSP_LIMIT:.0%} of {board.dsp}; leave some of the settings to the search"
    )
