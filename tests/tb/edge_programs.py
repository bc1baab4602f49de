"""Random programs of steps whose results lie just within a saturation, just beyond it, or where the last bit of a value shows.

In go a shape and a seed, out come steps for `tests.tb.step_programs.StepProgram`. A shift in levels looks at what it leaves
out level by level. A level alone decides where all levels below it shift and it does not: then a value of the largest size
that still fits after them, and one just below the power of two beyond, tell whether it looks at the right bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from moehls.integer.operations import IntArray
from moehls.plan.instruction import Binding, Flag, Instruction, Kind, Mode
from moehls.plan.payload import Parameters
from tests.csim.bench import Bench, BenchStep
from tests.tb.extreme_programs import Program, filled, hardened, some

_ROWS, _BLOCKS = 24, 3
"""of the operands and the residual that all steps work on"""
_BIAS = range(24, 31)
"""bits of biases beside which sums of products are small"""
_MULTIPLIER_BITS = 16
WITHIN, BEYOND, WRAPPED = "within", "beyond", "wrapped"
"""sides of a limit"""
_SHIFT_BITS = 6
_PLACED, _OUT, _RESULTS = 80, 90, 40
"""addresses of operands of chosen values, of words between two steps, and of contexts"""


@dataclass(frozen=True)
class Edge:
    """Parameters with which one level of a shift alone tells a value within the limits from one beyond.

    Attributes:
        level: it stays, and all levels below it shift.
        side: of the limits; `WRAPPED` is beyond by a power of two, so that the bits which are kept look like a small value.
        sign: of the results.
        choices: bias and multiplier as powers of two, and the shift.
    """

    level: int
    side: str
    sign: int
    choices: tuple[tuple[int, int, int], ...]


@cache
def edges(width: int, multiplier_bits: int) -> tuple[Edge, ...]:
    """All of a shift to `width` bits."""
    found = []
    for level, side in product(range(_SHIFT_BITS), (WITHIN, BEYOND, WRAPPED)):
        shifts = range((1 << level) - 1, 1 << _SHIFT_BITS, 2 << level)
        result = {WITHIN: width - 2, BEYOND: width - 1 + (1 << level), WRAPPED: width}[side]
        choices = tuple(
            (bias, shift + result - bias, shift)
            for bias in _BIAS
            for shift in shifts
            if 0 <= shift + result - bias < multiplier_bits
        )
        if choices and (level > 0 or side != WRAPPED):  # a single bit too many is the sign of what is kept
            found += [Edge(level, side, sign, choices) for sign in (1, -1)]
    return tuple(found)


def edged(bench: Bench, step: BenchStep, width: int, turn: int, multiplier_bits: int = _MULTIPLIER_BITS) -> BenchStep:
    """`step` with parameters whose results are about the limits of `width` bits, seen by one level of the shift alone.

    The channels of each lane of the epilogue take every level, side and sign in turn, on from step to step (`turn`).
    """
    payload: Any = step.payload
    parameters: Parameters = payload if isinstance(payload, Parameters) else payload.parameters
    assert parameters.multiplier is not None and parameters.shift is not None
    size, lanes, kinds = parameters.bias.size, bench.shape.epilogue_lanes, edges(width, multiplier_bits)
    for channel in range(size):
        own = turn * (size // lanes) + channel // lanes + 5 * (channel % lanes)
        edge = kinds[own % len(kinds)]
        bias, multiplier, shift = edge.choices[some(bench, 0, len(edge.choices) - 1)]
        if edge.side == WITHIN:  # anywhere between the last two powers of two
            beside = some(bench, 0, (1 << bias) - 1)
        elif edge.side == BEYOND:  # about the power of two
            beside = some(bench, -(1 << 16), 1 << 14)
        else:  # what is left is of any size
            beside = (1 << some(bench, 0, width - 2)) << shift >> multiplier
        parameters.bias[channel] = edge.sign * min((1 << bias) + beside, (1 << _BIAS[-1]) - 1)
        parameters.multiplier[channel], parameters.shift[channel] = 1 << multiplier, shift
    return step


def fine(bench: Bench, step: BenchStep) -> BenchStep:
    """`step` of a context with parameters that show its low bits: one more in a probability changes little but their sum."""
    payload: Any = step.payload
    size = payload.bias.size
    payload.bias[:] = bench.rng.integers(-(1 << 13), 1 << 13, size)
    payload.multiplier[:] = bench.rng.integers(1 << 15, 1 << 16, size)
    payload.shift[:] = bench.rng.integers(16, 21, size)
    return step


def _prepared(bench: Bench) -> Iterator[BenchStep]:
    """Operands and a residual."""
    yield from filled(bench, _ROWS, _BLOCKS)


def _linear(mode: int, groups: int, **fields: Any) -> Instruction:
    """A product of the operands."""
    linear = Instruction(Kind.LINEAR, mode, Binding.PROJECT, n0=_BLOCKS, n1=groups, n2=1, rows=_ROWS)
    return replace(linear, **{"x_s1": _BLOCKS, "x_s2": 1, "y_s0": 1, "y_s1": _BLOCKS} | fields)


def saturations(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Results of every mode about their limits: of products, of attention, of norms, of experts before their gates."""
    shape, turn = bench.shape, number // _KINDS
    wide = shape.precision.requantised_bits
    groups = -(-_ROWS // shape.token_parallel)
    yield from _prepared(bench)
    for n, mode in enumerate((Mode.REQUANTISE, Mode.GELU, *([Mode.GATED] if shape.gated else []))):
        own = _linear(mode, groups, y_base=n * groups * _BLOCKS, shift=some(bench, 14, 26), w_s0=1, w_s1=_BLOCKS)
        width = shape.precision.activation_bits if mode == Mode.REQUANTISE else shape.precision.gelu_bits
        yield edged(bench, bench.linear(own), width, turn)
    for n in range(6):
        yield from _context(bench, n, (shape.precision.activation_bits + 1, 6 * turn + n))
    norm = Instruction(Kind.NORM, flags=Flag.PLANES, n2=_BLOCKS, channels=_BLOCKS * shape.block, rows=4, y_base=_OUT)
    step = bench.norm(norm)
    yield edged(bench, step, shape.precision.fine_bits, turn, 1)
    for n in range(2):
        yield edged(
            bench, bench.linear(_linear(Mode.RESIDUAL, groups)), shape.precision.residual_bits + 1, 2 * turn + n
        )
    count = shape.max_experts
    logits = -(-count // shape.block)
    yield hardened(bench, bench.linear(_linear(Mode.RAW, groups, n0=logits, y_s1=logits)), 16)
    # about the same gate for every expert, on residuals that do not saturate from them
    yield BenchStep(Instruction(Kind.ROUTE, n0=count, n1=count, n2=logits, rows=_ROWS, multiplier=1 << 15, shift=40))
    residual = bench.load(Instruction(Kind.LOAD, n2=_BLOCKS, rows=_ROWS))
    values: Any = residual.payload
    values.values[:] >>= 4
    yield residual
    for expert in range(count):
        yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=1, y_base=_OUT))
        scatter = _linear(Mode.SCATTER, groups, expert=expert, x_base=_OUT, x_s1=1, binding=Binding.SCORES)
        step = bench.linear(replace(scatter, y_s0=0, y_s1=0))
        yield edged(bench, step, wide, count * turn + expert)


def activations(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """GELUs of small values, scaled so that the last bit of what the table gives shows in the operand."""
    groups = -(-_ROWS // bench.shape.token_parallel)
    yield from _prepared(bench)
    for n in range(7):
        scale = some(bench, 0, 3)
        tail = n % 2 == 0  # up to the table's end and beyond; offsets that leave a bit less of nothing to be seen
        offset = some(bench, 1, 255) if tail else some(bench, 0, 3 << 10)
        gelu = _linear(Mode.GELU, groups, y_base=n * groups * _BLOCKS, shift=scale, offset=offset)
        step = bench.linear(gelu)
        payload: Any = step.payload
        parameters: Parameters = payload.parameters
        size = parameters.bias.size
        parameters.bias[:] = bench.rng.integers(-(1 << 14), 1 << 14, size)
        parameters.multiplier[:] = bench.rng.integers(1 << 14, 1 << 16, size)  # type: ignore[index]
        parameters.shift[:] = 17 if tail else bench.rng.integers(17, 22, size)  # type: ignore[index]
        parameters.second[:] = bench.rng.integers(1, 2 << scale, size)  # type: ignore[index]
        yield step


def probabilities(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Words of any probabilities in every channel, halved as often as the few scores behind them say."""
    yield from _prepared(bench)
    for n in range(18):
        yield from _context(bench, n, None)


def _context(bench: Bench, number: int, edge: tuple[int, int] | None) -> Iterator[BenchStep]:
    """The context of some groups of any words and of two of scores, which are read first; the results of each number stay.

    The maximum of query r rises by any of 0 … 9 octaves, or by many, between the two groups of scores: all queries have
    another number in another channel, and the keys of a group the exponents, or some less.
    """
    lanes, scored = bench.shape.token_parallel, 2
    groups, rows = _ROWS // lanes, 2 * lanes
    queries = np.zeros((rows, bench.shape.block), np.int64)
    queries[np.arange(rows), np.arange(rows) % bench.shape.block] = 1
    highest = bench.rng.permutation(np.arange(bench.shape.block)) + some(bench, 0, 2)
    highest[some(bench, 0, bench.shape.block - 1)] = some(bench, 0, 60)
    keys = np.concatenate([np.zeros_like(highest[None]), highest[None]]).repeat(lanes, 0)
    keys -= bench.rng.integers(0, 8, keys.shape) * (np.arange(len(keys)) % lanes != some(bench, 0, lanes - 1))[:, None]
    yield from placed(bench, queries, Binding.QUERY_VALUE)
    yield from placed(bench, keys, Binding.KEY)
    yield bench.input(Instruction(Kind.INPUT, n2=groups, rows=rows, y_base=_OUT))
    yield BenchStep(
        Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=2, n1=scored, n2=1, rows=scored * lanes,
            x_base=_PLACED, x_s0=1, x_s2=1, w_base=_PLACED, w_s1=1, w_s2=1, y_base=_OUT + groups - scored, y_s0=groups,
            y_s1=1, multiplier=(1 << 15) + some(bench, 0, 1 << 12), shift=15 - bench.shape.precision.score_fraction,
        )
    )  # fmt: skip
    yield _weighed(bench, groups, number, edge)


def _weighed(bench: Bench, groups: int, number: int, edge: tuple[int, int] | None) -> BenchStep:
    """The context of probabilities at `_OUT`, of two groups of queries."""
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED, n0=2, n1=_BLOCKS,
        n2=groups, rows=groups * bench.shape.token_parallel, x_base=_OUT + groups - 1, x_s0=groups, x_s2=-1,
        w_base=(groups - 1) * _BLOCKS, w_s1=1, w_s2=-_BLOCKS, y_base=_RESULTS + 2 * _BLOCKS * (number % 6), y_s0=_BLOCKS,
        y_s1=1,
    )  # fmt: skip
    step = bench.context(context)
    return fine(bench, step) if edge is None else edged(bench, step, *edge)


def placed(bench: Bench, values: IntArray, binding: Binding) -> Iterator[BenchStep]:
    """Operands `[rows, B]` to the memory that `binding` writes, at `_PLACED`, exactly."""
    rows, block = values.shape
    operand = block * bench.shape.precision.activation_bits // 8
    read = bench.input(Instruction(Kind.INPUT, n2=1, rows=rows, y_base=_PLACED))
    bench.pixels[-1][:, :operand] = values.astype(f"<i{operand // block}").view(np.uint8).reshape(rows, operand)
    yield read
    groups = -(-rows // bench.shape.token_parallel)
    copy = Instruction(
        Kind.LINEAR, Mode.REQUANTISE, n0=1, n1=groups, n2=1, rows=rows, x_base=_PLACED, x_s1=1, y_base=_PLACED, y_s1=1
    )
    for own in (Binding.CONTEXT, binding):
        step = bench.linear(replace(copy, binding=own))
        payload: Any = step.payload
        payload.weight[:] = 64 * np.eye(block, dtype=np.int64)
        payload.parameters.bias[:], payload.parameters.multiplier[:], payload.parameters.shift[:] = 0, 1 << 15, 21
        yield step


def rises(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Attention whose running maximum rises by little and by much, often and seldom, up to saturated scores of both signs."""
    yield from _prepared(bench)
    lanes, block = bench.shape.token_parallel, bench.shape.block
    groups = _ROWS // lanes
    for n in range(8):
        queries, keys = np.zeros((2 * lanes, block), np.int64), np.zeros((_ROWS, block), np.int64)
        queries[:, 0] = bench.rng.choice([-127, -9, -1, 0, 1, 2, 5, 17, 60, 127], 2 * lanes)
        queries[:, 1] = bench.rng.integers(-1, 2, 2 * lanes)
        walk = np.cumsum(bench.rng.choice([-12, 0, 0, 1, 1, 2, 4, 9, 15, 20], groups)) - some(bench, 0, 90)
        shift = some(bench, 5, 15)
        if n % 4 == 3:  # from the least score to the largest
            walk, shift = np.sort(bench.rng.choice([-127, 127], groups)), 5
            walk[[0, -1]] = -127, 127
            queries[:, 0] = 127
        keys[:, 0] = (walk.repeat(lanes) - bench.rng.integers(0, 6, _ROWS)).clip(-128, 127)
        keys[:, 1] = bench.rng.integers(-128, 128, _ROWS)
        yield from placed(bench, queries, Binding.QUERY_VALUE)
        yield from placed(bench, keys, Binding.KEY)
        scores = Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=2, n1=groups, n2=1,
            rows=_ROWS - some(bench, 0, lanes - 1), x_base=_PLACED, x_s0=1, x_s2=1, w_base=_PLACED, w_s1=1, w_s2=1,
            y_base=_OUT, y_s0=groups, y_s1=1, multiplier=some(bench, 1 << 15, 65535), shift=shift,
        )  # fmt: skip
        yield BenchStep(scores)
        yield _weighed(bench, groups, n, None)


def logits(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Routers of logits that lie close together, about the saturation of base-2 logits, and about the least of all, and the
    operands of what they choose."""
    shape = bench.shape
    groups, most = _ROWS // shape.token_parallel, shape.max_experts
    blocks = -(-most // shape.block)
    yield from _prepared(bench)
    for n in range(12):
        step = bench.linear(_linear(Mode.RAW, groups, n0=blocks, y_s1=blocks))
        payload: Any = step.payload
        bits, size = some(bench, 22, 30), payload.parameters.bias.size
        apart = bench.rng.integers(-1 << 14, 1 << 14, size) << some(bench, 0, max(0, bits - 18))
        sign = n % 2 * 2 - 1
        signs = bench.rng.choice([-1, 1, sign], size) if n % 3 else np.full(size, sign)
        bias = ((1 << bits) + some(bench, 0, (1 << bits) - 1) // 2 + apart) * signs
        shift = bits + 15 - shape.precision.logit_bits + some(bench, 0, 3)
        if n % 4 == 3:  # as little as a logit can be: nothing stands in for an expert that there is not
            payload.weight[:], bias, shift = (
                payload.weight.clip(-1, 1),
                1 - (1 << 31) + (12 << 10) + abs(apart % 1024),
                14,
            )
        payload.parameters.bias[:] = bias
        yield step
        count = size - some(bench, 0, size - 1) if n % 4 == 3 else most
        route = Instruction(Kind.ROUTE, n0=min(count, most), n1=some(bench, 1, min(count, most)), n2=blocks, rows=_ROWS)
        flags = int(bench.rng.choice([0, Flag.CHOSEN]))
        yield BenchStep(replace(route, flags=flags, multiplier=some(bench, 1 << 14, 65535), shift=shift))
        for expert in range(route.n0):  # from any lane to any other
            yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=1, y_base=_OUT))


def limits(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Results without products, in every lane and channel about a limit to half a unit, activations to an eighth."""
    shape = bench.shape
    widths = {
        Mode.REQUANTISE: shape.precision.activation_bits,
        Mode.GELU: shape.precision.gelu_bits,
        Mode.RESIDUAL: shape.precision.residual_bits + 1,
    }
    yield from _prepared(bench)
    place = 0
    for mode, width in widths.items():
        for sign in (1, -1):
            own = _linear(mode, 1, y_base=place * _BLOCKS, shift=shape.precision.gelu_bits - 1)
            step = bench.linear(replace(own, y_base=0) if mode == Mode.RESIDUAL else own)
            payload: Any = step.payload
            halves = (sign << width) + bench.rng.integers(-3, 4, payload.parameters.bias.size)
            _alone(payload, halves)
            yield step
            place += 1
    top = 1 << shape.precision.activation_bits + 3  # in eighths, the first operand beyond
    for beside in range(-5, 2):
        own = _linear(Mode.GELU, 1, y_base=place * _BLOCKS, shift=3, offset=top + beside)
        step = bench.linear(own)
        payload = step.payload
        _alone(payload, np.full(payload.parameters.bias.size, -(1 << 24)))  # GELU makes nothing of it
        payload.parameters.second[:] = 1
        yield step
        place += 1


def _alone(payload: Any, bias: IntArray) -> None:
    """Weights of zero, and parameters whose results are half of the biases."""
    payload.weight[:] = 0
    parameters: Parameters = payload.parameters
    parameters.bias[:], parameters.multiplier[:], parameters.shift[:] = bias, 1 << 15, 16  # type: ignore[index]


def edge_programs() -> list[Program]:
    """One seed each."""
    return [saturations, activations, probabilities, rises, logits] * 6 + [limits]


_KINDS = 5
"""kinds of programs in turn"""
