"""Random programs of many short steps, one after another, whose sizes change at every step.

A process that takes a size from its header a cycle late still has that of the step before in its first iteration, which then
ends a loop. So the steps of a kind follow each other with loops of one, two and more iterations, in both orders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from moehls.plan.instruction import Binding, Flag, Instruction, Kind, Mode, Source
from tests.csim.bench import Bench, BenchStep
from tests.tb.extreme_programs import Program, filled, hardened, loaded, some

_ROWS, _BLOCKS = 12, 3
"""of the operands and the residual that all steps work on"""
_STEPS = 14
_PLANES = 40
"""where the planes of a norm's results lie, and `_OUT` where products go"""
_OUT = 80


def size(bench: Bench, most: int) -> int:
    """1 half of the time."""
    return 1 if some(bench, 0, 1) else some(bench, 1, most)


def _prepared(bench: Bench) -> Iterator[BenchStep]:
    yield from filled(bench, _ROWS, _BLOCKS)
    channels = _BLOCKS * bench.shape.block
    norm = Instruction(
        Kind.NORM, flags=Flag.PLANES, n2=_BLOCKS, channels=channels, rows=_ROWS, x_base=_PLANES, y_base=_OUT
    )
    yield bench.norm(norm)
    yield next(_product(bench, Mode.RAW, _BLOCKS, -(-_ROWS // bench.shape.token_parallel), 1))


def _rows_of(bench: Bench) -> dict[str, int]:
    """Rows from any place on."""
    first = some(bench, 0, _ROWS - 1)
    lanes = bench.shape.token_parallel
    return {"rows": size(bench, _ROWS - first), "w_base": first % lanes, "w_s0": first // lanes}


def stores(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Results of every source."""
    yield from _prepared(bench)
    for _ in range(2 * _STEPS):
        source = (Source.RESIDUAL, Source.FINE, Source.RAW)[some(bench, 0, 2)]
        store = Instruction(Kind.STORE, source, n2=size(bench, _BLOCKS), **_rows_of(bench))
        yield BenchStep(replace(store, x_base=_PLANES) if source == Source.FINE else store)


def norms_and_loads(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Norms of residuals of other sizes than before, loads and inputs between them."""
    yield from _prepared(bench)
    for _ in range(_STEPS):
        rows, blocks = size(bench, _ROWS), size(bench, _BLOCKS)
        if some(bench, 0, 1):
            yield loaded(bench, rows, blocks)
        if some(bench, 0, 2) == 0:
            yield bench.input(Instruction(Kind.INPUT, n0=some(bench, 0, rows - 1), n2=blocks, rows=rows, y_base=_OUT))
        flags = int(bench.rng.choice([0, Flag.PLANES, Flag.RMS]))
        norm = Instruction(Kind.NORM, flags=flags, n2=blocks, channels=blocks * bench.shape.block, x_base=_PLANES)
        norm = replace(norm, epsilon=1 << some(bench, 0, 30), **_rows_of(bench))
        yield hardened(bench, bench.norm(norm), 27, gains=True)
        if bench.shape.pools and some(bench, 0, 1):
            pool = Instruction(Kind.POOL, Source.RESIDUAL, n2=blocks, y_base=_OUT, **_rows_of(bench))
            yield hardened(bench, bench.step(pool, bench.parameters(blocks, 1 << 20, None, (8, 24))), 18)


def _product(bench: Bench, mode: int, outputs: int, groups: int, inputs: int) -> Iterator[BenchStep]:
    """A product of the operands to the residual, the raw memory or an activation memory."""
    linear = Instruction(
        Kind.LINEAR, mode, Binding.PROJECT, n0=outputs, n1=groups, n2=inputs, rows=_ROWS, x_s1=_BLOCKS, x_s2=1, y_s0=1,
        y_s1=outputs, y_base=0 if mode in (Mode.RAW, Mode.RESIDUAL) else _OUT, flags=int(bench.rng.choice([0, Flag.X_UNSIGNED])),
        shift=some(bench, 14, 26), offset=0 if mode == Mode.GATED else some(bench, 0, 1 << 14),
    )  # fmt: skip
    yield hardened(bench, bench.linear(linear), 16)


def products(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Products of every mode, and attention between them."""
    yield from _prepared(bench)
    most = -(-_ROWS // bench.shape.token_parallel)
    modes = [Mode.REQUANTISE, Mode.GELU, Mode.RESIDUAL, Mode.RAW, *([Mode.GATED] if bench.shape.gated else [])]
    for _ in range(_STEPS):
        if some(bench, 0, 5) == 0:
            yield from _attention(bench, size(bench, most), size(bench, most), size(bench, _BLOCKS))
        mode = modes[some(bench, 0, len(modes) - 1)]
        yield from _product(bench, mode, size(bench, _BLOCKS), size(bench, most), size(bench, _BLOCKS))


def attentions(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Attention of few keys, where a single probability shows."""
    yield from _prepared(bench)
    most = -(-_ROWS // bench.shape.token_parallel)
    for _ in range(3 * _STEPS):
        yield from _attention(bench, size(bench, most), some(bench, 2, most), size(bench, _BLOCKS))


def _attention(bench: Bench, queries: int, keys: int, blocks: int) -> Iterator[BenchStep]:
    """Scores and their context, of groups of queries and keys, with words of any channels before those of the scores."""
    lanes = bench.shape.token_parallel
    before = some(bench, 0, 1) if keys * lanes < _ROWS else 0
    groups = keys + before
    yield bench.input(Instruction(Kind.INPUT, n2=groups, rows=queries * lanes, y_base=_OUT))
    rows = keys * lanes - some(bench, 0, lanes - 1)
    yield BenchStep(
        Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=queries, n1=keys, n2=blocks, rows=rows, x_s0=_BLOCKS,
            x_s2=1, w_s1=_BLOCKS, w_s2=1, y_base=_OUT + before, y_s0=groups, y_s1=1, multiplier=some(bench, 1 << 14, 65535),
            shift=some(bench, 17, 26),
        )
    )  # fmt: skip
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED, n0=queries, n1=blocks,
        n2=groups, rows=groups * lanes, x_base=_OUT + groups - 1, x_s0=groups, x_s2=-1, w_base=(groups - 1) * _BLOCKS, w_s1=1,
        w_s2=-_BLOCKS, y_base=some(bench, 20, 120), y_s0=blocks, y_s1=1,
    )  # fmt: skip
    yield hardened(bench, bench.context(context), 15)


def routers(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Routers of few tokens and experts, and their experts."""
    shape = bench.shape
    yield from _prepared(bench)
    for _ in range(_STEPS // 2):
        tokens, count, blocks = size(bench, _ROWS), size(bench, shape.max_experts), size(bench, _BLOCKS)
        groups, logits = -(-tokens // shape.token_parallel), -(-count // shape.block)
        yield from _product(bench, Mode.RAW, logits, groups, blocks)
        route = Instruction(Kind.ROUTE, n0=count, n1=some(bench, 1, count), n2=logits, rows=tokens)
        flags = int(bench.rng.choice([0, Flag.CHOSEN]))
        yield BenchStep(replace(route, flags=flags, multiplier=some(bench, 1, 65535), shift=some(bench, 4, 34)))
        for expert in range(count):
            own = size(bench, _BLOCKS)
            yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=own, y_base=_OUT))
            scatter = Instruction(
                Kind.LINEAR, Mode.SCATTER, Binding.SCORES, expert=expert, n0=own, n1=groups, n2=own, rows=tokens,
                x_base=_OUT, x_s1=own, x_s2=1,
            )  # fmt: skip
            yield hardened(bench, bench.linear(scatter), 16)


def short_programs() -> list[Program]:
    """One seed each."""
    kinds: list[Callable[[Bench, int], Iterator[BenchStep]]] = [stores, norms_and_loads, products, attentions, routers]
    return [*kinds] * 4
