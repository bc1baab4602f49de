"""Estimated cycles: every step's own time from its loop nests, then the frame against a stream that runs ahead.

In go a program, a shape, a board's DRAM and the tokens each expert gets; out come `StepCost`s. The formulas follow the
processes of the engine: each is one loop with an initiation interval of one, so a step takes as long as its longest
process, plus the latency to fill and drain them. The stream is a fluid: it fills the FIFO at the DRAM's rate while the
compute is slower, and a step waits for the words that are not there yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from moehls.boards import Board
from moehls.integer.operations import IntegerExperts, IntegerNetwork, IntegerRoute
from moehls.plan.instruction import ANY_TASK, NO_EXPERT, Flag, Instruction, Kind, Mode, Source
from moehls.plan.shape import Shape
from moehls.plan.steps import Program, Step

Bound = Literal["stream", "multiply", "epilogue", "write", "memory", "skipped"]
ExpertLoad = Mapping[str, Sequence[float]]
"""tokens each expert gets, by the name of the experts operation"""
_FILL_ENGINE, _FILL_NORM, _FILL_ROUTE, _FILL_OTHER, _DRAM_LATENCY = 60, 60, 40, 12, 120
"""cycles to start a step, fill its pipelines and drain them"""


@dataclass(frozen=True)
class StepCost:
    """One step of the frame, for task 0 and expected expert loads."""

    name: str
    kind: str
    operation: str
    cycles: int
    macs: int
    weight_bytes: int
    """header, parameters and weights"""
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


def uniform_load(network: IntegerNetwork) -> dict[str, list[float]]:
    """Every expert gets `tokens · k / experts`."""
    chosen = {op.output: op.k for op in network.operations if isinstance(op, IntegerRoute)}
    return {
        op.name: [network.tokens * chosen[op.routing] / len(op.first_weight)] * len(op.first_weight)
        for op in network.operations
        if isinstance(op, IntegerExperts)
    }


def estimate(program: Program, shape: Shape, board: Board, clock_mhz: float, load: ExpertLoad) -> tuple[StepCost, ...]:
    """The cost of every step, in the order of the program."""
    own = [step_cycles(step, shape, load) for step in program.steps]
    words = [1 + step.instruction.payload_words for step in program.steps]
    rate = bytes_a_cycle(shape, board, clock_mhz)
    times = against_stream([cycles for cycles, _ in own], words, shape, rate)
    costs, start = [], 0.0
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
    own = [step_cycles(step, shape, load)[0] for step in program.steps]
    words = [1 + step.instruction.payload_words for step in program.steps]
    return sum(against_stream(own, words, shape, bytes_a_cycle(shape, board, clock_mhz)))


def frame_macs(program: Program, load: ExpertLoad) -> float:
    """Real multiply-accumulates of a frame: of task 0 and the expected experts."""
    return sum(_macs(step, load) for step in program.steps)


def against_stream(own: list[float], words: list[int], shape: Shape, rate: float) -> list[float]:
    """Cycles of each step when its words come at `rate` bytes a cycle through a FIFO of the shape's depth."""
    interval = shape.word_bits / 8 / rate
    capacity = shape.fifo_beats * shape.ports * 128 / shape.word_bits
    level, times = -_DRAM_LATENCY / interval, []
    for cycles, count in zip(own, words, strict=True):
        time = max(cycles, (count - level) * interval)
        level = min(capacity, level + time / interval - count)
        times.append(time)
    return times


def step_cycles(step: Step, shape: Shape, load: ExpertLoad) -> tuple[float, Bound]:
    """Cycles of a step whose words are all there, and the process that bounds it."""
    i = step.instruction
    if _skipped(i):
        return 2.0 + i.payload_words, "skipped"
    if i.kind == Kind.LINEAR:
        if i.flags & Flag.W_MEMORY:
            return _attention(i, shape)
        return _linear(i, shape, _occupancy(step, shape, load))
    return _other(i, shape, _occupancy(step, shape, load)), "memory"


def _linear(i: Instruction, shape: Shape, queue: Occupancy) -> tuple[float, Bound]:
    """Stream order: every payload word and every repetition of a kept one takes a cycle of `weights`."""
    tiles = i.n0 * queue.groups
    serial = shape.token_parallel if i.mode in (Mode.RAW, Mode.SCATTER) else 0
    times: dict[Bound, float] = {
        "multiply": i.payload_words * queue.busy + i.n0 * i.n2 * (queue.groups - queue.busy),
        "epilogue": tiles * shape.slices,
        "write": tiles * (shape.slices + serial),
    }
    bound = max(times, key=lambda name: times[name])
    fill = _FILL_ENGINE + i.n2 + 2 * shape.slices
    return times[bound] + queue.busy * fill + (1 - queue.busy) * (2 + i.payload_words), bound


def _attention(i: Instruction, shape: Shape) -> tuple[float, Bound]:
    tiles = i.n0 * i.n1
    blocks = i.payload_words * shape.blocks_per_parameter_word
    reciprocals = i.n0 * shape.token_parallel if i.mode == Mode.CONTEXT else 0
    times: dict[Bound, float] = {
        "multiply": tiles * i.n2,
        "epilogue": max(tiles * shape.slices, reciprocals),
    }
    bound = max(times, key=lambda name: times[name])
    wait = 2 * shape.slices if i.mode == Mode.SOFTMAX else shape.token_parallel
    return times[bound] + blocks + _FILL_ENGINE + i.n2 + 2 * shape.slices + wait, bound


def _other(i: Instruction, shape: Shape, queue: Occupancy) -> float:
    p, blocks = shape.precision, i.rows * i.n2
    planes = p.fine_bits // p.activation_bits
    match i.kind:
        case Kind.INPUT:
            return blocks * max(1, shape.block * p.activation_bits // 128) + _FILL_OTHER
        case Kind.LOAD:
            return blocks + _FILL_OTHER
        case Kind.NORM:
            each = planes if i.flags & Flag.PLANES else 1
            return blocks * each + 2 * i.n2 + _FILL_NORM
        case Kind.ROUTE:
            return i.rows * (i.n2 + i.n0) + 2 * i.n0 + _FILL_ROUTE
        case Kind.GATHER:
            return queue.tokens * i.n2 + queue.busy * _FILL_OTHER + (1 - queue.busy) * 2
        case Kind.STORE:
            lane = (64 if p.accumulator_bits > 32 else 32) if i.mode == Source.RAW else 16
            fetch = planes if i.mode == Source.FINE else 1
            return blocks * max(fetch, shape.block * lane // 128) + _FILL_OTHER
        case _:
            return 2.0


def _macs(step: Step, load: ExpertLoad) -> float:
    i = step.instruction
    tokens = 1.0 if i.expert == NO_EXPERT else load[step.operation][i.expert]
    return 0.0 if _skipped(i) else step.macs * tokens


def _skipped(i: Instruction) -> bool:
    return i.task not in (ANY_TASK, 0)


def _occupancy(step: Step, shape: Shape, load: ExpertLoad) -> Occupancy:
    i = step.instruction
    if i.expert == NO_EXPERT:
        return Occupancy(1.0, i.rows, i.n1)
    return occupancy(load[step.operation][i.expert], i.rows, shape.token_parallel)


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
