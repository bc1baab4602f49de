"""Estimated cycles: every step's own time from its loop nests, then the frame against a stream that runs ahead.

In go a program, a shape, a board's DRAM and the tokens each expert gets; out come `StepCost`s. The formulas follow the
processes: each is one loop with an initiation interval of one that starts when its first input is there, so a step takes
as long as its slowest process from that moment on, plus the stages before and after it. The stream is a fluid: it fills the
FIFO at the DRAM's rate while the compute is slower, and a step waits for the words that are not there yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from moehls.boards import Board
from moehls.integer.operations import IntegerExperts, IntegerNetwork, IntegerNorm, IntegerRoute
from moehls.plan.instruction import ANY_TASK, HEADER_BITS, NO_EXPERT, Flag, Gating, Instruction, Kind, Mode, Source
from moehls.plan.shape import Shape
from moehls.plan.steps import Program, Step

Bound = Literal["stream", "multiply", "epilogue", "write", "memory", "skipped"]
ExpertLoad = Mapping[str, Sequence[float]]
"""tokens each expert gets, by the name of the experts operation"""
_DRAM_LATENCY = 150
_DISPATCH = 6
"""cycles from one header to the first stage of its step: two stages of `compute`, start, done; one more where a word has some"""
_ENGINE = 24
"""of the engine: stages from input to output of feed, rescale, activate and write, and the FIFOs between (measured)"""
_SCORES, _CONTEXT, _RECIPROCALS, _BY_TOKEN = 3, -2, 2, 2
"""what scores, context, context bound by its reciprocals, and rows that are written token by token take beside that (measured)"""
_SHORT, _HASTE = 3, 0.3
"""tiles of fewer cycles than this take so much longer: they meet in the FIFOs of the engine (measured)"""
_RECIPROCAL = 8
_NORM = 7 + 19 + 9  # moments, root, normalise
_POOL = 10
_ROUTE = 4 + 7 + 13  # rank, exponentials, enqueue, the counts
_SCORE = 16
"""of the process before it that ranks by sigmoids"""
_LOAD, _STORE, _DRAIN = 3, 7, 1
_GATHER = 5 + 5  # form_passes, copy_tokens
_WEIGH = 4
"""stages of the products with gates"""
_SECTION = _DRAM_LATENCY + 32
_RESTART = 3
"""a process whose second loop starts when its first has drained"""
_REUSE = 4
"""cycles between writing and reading a kept weight"""
_START = _DRAM_LATENCY + 13
"""cycles until the first header is there"""


@dataclass(frozen=True)
class StepCost:
    """One step of the frame, for task 0 and expected expert loads."""

    name: str
    kind: str
    operation: str
    cycles: int
    macs: int
    weight_bytes: int
    """parameters and weights, and the word of headers that begins with its own"""
    utilisation: float
    """real multiply-accumulates of those the array could do"""
    start: int
    bound: Bound


@dataclass(frozen=True)
class Occupancy:
    """What an expert's queue does to a step: chance that it is not empty, expected tokens and token groups."""

    busy: float
    tokens: float
    groups: float


def bytes_a_cycle(shape: Shape, board: Board, clock_mhz: float) -> float:
    """Rate of the stream: the ports or the DRAM, whichever is slower."""
    dram = board.gigabytes_per_second * 1e3 * board.efficiency / clock_mhz
    return min(shape.ports * board.port_bits / 8, dram)


def pixel_beats_a_cycle(shape: Shape, board: Board, clock_mhz: float) -> float:
    """Rate of the input while the stream fills its FIFO: its port is one of `ports + 1` that share the DRAM."""
    dram = board.gigabytes_per_second * 1e3 * board.efficiency / clock_mhz
    return min(1.0, dram / (board.port_bits / 8) / (shape.ports + 1))


def uniform_load(network: IntegerNetwork) -> dict[str, list[float]]:
    """Every expert gets `rows · k / columns of its router`, or its capacity; rows are tokens, or slots of a soft mixture."""
    rows = {op.fine: op.stop - op.start for op in network.operations if isinstance(op, IntegerNorm)}
    routes = {op.output: op for op in network.operations if isinstance(op, IntegerRoute)}

    def tokens(route: IntegerRoute) -> float:
        even = float(rows[route.input] * route.k / route.weight.shape[1])
        return min(even, float(route.capacity)) if route.capacity else even

    return {
        op.name: [tokens(routes[op.routing])] * len(op.first_weight)
        for op in network.operations
        if isinstance(op, IntegerExperts)
    }


def estimate(
    program: Program, shape: Shape, board: Board, clock_mhz: float, load: ExpertLoad, *, counted: bool = False
) -> tuple[StepCost, ...]:
    """The cost of every step, in the order of the program.

    Args:
        program: the steps.
        shape: the accelerator.
        board: whose DRAM.
        clock_mhz: of the kernel.
        load: tokens each expert gets.
        counted: `load` is what one frame had, not what is expected of many.
    """
    rate = bytes_a_cycle(shape, board, clock_mhz)
    pixels = pixel_beats_a_cycle(shape, board, clock_mhz)
    own = [step_cycles(step, shape, load, pixels, counted=counted) for step in program.steps]
    words = program.step_words
    expected = _expected_words(program, shape, load, counted)
    times = against_stream([cycles for cycles, _ in own], expected, shape, rate, _section_ends(program))
    costs, start = [], float(_START)
    for step, (cycles, bound), count, time in zip(program.steps, own, words, times, strict=True):
        i = step.instruction
        macs = round(_macs(step, load))
        begin, end = round(start), round(start + time)
        used = macs / (shape.macs_a_cycle * max(end - begin, 1))
        limit: Bound = "stream" if time > cycles * 1.001 + 1 else bound
        size = count * shape.word_bits // 8
        kind = Mode(i.mode).name if i.kind == Kind.LINEAR else i.kind.name
        costs.append(StepCost(step.name, kind, step.operation, end - begin, macs, size, used, begin, limit))
        start += time
    return tuple(costs)


def frame_cycles(program: Program, shape: Shape, board: Board, clock_mhz: float, load: ExpertLoad) -> float:
    """The whole frame, without the list of steps."""
    pixels = pixel_beats_a_cycle(shape, board, clock_mhz)
    own = [step_cycles(step, shape, load, pixels)[0] for step in program.steps]
    words = _expected_words(program, shape, load, counted=False)
    rate = bytes_a_cycle(shape, board, clock_mhz)
    return _START + sum(against_stream(own, words, shape, rate, _section_ends(program)))


def frame_macs(program: Program, load: ExpertLoad) -> float:
    """Real multiply-accumulates of a frame: of task 0 and the expected experts."""
    return sum(_macs(step, load) for step in program.steps)


def against_stream(
    own: Sequence[float], words: Sequence[float], shape: Shape, rate: float, ends: Sequence[int] = ()
) -> list[float]:
    """Cycles of each step when its words come at `rate` bytes a cycle through a FIFO of the shape's depth.

    `ends` are the steps that end a section: the stream runs ahead to the end of its section at most. Without them all is one.
    """
    interval = shape.word_bits / 8 / rate
    times, first = [], 0
    for end in ends or (len(own) - 1,):
        level, left = 1.0, sum(words[first : end + 1])  # the first header is there
        for cycles, count in zip(own[first : end + 1], words[first : end + 1], strict=True):
            time = max(cycles, (count - level) * interval)
            left -= count
            level = min(shape.fifo_words, level + time / interval - count, left)
            times.append(time)
        first = end + 1
    return times


def _section_ends(program: Program) -> list[int]:
    kinds = [step.instruction.kind for step in program.steps]
    return [n for n, kind in enumerate(kinds) if kind == Kind.SECTION or n + 1 == len(kinds)]


def _expected_words(program: Program, shape: Shape, load: ExpertLoad, counted: bool) -> Sequence[float]:
    """Words of the stream that are read for each step: of experts that are prefetched only where they have tokens."""
    if shape.experts == "streamed":
        return program.step_words
    found = []
    for step, headers in zip(program.steps, program.own_header_words, strict=True):
        found.append(headers + _occupancy(step, shape, load, counted).busy * step.instruction.payload_words)
    return found


def step_cycles(
    step: Step, shape: Shape, load: ExpertLoad, pixel_beats: float = 1.0, *, counted: bool = False
) -> tuple[float, Bound]:
    """Cycles of a step whose words are all there, and the process that bounds it.

    Args:
        step: the step.
        shape: the accelerator.
        load: tokens each expert gets.
        pixel_beats: beats of the input a cycle.
        counted: as in `estimate`.
    """
    i = step.instruction
    queue = _occupancy(step, shape, load, counted)
    if _skipped(i):
        return _dispatch(shape) + _DRAIN + i.payload_words, "skipped"
    if i.kind == Kind.LINEAR:
        if i.flags & Flag.W_MEMORY:
            return _attention(i, shape)
        return _linear(i, shape, queue)
    return _other(i, shape, queue, pixel_beats), "memory"


def _dispatch(shape: Shape) -> int:
    """Cycles from one header to the first stage of its step."""
    return _DISPATCH + (shape.word_bits > HEADER_BITS)


def _chain(shape: Shape) -> int:
    """Cycles of a step with one tile of one word besides its iterations: the header, and every process behind another."""
    return _dispatch(shape) + _multiply(shape) + _ENGINE - (shape.slices == 1)  # whole tiles are not taken apart


def _multiply(shape: Shape) -> int:
    """Stages of the array: of a cascade of DSPs over the inputs, whose chains of four are added pair by pair."""
    return 5 + shape.block.bit_length()


def _linear(i: Instruction, shape: Shape, queue: Occupancy) -> tuple[float, Bound]:
    """Stream order: every payload word and every repetition of a kept one takes a cycle of `weights`.

    The epilogue starts behind the first tile's words, and ends a tile behind `weights` if it is not the bound.
    """
    serial = shape.token_parallel if i.mode in (Mode.RAW, Mode.SCATTER) else 0
    several = max(0.0, min(1.0, queue.groups - queue.busy))  # that there is more than one group
    each = min(i.n2, i.split)  # words of a block: the low plane of a 16-bit operand takes them once more
    reuse = i.n0 * max(0, _REUSE - each) * (several if each == i.n2 else queue.busy)
    tile = shape.slices + serial
    drained = i.payload_words if shape.experts == "streamed" else 0
    times: dict[Bound, float] = {
        "multiply": queue.busy * (i.payload_words + tile) + i.n0 * (i.n2 * queue.groups - each * queue.busy) + reuse,
        "write" if serial else "epilogue": queue.busy * (1 + i.n2) + i.n0 * queue.groups * tile,
    }
    bound = max(times, key=lambda name: times[name])
    chain = _chain(shape) + _BY_TOKEN * (serial > 0)
    if max(i.n2, tile) < _SHORT:
        times[bound] += _HASTE * i.n0 * queue.groups
    return times[bound] + queue.busy * chain + (1 - queue.busy) * (_dispatch(shape) + _DRAIN + drained), bound


def _attention(i: Instruction, shape: Shape) -> tuple[float, Bound]:
    """Memory order. A tile of scores waits for its maximum, a row of context tiles for the reciprocals of its sums."""
    tiles, slices = i.n0 * i.n1, shape.slices
    parameters = bool(i.flags & Flag.PARAMETERS)
    blocks = i.n1 if parameters and i.mode == Mode.CONTEXT else 0
    each = max(i.n2, shape.bias_words) if parameters and i.mode == Mode.SOFTMAX else i.n2
    times: dict[Bound, float] = {"multiply": blocks + _RESTART + tiles * each + slices}
    if i.mode == Mode.CONTEXT:
        first = i.n2 + shape.token_parallel + _RECIPROCAL - _multiply(shape) + _RECIPROCALS
        times["epilogue"] = first + max(tiles * slices, (i.n0 - 1) * shape.token_parallel + i.n1 * slices)
        times["multiply"] += _CONTEXT
        wait = 0.0
    else:
        times["epilogue"] = _RESTART + i.n2 + tiles * slices
        wait = slices - 1 + _SCORES + (_HASTE * tiles if max(i.n2, slices) < _SHORT else 0)
    bound = max(times, key=lambda name: times[name])
    return times[bound] + _chain(shape) + wait, bound


def _other(i: Instruction, shape: Shape, queue: Occupancy, pixel_beats: float) -> float:
    p, blocks, first = shape.precision, i.rows * i.n2, _dispatch(shape)
    planes = p.fine_bits // p.activation_bits
    match i.kind:
        case Kind.INPUT:
            beats = max(1, shape.block * p.activation_bits // 128)
            come = (i.rows - i.n0) * i.n2 * beats / pixel_beats - (_START - _DRAM_LATENCY)  # from the first burst on
            return max(blocks * beats, come) + first + _LOAD
        case Kind.LOAD:
            return blocks + first + _LOAD
        case Kind.NORM:  # the first tokens' sums are complete before their first block leaves
            passes = -(-i.rows // shape.norm_tokens) * i.n2
            return passes * (planes if i.flags & Flag.PLANES else 1) + i.n2 + first + _NORM
        case Kind.POOL:  # the sums of a block, then its channels one by one
            return (i.n2 + i.n2 * (i.rows + shape.block) * (planes if i.mode == Source.FINE else 1)) + first + _POOL
        case Kind.ROUTE:  # logits arrive, and values wait for their sum, a token ahead; the counts come at the end
            parts = -(-i.n0 // shape.route_experts)
            ahead = i.n2 + _SCORE if shape.selections else 0  # the biases, and the sigmoids of the first token
            if i.mode & Gating.ROOM:  # first choices are counted, then both go to their queues
                return (i.rows + 1) * (parts + max(parts, i.n1)) + 2 * parts + i.n0 + first + _ROUTE + ahead
            if i.mode & Gating.BY_CHOICE:  # all tokens pass once a choice
                return i.n1 * (i.rows + 1) * parts + 2 * parts + i.n0 + first + _ROUTE + ahead
            return i.rows * max(parts, i.n1) + 2 * parts + i.n0 + first + _ROUTE + ahead
        case Kind.GATHER:
            each = tokens_a_pass(shape)
            copies = queue.tokens / each + queue.busy * (1 - 1 / each) / 2  # the last one may be short
            busiest = max(copies * i.n2 + queue.busy * each, queue.tokens + queue.busy * i.n2)
            return first + busiest + queue.busy * (_GATHER + _WEIGH * shape.weighed_inputs) + (1 - queue.busy) * _DRAIN
        case Kind.STORE:
            lane = (64 if p.accumulator_bits > 32 else 32) if i.mode == Source.RAW else 16
            fetch = planes if i.mode == Source.FINE else 1
            return blocks * max(fetch, shape.block * lane // 128) + first + _STORE
        case Kind.SECTION:  # the choice, its copy, and the first words of the next section
            return 2.0 * i.n0 + first + _SECTION
        case _:  # END: the last beats on their way to the DRAM
            return float(_DRAM_LATENCY)


def tokens_a_pass(shape: Shape) -> float:
    """Expected tokens that are gathered at a time: until the next one lies in the lane of one of them."""
    lanes = np.arange(shape.gather_tokens) / shape.token_parallel
    return float(np.cumprod(1 - lanes).sum())


def _macs(step: Step, load: ExpertLoad) -> float:
    i = step.instruction
    tokens = 1.0 if i.expert == NO_EXPERT else load[step.operation][i.expert]
    return 0.0 if _skipped(i) else step.macs * tokens


def _skipped(i: Instruction) -> bool:
    return i.task not in (ANY_TASK, 0)


def _occupancy(step: Step, shape: Shape, load: ExpertLoad, counted: bool) -> Occupancy:
    i = step.instruction
    if i.expert == NO_EXPERT:
        return Occupancy(1.0, i.rows, i.n1)
    tokens = load[step.operation][i.expert]
    if counted:
        return Occupancy(float(tokens > 0), tokens, math.ceil(tokens / shape.token_parallel))
    return occupancy(tokens, i.rows, shape.token_parallel)


@cache
def occupancy(tokens: float, rows: int, token_parallel: int) -> Occupancy:
    """Of a queue with `tokens` expected tokens, at most `rows`: Poisson, so that rounding up to groups is fair."""
    if tokens >= rows:
        return Occupancy(1.0, rows, math.ceil(rows / token_parallel))
    if tokens <= 0:
        return Occupancy(0.0, 0.0, 0.0)
    counts = np.arange(rows + 1)
    factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    chance = np.exp(counts * math.log(tokens) - tokens - factorial)
    chance /= chance.sum()
    groups = -(-counts // token_parallel)
    return Occupancy(float(1 - chance[0]), float(chance @ counts), float(chance @ groups))
