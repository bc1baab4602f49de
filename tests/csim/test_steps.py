"""Every kind and mode of a step, on random data, shapes and addresses: the C++ equals the functional model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moehls.plan.instruction import (
    NO_CAPACITY,
    NO_SPLIT,
    Binding,
    Flag,
    Gating,
    Instruction,
    Kind,
    Mode,
    Source,
    Target,
)
from moehls.plan.shape import Shape
from tests.csim.bench import FORMS, Bench, BenchStep, assert_steps_equal
from tests.csim.conftest import SHAPES, Accelerator

random_data = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)
draws = st.data()


def bench_of(accelerator: Accelerator, data: st.DataObject) -> Bench:
    return Bench(accelerator.shape, np.random.default_rng(data.draw(st.integers(0, 1 << 32), label="seed")))


def some(data: st.DataObject, low: int, high: int) -> int:
    return data.draw(st.integers(low, high))


def filled(bench: Bench, rows: int, blocks: int) -> list[BenchStep]:
    """Operands in M3, M0, M1 and M2 from address 0 on, `rows` rows of `blocks` blocks, and a residual."""
    groups = -(-rows // bench.shape.token_parallel)
    steps = [
        bench.input(Instruction(Kind.INPUT, n2=blocks, rows=rows)),
        bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows)),
    ]
    for binding in (Binding.CONTEXT, Binding.QUERY_VALUE, Binding.KEY):
        strides = {"n0": blocks, "n1": groups, "n2": blocks, "x_s1": blocks, "x_s2": 1, "y_s0": 1, "y_s1": blocks}
        steps.append(bench.linear(Instruction(Kind.LINEAR, Mode.REQUANTISE, binding, rows=rows, **strides)))
    return steps


@random_data
@given(data=draws)
def test_input_and_load(accelerator: Accelerator, data: st.DataObject) -> None:
    bench = bench_of(accelerator, data)
    rows, blocks = some(data, 1, 20), some(data, 1, 4)
    prefix, base = some(data, 0, rows), some(data, 0, 20)
    steps = [
        bench.input(Instruction(Kind.INPUT, n0=prefix, n2=blocks, rows=rows, y_base=base)),
        bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows, y_base=base if accelerator.shape.sides else 0)),
    ]
    assert_steps_equal(accelerator.library, bench, steps)


@random_data
@given(data=draws)
def test_norm(accelerator: Accelerator, data: st.DataObject) -> None:
    bench, shape = bench_of(accelerator, data), accelerator.shape
    rows, blocks = some(data, 1, 14), some(data, 1, 6)
    first = some(data, 0, rows - 1)
    kinds = [0, Flag.RMS, Flag.PLAIN] if shape.plain_norms else [0, Flag.RMS]
    target = data.draw(st.sampled_from(Target)) if shape.norm_targets else Target.M0
    planes = data.draw(st.sampled_from([0, Flag.PLANES])) if target == Target.M0 else 0
    norm = Instruction(
        Kind.NORM,
        target,
        flags=planes | data.draw(st.sampled_from(kinds)),
        rows=rows - first,
        n2=blocks,
        channels=blocks * shape.block,
        epsilon=data.draw(st.sampled_from([0, 1, 12345, (1 << 48) - 1])),
        w_base=first % shape.token_parallel,
        w_s0=first // shape.token_parallel,
        x_base=some(data, 0, 9),
        y_base=some(data, 0, 9),
    )
    load = bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows))
    assert_steps_equal(accelerator.library, bench, [load, bench.norm(norm)])


def test_norm_of_equal_channels(accelerator: Accelerator) -> None:
    """No variance at all: the reciprocal root of one."""
    bench = Bench(accelerator.shape, np.random.default_rng(0))
    load = bench.load(Instruction(Kind.LOAD, n2=1, rows=5))
    load.payload.values[:] = -32768  # type: ignore[union-attr]
    norm = bench.norm(Instruction(Kind.NORM, rows=5, n2=1, channels=accelerator.shape.block))
    assert_steps_equal(accelerator.library, bench, [load, norm])


def test_norm_of_one_channel_of_many(accelerators: dict[str, Accelerator]) -> None:
    """A token with one channel alone is as large as a normalised value gets; gain and bias are the largest too."""
    shape = accelerators["more"].shape
    bench = Bench(shape, np.random.default_rng(0))
    load = bench.load(Instruction(Kind.LOAD, n2=shape.norm_depth, rows=2))
    norm = bench.norm(Instruction(Kind.NORM, rows=2, n2=shape.norm_depth, channels=shape.norm_depth * shape.block))
    load.payload.values[:] = 0  # type: ignore[union-attr]
    for row, value in enumerate((30000, -30000)):
        load.payload.values[row, 7] = value  # type: ignore[union-attr]
    for field, value in zip(("bias", "multiplier", "shift"), (-(1 << 31), -(1 << 15), 26), strict=True):
        getattr(norm.payload, field)[7] = value
    assert_steps_equal(accelerators["more"].library, bench, [load, norm])


@pytest.mark.parametrize("mode", [Mode.REQUANTISE, Mode.GELU, Mode.RESIDUAL, Mode.RAW, Mode.WIDE], ids=lambda m: m.name)
@random_data
@given(data=draws)
def test_stream_product(accelerator: Accelerator, mode: Mode, data: st.DataObject) -> None:
    bench, shape = bench_of(accelerator, data), accelerator.shape
    rows, inputs, outputs = some(data, 1, 14), some(data, 1, 6), some(data, 1, 4)
    groups = -(-rows // shape.token_parallel)
    if mode == Mode.WIDE and not shape.wide:
        mode = Mode.RESIDUAL
    planes = mode in (Mode.RAW, Mode.WIDE) and shape.precision.activation_bits == 8 and inputs % 2 == 0
    absent = {Binding.UP: not shape.gated, Binding.CONTEXT_BESIDE: not shape.beside}
    linear = Instruction(
        Kind.LINEAR,
        mode,
        data.draw(st.sampled_from([b for b in Binding if not absent.get(b)])),
        flags=data.draw(st.sampled_from([0, Flag.X_UNSIGNED])),
        n0=outputs,
        n1=groups,
        n2=inputs,
        rows=rows,
        x_base=some(data, 0, 5),
        x_s1=inputs,
        x_s2=1,
        y_base=some(data, 0, 5) if mode not in (Mode.RAW, Mode.RESIDUAL) else 0,
        y_s0=1,
        y_s1=outputs,
        split=inputs // 2 if planes else NO_SPLIT,
        shift=some(data, 8, 30),
        offset=some(data, 0, 1 << 14),
        multiplier=some(data, 0, len(FORMS) - 1) if mode == Mode.GELU else 0,
    )
    shifts = (4, 30) if shape.precision.activation_bits == 8 else (20, 50)
    steps = [*filled(bench, rows, max(inputs, outputs)), bench.linear(linear, shifts)]
    if mode == Mode.RAW:
        store = Instruction(Kind.STORE, Source.RAW, rows=rows, n2=outputs)
        steps.append(BenchStep(store))
    assert_steps_equal(accelerator.library, bench, steps)


@random_data
@given(data=draws)
def test_gated_product(accelerators: dict[str, Accelerator], data: st.DataObject) -> None:
    """The other operand lies in M1 (binding PROJECT) or M2 (SCORES, as experts have it), its rows `stride` apart."""
    accelerator = accelerators[data.draw(st.sampled_from([name for name, shape in SHAPES.items() if shape.gated]))]
    bench, shape = bench_of(accelerator, data), accelerator.shape
    rows, inputs, outputs, stride = some(data, 1, 14), some(data, 1, 6), some(data, 1, 4), some(data, 4, 6)
    groups = -(-rows // shape.token_parallel)
    linear = Instruction(
        Kind.LINEAR, Mode.GATED, data.draw(st.sampled_from([Binding.PROJECT, Binding.SCORES])),
        n0=outputs, n1=groups, n2=inputs, rows=rows, x_base=some(data, 0, 5), x_s1=inputs, x_s2=1,
        w_base=some(data, 0, 3), w_s0=1, w_s1=stride, y_base=some(data, 0, 5), y_s0=1, y_s1=outputs,
        shift=some(data, 12, 30), multiplier=some(data, 0, len(FORMS) - 1),
    )  # fmt: skip
    other = Instruction(
        Kind.LINEAR, Mode.REQUANTISE, Binding.UP, n0=stride, n1=groups, n2=inputs, rows=rows, x_s1=inputs, x_s2=1,
        y_s0=1, y_s1=stride,
    )  # fmt: skip
    shifts = (4, 24) if shape.precision.activation_bits == 8 else (20, 40)
    steps = [*filled(bench, rows, 6), bench.linear(other, shifts), bench.linear(linear, shifts)]
    assert_steps_equal(accelerator.library, bench, steps)


@random_data
@given(data=draws)
def test_attention(accelerator: Accelerator, data: st.DataObject) -> None:
    bench, shape = bench_of(accelerator, data), accelerator.shape
    queries, keys, blocks = some(data, 1, 12), some(data, 1, 14), some(data, 1, 3)
    query_groups, key_groups = (-(-n // shape.token_parallel) for n in (queries, keys))
    scores = Instruction(
        Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY,
        n0=query_groups, n1=key_groups, n2=blocks, rows=keys,
        x_s0=blocks, x_s2=1, w_s1=blocks, w_s2=1, y_base=40, y_s0=key_groups, y_s1=1,
        multiplier=some(data, 1, 65535), shift=some(data, 10, 40),
    )  # fmt: skip
    context = Instruction(
        Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED,
        n0=query_groups, n1=blocks, n2=key_groups, rows=keys,
        x_base=40 + key_groups - 1, x_s0=key_groups, x_s2=-1,
        w_base=(key_groups - 1) * blocks, w_s1=1, w_s2=-blocks, y_s0=blocks, y_s1=1,
    )  # fmt: skip
    scored = BenchStep(scores)
    if shape.biased and data.draw(st.booleans()):
        shift = some(data, 0, 14 if shape.precision.accumulator_bits == 32 else 31)
        biases = bench.biases(queries, keys, data.draw(st.sampled_from([0.0, 0.3, 0.95])))
        scored = bench.step(replace(scores, flags=Flag.W_MEMORY | Flag.PARAMETERS, offset=shift), biases)
    steps = [*filled(bench, max(queries, keys), blocks), scored, bench.context(context)]
    assert_steps_equal(accelerator.library, bench, steps)


def gating(data: st.DataObject, shape: Shape, experts: int, chosen: int) -> dict[str, int]:
    """Fields of a ROUTE step: scores, groups, a threshold and a capacity where the machine has them."""
    fields = {"mode": 0, "split": NO_CAPACITY}
    if shape.thresholds and data.draw(st.booleans()):
        fields["mode"] |= data.draw(st.sampled_from([0, Gating.RENORMALISE]))
        fields["offset"] = data.draw(st.sampled_from([0, 5000, 20000]))
    if shape.capacities and data.draw(st.booleans()):
        fields["mode"] |= data.draw(st.sampled_from([0, Gating.BY_CHOICE]))
        fields["split"] = data.draw(st.sampled_from([NO_CAPACITY, 1, 3]))
    if shape.rooms and fields["mode"] == Gating.BY_CHOICE and chosen == 2 and not fields.get("offset"):
        fields["mode"] |= data.draw(st.sampled_from([0, Gating.ROOM]))
    if shape.sigmoids:
        fields["mode"] |= data.draw(st.sampled_from([0, Gating.SIGMOID, Gating.SIGMOID | Gating.UNDIVIDED]))
    if shape.selections and fields["mode"] & Gating.SIGMOID:
        fields["mode"] |= data.draw(st.sampled_from([0, Gating.SELECTION]))
    size = shape.expert_group
    if size and experts % size == 0:
        fields["x_base"] = data.draw(st.sampled_from([0, *range(-(-chosen // size), experts // size + 1)]))
        if fields["mode"] & Gating.SELECTION:
            fields["mode"] |= data.draw(st.sampled_from([0, Gating.PAIRS]))
    return fields


@random_data
@given(data=draws)
def test_experts(accelerator: Accelerator, data: st.DataObject) -> None:
    """Route, gather and scatter; every second expert has the gate of its neighbour, so logits tie."""
    bench, shape = bench_of(accelerator, data), accelerator.shape
    tokens, blocks, experts = some(data, 1, 14), some(data, 1, 3), some(data, 1, shape.max_experts)
    groups, logits = -(-tokens // shape.token_parallel), -(-experts // shape.block)
    gate = bench.linear(
        Instruction(
            Kind.LINEAR, Mode.RAW, Binding.PROJECT, n0=logits, n1=groups, n2=blocks, rows=tokens,
            x_s1=blocks, x_s2=1, y_s0=1, y_s1=logits,
        )
    )  # fmt: skip
    weights = gate.payload.weight  # type: ignore[union-attr]
    weights[1::2] = weights[::2]
    gate.payload.parameters.bias[:] = 0  # type: ignore[union-attr]
    chosen = some(data, 1, experts)
    route = Instruction(
        Kind.ROUTE, flags=data.draw(st.sampled_from([0, Flag.CHOSEN])), n0=experts, n1=chosen, n2=logits,
        rows=tokens, multiplier=some(data, 0, 65535), shift=some(data, 4, 40),
        **gating(data, shape, experts, chosen),
    )  # fmt: skip
    choose = BenchStep(route)
    if route.mode & Gating.SELECTION:
        choose = bench.step(route, bench.parameters(logits, 1 << 17, None, (0, 1)))
    steps = [*filled(bench, tokens, blocks), gate, choose]
    base = some(data, 1, 9) if shape.sides else 0
    for expert in range(experts):
        weighs = shape.weighed_inputs and data.draw(st.booleans())
        steps.append(BenchStep(Instruction(Kind.GATHER, int(weighs), expert=expert, n2=blocks, y_base=30)))
        scatter = Instruction(
            Kind.LINEAR, Mode.SCATTER, Binding.SCORES, expert=expert, n0=blocks, n1=groups, n2=blocks, rows=tokens,
            flags=Flag.PLAIN if weighs else 0, x_base=30, x_s1=blocks, x_s2=1, y_base=base,
        )  # fmt: skip
        steps.append(bench.linear(scatter, (4, 20)))
    assert_steps_equal(accelerator.library, bench, steps)


@random_data
@given(data=draws)
def test_store(accelerator: Accelerator, data: st.DataObject) -> None:
    bench, shape = bench_of(accelerator, data), accelerator.shape
    rows, blocks = some(data, 2, 14), some(data, 1, 4)
    first = some(data, 0, rows - 1)
    place = {"w_base": first % shape.token_parallel, "w_s0": first // shape.token_parallel}
    norm = Instruction(
        Kind.NORM, flags=Flag.PLANES, rows=rows, n2=blocks, channels=blocks * shape.block, epsilon=7, x_base=3
    )
    steps = [
        bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows)),
        bench.norm(norm),
        BenchStep(Instruction(Kind.STORE, Source.RESIDUAL, rows=rows - first, n2=blocks, **place)),
        BenchStep(Instruction(Kind.STORE, Source.FINE, rows=rows - first, n2=blocks, x_base=3, **place)),
    ]
    assert_steps_equal(accelerator.library, bench, steps)


def test_steps_of_another_task_are_drained(accelerator: Accelerator) -> None:
    bench = Bench(accelerator.shape, np.random.default_rng(0))
    own, other = (Instruction(Kind.LOAD, n2=2, rows=5, task=task) for task in (1, 0))
    assert_steps_equal(accelerator.library, bench, [bench.load(own), bench.load(other)], task=1)
