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
from moehls.plan.packing import channel_widths
from moehls.plan.program import build_program
from moehls.plan.resources import column_dsps, dsp_by_process, plan_resources
from moehls.plan.shape import Experts, Shape, Storage
from moehls.plan.steps import Program
from moehls.plan.uses import most_blocks

BLOCKS = (8, 16, 32)
WORD_BITS_LIMIT = 4096
"""the widest ap_uint of Vitis HLS"""
SPLITS = ((1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 4), (16, 4), (16, 16))
"""(token blocks, head groups) that are tried, the fewest first"""
_FULL = 0.9
"""share of the largest array that a board has room for, with which a search for fewer cycles by more parts ends"""
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
    token_blocks: int | None = None
    """blocks of tokens whose pixels, probabilities and fine values lie on the chip one after the other"""
    head_groups: int | None = None
    """groups of heads whose queries, keys and values do"""
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
    failures: list[tuple[float, MoehlsError]] = []
    best: _Found | None = None
    for trial in splits(settings):
        shapes = sorted(candidates(network, board, trial), key=lambda c: -c.macs_a_cycle)
        found = _fastest(network, shapes, board, clock_mhz, trial, load, failures)
        if found is not None and (best is None or found.score < best.score):
            best = found
        if best is not None and _whole_or_full(best.shape, shapes[0]):
            break
    if best is None:
        raise min(failures, key=_first)[1] if failures else MoehlsError(_no_candidate(network, board, settings))
    return best.shape, best.program


@dataclass(frozen=True)
class _Found:
    score: tuple[float, int, int, int]
    shape: Shape
    program: Program


def splits(settings: Settings) -> Iterator[Settings]:
    """`settings` with the parts of `SPLITS`, or with what the user fixed of them."""
    fixed = settings.token_blocks, settings.head_groups
    chosen = {tuple(mine or own for mine, own in zip(fixed, split, strict=True)): None for split in SPLITS}
    for token_blocks, head_groups in chosen:
        yield replace(settings, token_blocks=token_blocks, head_groups=head_groups)


def _whole_or_full(shape: Shape, largest: Shape) -> bool:
    """Whether more parts are not worth a try: nothing is in parts, or memory is no longer what bounds the array."""
    return shape.token_blocks == shape.head_groups == 1 or shape.macs_a_cycle >= _FULL * largest.macs_a_cycle


def _fastest(
    network: IntegerNetwork, shapes: Iterable[Shape], board: Board, clock_mhz: float, settings: Settings, load: ExpertLoad,
    failures: list[tuple[float, MoehlsError]],
) -> _Found | None:  # fmt: skip
    """The fastest of `shapes`, in the order of their arrays, that fits; why others do not goes to `failures`."""
    best: _Found | None = None
    program: Program | None = None
    built: tuple[object, ...] | None = None
    for candidate in shapes:
        if best is not None and _ideal_cycles(best.program, candidate, load) > best.score[0]:
            break
        if program is None or built != program_key(candidate):
            program, built = build_program(network, candidate), program_key(candidate)
        try:
            shape = fitted(program, candidate, board, settings)
        except DoesNotFit as error:
            failures.append((_activation_bits(program, candidate), DoesNotFit(f"{error}{_with_parts(candidate)}")))
            continue
        resources = plan_resources(shape)
        if resources.lut > LUT_LIMIT * board.lut:
            large = MoehlsError(_too_many_luts(shape, resources.lut, board))
            failures.append((_activation_bits(program, candidate), large))
            continue
        score = (frame_cycles(program, shape, board, clock_mhz, load), resources.dsp, resources.lut, shape.ports)
        if best is None or score < best.score:
            best = _Found(score, shape, program)
    return best


def program_key(shape: Shape) -> tuple[object, ...]:
    """What of a shape its program depends on."""
    return shape.token_parallel, shape.block, shape.experts, shape.token_blocks, shape.head_groups


def candidates(network: IntegerNetwork, board: Board, settings: Settings) -> Iterator[Shape]:
    """Every parallelism that the machine allows and whose DSPs the board has; memories without depth."""
    widths = channel_widths(network)
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
                shape = replace(shape, norm_depth=norm_depth, **widths)
                shape = replace(shape, token_blocks=settings.token_blocks or 1, head_groups=settings.head_groups or 1)
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
    shape = replace(shape, token_blocks=candidate.token_blocks, head_groups=candidate.head_groups)
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


def _with_parts(shape: Shape) -> str:
    parts = []
    if shape.token_blocks > 1:
        parts.append(f"pixels, probabilities and routers' inputs in {shape.token_blocks} blocks of tokens")
    if shape.head_groups > 1:
        parts.append(f"queries, keys and values in {shape.head_groups} groups of heads")
    return f". That is with {', and '.join(parts)}" if parts else ""


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
