"""Random programs of steps whose results lie just within a saturation, just beyond it, or where the last bit of a value shows.

In go a shape and a seed, out come steps for `tests.tb.step_programs.StepProgram`. A shift in levels looks at what it leaves
out level by level. A level alone decides where all levels below it shift and it does not: then a value of the largest size
that still fits after them, and one just below the power of two beyond, tell whether it looks at the right bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from moehls.plan.instruction import Binding, Flag, Instruction, Kind, Mode
from moehls.plan.payload import Parameters
from tests.csim.bench import Bench, BenchStep
from tests.tb.extreme_programs import Program, filled, hardened, some

_ROWS, _BLOCKS = 24, 3
"""of the operands and the residual that all steps work on"""
_BIAS = range(24, 31)
"""bits of biases beside which sums of products are small"""
_MULTIPLIER_BITS = 16
_SHIFT_BITS = 6
_OUT = 90
"""where words are that nobody looks at in the end"""


def edged(bench: Bench, step: BenchStep, width: int) -> BenchStep:
    """`step` with parameters whose results are about the limits of `width` bits, seen by one level of the shift alone."""
    payload: Any = step.payload
    parameters: Parameters = payload if isinstance(payload, Parameters) else payload.parameters
    assert parameters.multiplier is not None and parameters.shift is not None
    for channel in range(parameters.bias.size):
        choices: list[tuple[int, int, int, bool]] = []
        while not choices:
            level, within = some(bench, 0, _SHIFT_BITS - 1), bool(some(bench, 0, 1))
            least = (1 << level) - 1  # the level stays, all below it shift
            shifts = range(least, 1 << _SHIFT_BITS, 2 << level)
            result = width - 2 if within else width - 1 + (1 << level)
            choices = [
                (bias, shift + result - bias, shift, within)
                for bias in _BIAS
                for shift in shifts
                if 0 <= shift + result - bias < _MULTIPLIER_BITS
            ]
        bias, multiplier, shift, within = choices[some(bench, 0, len(choices) - 1)]
        # within: anywhere between the last two powers of two; beyond: about the power of two
        beside = some(bench, 0, (1 << bias) - 1) if within else some(bench, -(1 << 16), 1 << 14)
        value = min((1 << bias) + beside, (1 << _BIAS[-1]) - 1)
        parameters.bias[channel] = value if some(bench, 0, 1) else -value
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
    """Operands and a residual; queries, keys and values that differ from row to row, so that scores rise."""
    yield from filled(bench, _ROWS, _BLOCKS)
    for binding in (Binding.CONTEXT, Binding.QUERY_VALUE, Binding.KEY):
        linear = _linear(Mode.REQUANTISE, _ROWS // bench.shape.token_parallel, binding=binding, n2=_BLOCKS)
        step = bench.linear(linear, (20, 25))
        payload: Any = step.payload
        payload.parameters.bias[:] >>= 6
        yield step


def _linear(mode: int, groups: int, **fields: Any) -> Instruction:
    """A product of the operands."""
    linear = Instruction(Kind.LINEAR, mode, Binding.PROJECT, n0=_BLOCKS, n1=groups, n2=1, rows=_ROWS)
    return replace(linear, **{"x_s1": _BLOCKS, "x_s2": 1, "y_s0": 1, "y_s1": _BLOCKS} | fields)


def saturations(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Results of every mode about their limits: of products, of attention, of experts before their gates."""
    shape = bench.shape
    wide = shape.precision.requantised_bits
    groups = -(-_ROWS // shape.token_parallel)
    yield from _prepared(bench)
    for n, mode in enumerate((Mode.REQUANTISE, Mode.GELU, *([Mode.GATED] if shape.gated else []))):
        own = _linear(mode, groups, y_base=n * groups * _BLOCKS, shift=some(bench, 14, 26), w_s0=1, w_s1=_BLOCKS)
        yield edged(bench, bench.linear(own), wide)
    for n in range(6):
        yield from _context(bench, n, shape.precision.activation_bits + 1)
    if number % 2:
        yield edged(bench, bench.linear(_linear(Mode.RESIDUAL, groups)), wide)
        return
    count = shape.max_experts
    logits = -(-count // shape.block)
    yield hardened(bench, bench.linear(_linear(Mode.RAW, groups, n0=logits, y_s1=logits)), 16)
    yield BenchStep(Instruction(Kind.ROUTE, n0=count, n1=count, n2=logits, rows=_ROWS, multiplier=1 << 15, shift=30))
    for expert in range(count):
        yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=1, y_base=_OUT))
        scatter = _linear(Mode.SCATTER, groups, expert=expert, x_base=_OUT, x_s1=1, binding=Binding.SCORES)
        yield edged(bench, bench.linear(replace(scatter, y_s0=0, y_s1=0)), wide)


def activations(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """GELUs of small values, scaled so that the last bit of what the table gives shows in the operand."""
    groups = -(-_ROWS // bench.shape.token_parallel)
    yield from _prepared(bench)
    for n in range(7):
        scale = some(bench, 0, 3)
        gelu = _linear(Mode.GELU, groups, y_base=n * groups * _BLOCKS, shift=scale, offset=some(bench, 0, 3 << 10))
        step = bench.linear(gelu)
        payload: Any = step.payload
        parameters: Parameters = payload.parameters
        size = parameters.bias.size
        parameters.bias[:] = bench.rng.integers(-(1 << 14), 1 << 14, size)
        parameters.multiplier[:] = bench.rng.integers(1 << 14, 1 << 16, size)  # type: ignore[index]
        parameters.shift[:] = bench.rng.integers(17, 22, size)  # type: ignore[index]
        parameters.second[:] = bench.rng.integers(1, 2 << scale, size)  # type: ignore[index]
        yield step


def probabilities(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Words of any probabilities in every channel, halved as often as the few scores behind them say."""
    yield from _prepared(bench)
    for n in range(18):
        yield from _context(bench, n, None)


def _context(bench: Bench, number: int, width: int | None) -> Iterator[BenchStep]:
    """The context of some groups of any words and of two of scores, which are read first; the results of each number stay."""
    lanes, queries, scored = bench.shape.token_parallel, 2, 2
    groups = _ROWS // lanes
    yield bench.input(Instruction(Kind.INPUT, n2=groups, rows=queries * lanes, y_base=_OUT))
    yield BenchStep(
        Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=queries, n1=scored, n2=1, rows=scored * lanes,
            x_s0=_BLOCKS, x_s2=1, w_base=_BLOCKS * some(bench, 0, 2), w_s1=_BLOCKS, w_s2=1, y_base=_OUT + groups - scored,
            y_s0=groups, y_s1=1, multiplier=some(bench, 1 << 14, 65535), shift=some(bench, 19, 24),
        )
    )  # fmt: skip
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED, n0=queries, n1=_BLOCKS,
        n2=groups, rows=_ROWS, x_base=_OUT + groups - 1, x_s0=groups, x_s2=-1, w_base=(groups - 1) * _BLOCKS, w_s1=1,
        w_s2=-_BLOCKS, y_base=groups * _BLOCKS + queries * _BLOCKS * number,
        y_s0=_BLOCKS, y_s1=1,
    )  # fmt: skip
    step = bench.context(context)
    yield fine(bench, step) if width is None else edged(bench, step, width)


def edge_programs() -> list[Program]:
    """One seed each."""
    return [*[saturations, activations, probabilities] * 6]
