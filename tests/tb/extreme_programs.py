"""Random programs of steps at the edges of what the machine may be told: large biases, every shift, full queues, long loops.

In go a shape and a seed, out come steps for `tests.tb.step_programs.StepProgram`. Parameters are drawn so that results spread
over all magnitudes, from nothing to beyond every saturation, and stay within the invariants of docs/numbers.md, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from moehls.integer.operations import IntArray
from moehls.plan.instruction import NO_SPLIT, Binding, Flag, Instruction, Kind, Mode, Source
from moehls.plan.payload import Parameters
from tests.csim.bench import Bench, BenchStep

Program = Callable[[Bench, int], Iterator[BenchStep]]
_LARGEST_BIAS = 30
"""bits of the largest bias: with every sum of products below 2^30, `acc + b` fits 32 bits"""
_LARGEST_SHIFT = 63
_EDGES = (6, 14)
"""bits of results around which an operand saturates"""
_MANY = 300
"""iterations of a loop that 8 bits do not count"""


_MANY_TOKENS = 260
"""tokens that 8 bits do not count"""


def some(bench: Bench, low: int, high: int) -> int:
    """A number of `low … high`."""
    return int(bench.rng.integers(low, high + 1))


def spread(bench: Bench, size: int, bits: int) -> IntArray:
    """Signed numbers of 0 … `bits` bits, every number of bits as likely."""
    magnitude = bench.rng.integers(0, 1 << bits, size) >> bench.rng.integers(0, bits + 1, size)
    return np.where(bench.rng.integers(0, 2, size) == 1, magnitude, -magnitude)


def hardened(bench: Bench, step: BenchStep, bits: int, *, gains: bool = False) -> BenchStep:
    """`step` with parameters of all magnitudes for sums of `bits` bits; shifts leave results of 2 to 28 bits, half of them near
    the saturation of an operand."""
    payload: Any = step.payload
    parameters: Parameters = payload if isinstance(payload, Parameters) else payload.parameters
    multiplier, shift = parameters.multiplier, parameters.shift
    assert multiplier is not None and shift is not None
    size = parameters.bias.size
    parameters.bias[:] = spread(bench, size, _LARGEST_BIAS)
    multiplier[:] = spread(bench, size, 15) if gains else np.abs(spread(bench, size, 16))
    multiplier[bench.rng.integers(0, 8, size) == 0] = -(1 << 15) if gains else (1 << 16) - 1
    product = np.maximum(_length(parameters.bias), bits + (0 if gains else _length(multiplier)))
    product = np.maximum(product, _length(parameters.bias) + (0 if gains else _length(multiplier)))
    results = np.where(
        bench.rng.integers(0, 2, size) == 1, bench.rng.integers(2, 29, size), bench.rng.integers(*_EDGES, size)
    )
    shift[:] = np.clip(product - results, 0, _LARGEST_SHIFT)
    return step


def _length(values: IntArray) -> IntArray:
    return np.ceil(np.log2(np.abs(values) + 1.0)).astype(np.int64)


def filled(bench: Bench, rows: int, blocks: int) -> list[BenchStep]:
    """Operands in M3, M0, M1 and M2 that differ from row to row, some of them saturated, and a residual; in every lane."""
    groups = -(-rows // bench.shape.token_parallel)
    rows = groups * bench.shape.token_parallel
    strides = {"n0": blocks, "n1": groups, "n2": blocks, "x_s1": blocks, "x_s2": 1, "y_s0": 1, "y_s1": blocks}
    bindings = (Binding.CONTEXT, Binding.QUERY_VALUE, Binding.KEY)
    wide = [
        varied(bench, bench.linear(Instruction(Kind.LINEAR, Mode.REQUANTISE, binding, rows=rows, **strides)))
        for binding in bindings
    ]
    return [bench.input(Instruction(Kind.INPUT, n2=blocks, rows=rows)), loaded(bench, rows, blocks), *wide]


def varied(bench: Bench, step: BenchStep) -> BenchStep:
    """`step` with parameters whose operands show the sums of products: of 3 bits to a few more than fit, a channel."""
    payload: Any = step.payload
    parameters: Parameters = payload.parameters
    precision, size = bench.shape.precision, parameters.bias.size
    inputs = payload.weight.shape[1]
    bits = precision.activation_bits + precision.weight_bits - 4 + (inputs.bit_length() // 2)  # of most sums
    parameters.bias[:] = bench.rng.integers(-1 << (bits - 1), 1 << (bits - 1), size)
    parameters.multiplier[:] = bench.rng.integers(1 << 15, 1 << 16, size)  # type: ignore[index]
    parameters.shift[:] = bits + 16 - bench.rng.integers(3, precision.activation_bits + 2, size)  # type: ignore[index]
    return step


def loaded(bench: Bench, rows: int, blocks: int) -> BenchStep:
    """A residual whose rows are large, small, constant but for one channel, or of the two extremes only."""
    step = bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows))
    values: IntArray = step.payload.values  # type: ignore[union-attr]
    for row in values:
        kind, size = some(bench, 0, 3), row.size
        if kind == 0:
            row[:] = spread(bench, size, 15)
        elif kind == 1:
            row[:] = bench.rng.choice([-(1 << 15), (1 << 15) - 1], size)
        elif kind == 2:
            row[:] = some(bench, -(1 << 15), (1 << 15) - 1)
            row[some(bench, 0, size - 1)] = some(bench, -(1 << 15), (1 << 15) - 1)
        else:
            row[:] = bench.rng.normal(some(bench, -30000, 30000), 1 << some(bench, 0, 12), size).clip(-32768, 32767)
    return step


def products(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Every mode of a product with parameters of every magnitude."""
    shape = bench.shape
    rows, inputs, outputs = some(bench, 5, 12), 1 + number % 6, some(bench, 2, 4)
    groups = -(-rows // shape.token_parallel)
    yield from filled(bench, rows, 6)
    modes = [Mode.REQUANTISE, Mode.GELU, Mode.RESIDUAL, Mode.RAW, *([Mode.GATED] if shape.gated else [])]
    for n, mode in enumerate([*modes, Mode.GELU]):
        memory = mode not in (Mode.RAW, Mode.RESIDUAL)
        linear = Instruction(
            Kind.LINEAR, mode, Binding.PROJECT, flags=int(bench.rng.choice([0, Flag.X_UNSIGNED])), n0=outputs, n1=groups,
            n2=inputs, rows=rows, x_base=some(bench, 0, 6 - inputs), x_s1=6, x_s2=1, w_base=some(bench, 0, 2), w_s0=1,
            w_s1=6, y_base=24 + 12 * n if memory else 0, y_s0=1, y_s1=outputs,
            split=inputs // 2 if mode == Mode.RAW and inputs % 2 == 0 else NO_SPLIT,
            shift=some(bench, 8, 26), offset=some(bench, 0, (1 << 14) - 1),
        )  # fmt: skip
        if mode == Mode.GATED:
            linear = replace(linear, shift=some(bench, 14, 34), offset=0)
        yield hardened(bench, bench.linear(linear), 16)
    yield BenchStep(Instruction(Kind.STORE, Source.RAW, rows=rows, n2=outputs))


def attention(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Many keys, so that exponents rise often, between words of operands in every lane and channel."""
    shape = bench.shape
    keys, queries, blocks, base = some(bench, 60, 128), some(bench, 5, 12), some(bench, 1, 2), 24
    query_groups, key_groups = (-(-n // shape.token_parallel) for n in (queries, keys))
    yield from filled(bench, keys, blocks)
    yield bench.input(Instruction(Kind.INPUT, n2=key_groups, rows=query_groups * shape.token_parallel, y_base=base))
    parts = [(some(bench, 0, 3), key_groups - some(bench, 0, 2))]
    if number % 2:  # parts of few groups, whose rises add up slowly, and other words between them
        starts = range(0, key_groups - 3, 4)
        parts = [(start + some(bench, 0, 1), start + some(bench, 2, 4)) for start in starts]
    for first, last in parts:
        yield BenchStep(
            Instruction(
                Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=query_groups, n1=last - first, n2=blocks,
                rows=min(keys, (last - first) * shape.token_parallel), x_s0=blocks, x_s2=1, w_base=first * blocks,
                w_s1=blocks, w_s2=1, y_base=base + first, y_s0=key_groups, y_s1=1, multiplier=some(bench, 1 << 14, 65535),
                shift=17 + (number // 2) % 8,
            )
        )  # fmt: skip
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED, n0=query_groups,
        n1=blocks, n2=key_groups, rows=keys, x_base=base + key_groups - 1, x_s0=key_groups, x_s2=-1,
        w_base=(key_groups - 1) * blocks, w_s1=1, w_s2=-blocks, y_s0=blocks, y_s1=1,
    )  # fmt: skip
    yield hardened(bench, bench.context(context), 15)


def experts(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Routers of fewer and fewer experts over logits of every magnitude; the others' gates remain from before."""
    shape = bench.shape
    tokens, blocks = some(bench, 6, 20), some(bench, 1, 2)
    groups, most = -(-tokens // shape.token_parallel), shape.max_experts
    logits = -(-most // shape.block)
    yield from filled(bench, tokens, blocks)
    for count in (most, some(bench, 1, most), some(bench, 1, most)):
        gate = bench.linear(
            Instruction(
                Kind.LINEAR, Mode.RAW, Binding.PROJECT, n0=logits, n1=groups, n2=blocks, rows=tokens, x_s1=blocks, x_s2=1,
                y_s0=1, y_s1=logits,
            )
        )  # fmt: skip
        parameters: Parameters = gate.payload.parameters  # type: ignore[union-attr]
        parameters.bias[:] = spread(bench, parameters.bias.size, some(bench, 4, _LARGEST_BIAS))
        yield gate
        flags = int(bench.rng.choice([0, Flag.CHOSEN]))
        yield BenchStep(
            Instruction(
                Kind.ROUTE, flags=flags, n0=count, n1=some(bench, 1, count), n2=logits, rows=tokens,
                multiplier=some(bench, 1, 65535), shift=some(bench, 4, 34),
            )
        )  # fmt: skip
        for expert in range(count):
            yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=blocks, y_base=24))
            scatter = Instruction(
                Kind.LINEAR, Mode.SCATTER, Binding.SCORES, expert=expert, n0=blocks, n1=groups, n2=blocks, rows=tokens,
                x_base=24, x_s1=blocks, x_s2=1,
            )  # fmt: skip
            yield hardened(bench, bench.linear(scatter), 16)


def full_queues(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Every token to every expert."""
    shape = bench.shape
    tokens, most = min(_MANY_TOKENS, shape.max_tokens), shape.max_experts
    logits, groups = -(-most // shape.block), -(-tokens // shape.token_parallel)
    yield from filled(bench, tokens, 1)
    yield bench.linear(
        Instruction(
            Kind.LINEAR, Mode.RAW, Binding.PROJECT, n0=logits, n1=groups, n2=1, rows=tokens, x_s1=1, x_s2=1, y_s0=1,
            y_s1=logits,
        )
    )  # fmt: skip
    yield BenchStep(Instruction(Kind.ROUTE, n0=most, n1=most, n2=logits, rows=tokens, multiplier=60000, shift=22))
    for expert in range(most):
        yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=1))
        scatter = Instruction(Kind.LINEAR, Mode.SCATTER, Binding.SCORES, expert=expert, n0=1, n1=groups, n2=1, x_s1=1)
        yield bench.linear(replace(scatter, rows=tokens), (4, 20))


def norms(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Norms, means and results of rows from every place on, of every magnitude."""
    shape = bench.shape
    blocks = some(bench, 1, min(5, shape.norm_depth))
    rows = shape.token_parallel * ((shape.activation_depth - 6) // (2 * blocks)) - some(bench, 0, 9)
    first = some(bench, 0, rows - 1)
    place: dict[str, Any] = {"w_base": first % shape.token_parallel, "w_s0": first // shape.token_parallel}
    channels = some(bench, (blocks - 1) * shape.block + 1, blocks * shape.block)
    residual = loaded(bench, rows, blocks)
    residual.payload.values[:, channels:] = 0  # type: ignore[union-attr]
    yield residual
    norm = Instruction(Kind.NORM, flags=Flag.PLANES, n2=blocks, channels=channels, x_base=3)
    norm = replace(norm, epsilon=[0, 1, (1 << 48) - 1, 1 << some(bench, 2, 47)][number % 4])
    kinds = [0, Flag.RMS, *([Flag.PLAIN] if shape.plain_norms else [])]
    for kind, some_rows, start in ((0, rows, {}), (kinds[number % len(kinds)], rows - first, place)):
        step = bench.norm(replace(norm, flags=norm.flags | kind, rows=some_rows, **start))
        yield hardened(bench, step, 27, gains=True)
        for field in (step.payload.bias, step.payload.multiplier, step.payload.shift):  # type: ignore[union-attr]
            field[channels:] = 0
        yield BenchStep(Instruction(Kind.STORE, Source.FINE, rows=some_rows, n2=blocks, x_base=3))
    yield BenchStep(Instruction(Kind.STORE, Source.RESIDUAL, rows=rows - first, n2=blocks, **place))
    for source in (Source.RESIDUAL, Source.FINE) if shape.pools else ():
        last = rows if source == Source.RESIDUAL else rows - first
        start = some(bench, 0, last - 1)
        pool = Instruction(
            Kind.POOL, source, n2=blocks, rows=last - start, w_base=start % shape.token_parallel,
            w_s0=start // shape.token_parallel, x_base=3, y_base=130 - blocks,
        )  # fmt: skip
        yield hardened(bench, bench.step(pool, bench.parameters(blocks, 1 << 20, None, (8, 24))), 18)


def least(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """One token, one block, one expert; steps of another task, whose payload is drained; nothing but zeros."""
    yield bench.input(Instruction(Kind.INPUT, n2=1, rows=1, y_base=9))
    yield bench.input(Instruction(Kind.INPUT, n0=3, n2=2, rows=3))
    yield loaded(bench, 1, 1)
    yield replace_task(loaded(bench, 40, 3), 1)
    yield bench.norm(Instruction(Kind.NORM, flags=Flag.PLANES, rows=1, n2=1, channels=bench.shape.block))
    linear = Instruction(Kind.LINEAR, n0=1, n1=1, n2=1, rows=1, shift=12)
    for mode in (Mode.REQUANTISE, Mode.RESIDUAL, Mode.RAW, Mode.GELU):
        yield bench.linear(replace(linear, mode=mode, binding=Binding.QUERY_VALUE))
        yield replace_task(bench.linear(replace(linear, mode=mode, binding=Binding.QUERY_VALUE, n0=3)), 1)
    yield replace_task(bench.linear(replace(linear, n0=18, n2=18)), 1)  # more words than 8 bits count
    yield BenchStep(Instruction(Kind.ROUTE, n0=1, n1=1, n2=1, rows=1, multiplier=40000, shift=20))
    yield BenchStep(Instruction(Kind.GATHER, expert=0, n2=1, y_base=5))
    yield bench.linear(replace(linear, mode=Mode.SCATTER, binding=Binding.SCORES, expert=0, x_base=5))
    for source in (Source.RESIDUAL, Source.FINE, Source.RAW):
        yield BenchStep(Instruction(Kind.STORE, source, rows=1, n2=1))


def replace_task(step: BenchStep, task: int) -> BenchStep:
    """The step for `task` only."""
    return replace(step, instruction=replace(step.instruction, task=task))


def loops(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Every loop of the engine more than 256 times, on the same words."""
    yield from filled(bench, 12, 2)
    linear = Instruction(Kind.LINEAR, Mode.REQUANTISE, Binding.PROJECT, rows=12, n0=1, n1=1, n2=1, y_base=20)
    scores = replace(linear, mode=Mode.SOFTMAX, binding=Binding.SCORES, flags=Flag.W_MEMORY, multiplier=65535, shift=30)
    if number % 3 == 0:
        yield bench.linear(replace(linear, n0=_MANY))
        yield BenchStep(replace(scores, n0=_MANY))
    elif number % 3 == 1:
        yield bench.linear(replace(linear, n1=_MANY))
        yield BenchStep(replace(scores, n1=_MANY, rows=4 * _MANY, y_base=24))
        yield bench.linear(replace(linear, mode=Mode.RAW, n1=_MANY))
    else:
        yield BenchStep(replace(scores, n2=_MANY))
        yield from _largest_sum(bench)


def _largest_sum(bench: Bench) -> Iterator[BenchStep]:
    """The context of as many keys as there may be tokens, all of them as probable as can be."""
    lanes, place = bench.shape.token_parallel, 60
    groups = bench.shape.max_tokens // lanes
    yield bench.input(Instruction(Kind.INPUT, n2=1, rows=lanes, y_base=place))
    bench.pixels[-1][:] = 0
    bench.pixels[-1][:, : lanes * bench.shape.precision.activation_bits // 8] = 0xFF
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED, n0=1, n1=1,
        n2=groups, rows=groups * lanes, x_base=place, w_base=0, y_base=place + 1,
    )  # fmt: skip
    yield bench.context(context)


def extreme_programs() -> list[Program]:
    """One seed each."""
    return [least, *[products] * 24, *[norms] * 16, *[experts] * 10, *[attention] * 20, *[loops] * 3, full_queues]
