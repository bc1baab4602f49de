"""The program on a functional model of the machine equals the NumPy reference, value by value."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.integer.host import quantise_image
from moehls.integer.operations import (
    Epilogue,
    GeluRequantise,
    IntegerAttention,
    IntegerLinear,
    IntegerNetwork,
    IntegerOutput,
    Raw,
    Requantise,
    Scaling,
)
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.network.operations import GateNormalisation, Priority
from moehls.plan.check import check_program
from moehls.plan.layout import (
    activation_tensor,
    chosen_gates,
    input_bytes,
    output_tensors,
    queue_gates,
    raw_tensor,
    residual_tensor,
    stream_words,
)
from moehls.plan.shape import Shape
from moehls.plan.steps import Program, Stage
from moehls.reference import Routing, run
from tests.plan.machine import Machine
from tests.plan.support import program_and_shape
from tests.support.random_networks import Sizes, random_image, random_integer_network


def assert_equals_reference(
    network: IntegerNetwork, token_parallel: int, block: int, task: int, token_blocks: int = 1, head_groups: int = 1
) -> Program:
    program, shape = program_and_shape(network, token_parallel, block, token_blocks, head_groups)
    check_program(program, shape)
    image = random_image(network, 7)
    expected = run(network, image, task)
    compared: set[str] = set()

    def trace(step: int, machine: Machine) -> None:
        for stage in program.stages:
            if stage.step == step and stage.task in (0xFFFF, task):
                reference = expected.values[stage.value]
                if isinstance(reference, Routing):
                    reference = chosen_gates(reference.chosen, reference.gates, stage.place.channels.count)
                else:
                    reference = stage.part(reference)
                np.testing.assert_array_equal(traced(stage, machine, shape), reference, err_msg=stage.name)
                compared.add(stage.value)

    results = run_machine(network, program, shape, image, task, trace)
    for name, value in output_tensors(np.frombuffer(results, np.uint8), program.outputs).items():
        source = next(output.value for output in network.outputs if output.name == name)
        np.testing.assert_array_equal(value, expected.array(source), err_msg=name)
    unread = {operation.fine for operation in network.operations if hasattr(operation, "fine")}
    assert set(expected.values) - compared - unread == {network.input.name}
    return program


def run_machine(network, program: Program, shape: Shape, image, task, trace=None) -> bytes:  # type: ignore[no-untyped-def]
    pixels = input_bytes(quantise_image(network, image), program.input, shape)
    assert len(pixels) == 16 * program.input.beats
    results = Machine(shape, network.activations).run(stream_words(program, shape), pixels.tobytes(), task, trace)
    assert len(results) == 16 * program.output_beats
    return results


def traced(stage: Stage, machine: Machine, shape: Shape) -> np.ndarray:
    place = stage.place
    match place.memory:
        case "residual":
            image = machine.residual.astype("<i2").view(np.uint8).reshape(*machine.residual.shape[:2], -1)
            return residual_tensor(place, image, shape)
        case "raw":
            wide = machine.raw.astype("<i8").view(np.uint8).reshape(*machine.raw.shape, 8)
            size = shape.precision.accumulator_bits // 8
            return raw_tensor(place, wide[..., :size].reshape(len(wide), -1), shape)
        case "queue":
            lane, group, gate = np.moveaxis(machine.queue, 2, 0)
            return queue_gates(place, (lane | group << 8 | gate << 24).astype(np.uint64), machine.count, shape)
        case memory:
            return activation_tensor(place, machine.image(int(memory[1])), shape)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize(("token_parallel", "block"), [(4, 8), (8, 8), (3, 16)])
@pytest.mark.parametrize("task", [0, 1])
def test_every_value_equals_the_reference(precision: Precision, token_parallel: int, block: int, task: int) -> None:
    network = random_integer_network(1, precision, normalisation="chosen" if task else "all")
    assert_equals_reference(network, token_parallel, block, task)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize(("token_parallel", "block", "task"), [(4, 8, 0), (3, 16, 1)])
def test_gated_mlps_and_experts_shared_experts_and_rms_norms(
    precision: Precision, token_parallel: int, block: int, task: int
) -> None:
    network = random_integer_network(8, precision, Sizes(gated=True, centred=False), activation="silu")
    assert_equals_reference(network, token_parallel, block, task)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_pools_thresholds_and_capacities(precision: Precision) -> None:
    order: Priority
    for order, renormalise in (("token", False), ("choice", True)):
        extra = Sizes(layers=4, pooled=True, threshold=12000, renormalise=renormalise, capacity=3, priority=order)
        assert_equals_reference(random_integer_network(3, precision, extra), 3, 8, 1)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_gates_relative_to_the_choices_with_room(precision: Precision) -> None:
    sizes = Sizes(layers=4, capacity=3, priority="choice", room=True)
    assert_equals_reference(random_integer_network(3, precision, sizes), 3, 8, 1)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("selects", [False, True])
def test_sigmoids_and_groups(precision: Precision, selects: bool) -> None:
    sizes = Sizes(layers=4, experts=6, score="sigmoid", group=2, kept_groups=2, threshold=9000, capacity=3)
    sizes = replace(sizes, selects=selects, weigh_inputs=selects)
    for normalisation in get_args(GateNormalisation):
        network = random_integer_network(3, precision, sizes, normalisation=normalisation)
        assert_equals_reference(network, 3, 8, 1)


@pytest.mark.parametrize("slots", [3, 17])
def test_soft_mixtures(slots: int) -> None:
    assert_equals_reference(random_integer_network(3, W8A8, Sizes(slots=slots)), 3, 8, 1)


def test_normalised_queries_and_keys() -> None:
    assert_equals_reference(random_integer_network(3, W8A8, Sizes(normalised=True)), 3, 8, 1)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize(("token_parallel", "block"), [(1, 8), (3, 16), (7, 8)])
def test_biases_of_scores_and_hidden_keys(precision: Precision, token_parallel: int, block: int) -> None:
    assert_equals_reference(random_integer_network(3, precision, Sizes(biased=True)), token_parallel, block, 0)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize(("token_blocks", "head_groups"), [(2, 1), (2, 2), (3, 3), (99, 99)])
def test_parts_of_values_take_less_memory_and_change_no_number(
    precision: Precision, task: int, token_blocks: int, head_groups: int
) -> None:
    network = random_integer_network(3, precision, Sizes(tokens=17, head=0, patch=(5, 9)))
    whole, _ = program_and_shape(network, 3, 8)
    program = assert_equals_reference(network, 3, 8, task, token_blocks, head_groups)
    assert program.requirements.activation_depth < whole.requirements.activation_depth
    assert program.requirements.beside == (head_groups > 1)


@pytest.mark.parametrize(
    "sizes",
    [Sizes(gated=True, centred=False), Sizes(normalised=True), Sizes(slots=5), Sizes(pooled=True), Sizes(biased=True)],
)
def test_what_cannot_be_in_parts_is_whole(sizes: Sizes) -> None:
    assert_equals_reference(random_integer_network(8, W8A8, sizes), 4, 8, 1, token_blocks=3, head_groups=3)


def test_scores_of_the_whole_range_keep_their_exponents() -> None:
    """Scores of ±2048 move the running exponent further than the 8 bits of a probability word could say."""
    network = random_integer_network(3, W8A8, Sizes(layers=1, experts=0))
    loud = [
        replace(operation, score_multiplier=operation.score_multiplier * 0 + 65535, score_shift=np.full(3, 10))
        if isinstance(operation, IntegerAttention)
        else operation
        for operation in network.operations
    ]
    assert_equals_reference(replace(network, operations=tuple(loud)), 2, 8, 0)


@pytest.mark.parametrize(("start", "stop"), [(1, 2), (5, 11), (3, 7)])
def test_a_norm_of_some_tokens_starts_in_any_lane(start: int, stop: int) -> None:
    network = random_integer_network(4)
    some = [
        replace(operation, start=start, stop=stop) if operation.name == "final" else operation  # type: ignore[call-arg]
        for operation in network.operations
    ]
    assert_equals_reference(replace(network, operations=tuple(some)), 4, 8, 0)


def test_linears_in_a_row_go_to_and_fro_between_two_memories() -> None:
    network = random_integer_network(6)
    rng = np.random.default_rng(0)

    def layer(name: str, source: str, out: int, channels: int, epilogue: Epilogue) -> IntegerLinear:
        weight = rng.integers(-127, 128, (out, channels)).astype(np.int8)
        bias, multiplier = rng.integers(-999, 999, out), rng.integers(1, 1 << 16, out)
        return IntegerLinear(name, source, name, weight, Scaling(bias, multiplier, np.full(out, 20)), epilogue)

    gelu = GeluRequantise(rng.integers(0, 256, 21), 9, 1000)
    chain = (
        layer("first", "final.operand", 21, 30, gelu),
        layer("second", "first", 13, 21, Requantise()),
        layer("third", "second", 9, 13, Requantise()),
        layer("shown", "third", 5, 9, Raw()),
        layer("again", "second", 17, 13, Raw()),
        layer("beside", "final.operand", 3, 30, Raw()),
    )
    outputs = tuple(IntegerOutput(name, name, (1, 1)) for name in ("again", "shown", "beside"))
    long = replace(network, operations=network.operations + chain, outputs=network.outputs + outputs)
    assert_equals_reference(long, 3, 8, 1)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_random_networks_on_random_shapes(data: st.DataObject) -> None:
    block = data.draw(st.sampled_from([8, 16]))
    heads = data.draw(st.integers(1, 3))
    experts = data.draw(st.integers(2, 6))
    sizes = Sizes(
        tokens=data.draw(st.integers(3, 14)),
        width=heads * data.draw(st.integers(3, 11)),
        heads=heads,
        layers=2,
        mlp=data.draw(st.integers(1, 30)),
        experts=experts,
        hidden=data.draw(st.integers(1, 30)),
        k=data.draw(st.integers(1, experts)),
        tasks=1,
        prefix=data.draw(st.integers(0, 2)),
        patch=(2, 3),
        head=data.draw(st.sampled_from([0, 9])),
        biased=data.draw(st.booleans()),
    )
    network = random_integer_network(data.draw(st.integers(0, 99)), data.draw(st.sampled_from([W8A8, W16A16])), sizes)
    token_blocks, head_groups = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    assert_equals_reference(network, data.draw(st.integers(1, block)), block, 0, token_blocks, head_groups)
