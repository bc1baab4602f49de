"""The C++ equals the NumPy reference: random networks on several shapes, every value of every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moehls.integer.host import quantise_image
from moehls.integer.operations import IntegerAttention, IntegerNetwork
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.network.operations import Score
from moehls.plan.instruction import ANY_TASK
from moehls.plan.layout import (
    activation_tensor,
    chosen_gates,
    input_bytes,
    output_tensors,
    port_chunks,
    queue_gates,
    raw_tensor,
    residual_tensor,
    stream_words,
)
from moehls.plan.program import build_program
from moehls.plan.shape import Shape
from moehls.plan.steps import Place
from moehls.reference import Routing, run
from moehls.simulate.csim import Memories, build
from tests.csim.conftest import Accelerator
from tests.support.random_networks import Sizes, random_image, random_integer_network


def tensor(place: Place, memories: Memories, shape: Shape) -> np.ndarray:
    match place.memory:
        case "residual":
            return residual_tensor(place, memories.residual(), shape)
        case "raw":
            return raw_tensor(place, memories.raw(), shape)
        case "queue":
            return queue_gates(place, memories.queue(), memories.count(), shape)
        case memory:
            return activation_tensor(place, memories.activation(int(memory[1])), shape)


def assert_equals_reference(accelerator: Accelerator, network: IntegerNetwork, task: int) -> None:
    library, shape = accelerator.library, accelerator.shape
    program = build_program(network, shape)
    image = random_image(network, 7)
    expected = run(network, image, task)
    compared: set[str] = set()

    def compare(step: int, ran: bool, memories: Memories) -> None:
        for stage in program.stages:
            if stage.step == step and stage.task in (ANY_TASK, task):
                reference = expected.values[stage.value]
                if isinstance(reference, Routing):
                    reference = chosen_gates(reference.chosen, reference.gates, stage.place.channels.count)
                else:
                    reference = stage.part(reference)
                np.testing.assert_array_equal(tensor(stage.place, memories, shape), reference, err_msg=stage.name)
                compared.add(stage.value)

    first = program.first_words * shape.word_bits // (128 * shape.ports)
    library.load(port_chunks(stream_words(program, shape), shape.ports), first)
    pixels = input_bytes(quantise_image(network, image), program.input, shape)
    results = library.run(pixels, program.output_beats, task, compare)
    for name, value in output_tensors(results, program.outputs).items():
        source = next(output.value for output in network.outputs if output.name == name)
        np.testing.assert_array_equal(value, expected.array(source), err_msg=name)
    unread = {operation.fine for operation in network.operations if hasattr(operation, "fine")}
    assert set(expected.values) - compared - unread == {network.input.name}


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("task", [0, 1])
def test_every_value_equals_the_reference(
    accelerators: dict[str, Accelerator], precision: Precision, task: int
) -> None:
    network = random_integer_network(1, precision, normalisation="chosen" if task else "all")
    assert_equals_reference(accelerators[precision.name], network, task)


@pytest.mark.parametrize("name", ["odd", "w16a16"])
@pytest.mark.parametrize("task", [0, 1])
def test_gated_mlps_and_experts_shared_experts_and_rms_norms(
    accelerators: dict[str, Accelerator], name: str, task: int
) -> None:
    accelerator = accelerators[name]
    network = random_integer_network(8, accelerator.shape.precision, Sizes(tokens=9, gated=True, centred=False))
    assert_equals_reference(accelerator, network, task)


@pytest.mark.parametrize("name", ["odd", "wide"])
@pytest.mark.parametrize(("token_blocks", "head_groups"), [(2, 2), (4, 3)])
def test_parts_of_values_change_no_number(
    accelerators: dict[str, Accelerator], name: str, token_blocks: int, head_groups: int
) -> None:
    accelerator = accelerators[name]
    shape = replace(accelerator.shape, token_blocks=token_blocks, head_groups=head_groups)
    network = random_integer_network(3, shape.precision, Sizes(tokens=17, head=0, patch=(5, 9)))
    assert_equals_reference(replace(accelerator, shape=shape), network, 1)


def test_frames_follow_each_other_with_another_task(accelerators: dict[str, Accelerator]) -> None:
    network = random_integer_network(5, W8A8, Sizes(tokens=9, prefix=0, head=0, tasks=2))
    for task in (0, 1, 0):
        assert_equals_reference(accelerators["odd"], network, task)


@pytest.mark.parametrize("shape", ["more", "wide"])
@pytest.mark.parametrize(
    "extra",
    [
        Sizes(pooled=True),
        Sizes(layers=4, threshold=12000, capacity=3),
        Sizes(layers=4, threshold=15000, renormalise=True, capacity=4, priority="choice"),
        Sizes(layers=4, capacity=4, priority="choice", room=True),
    ],
    ids=["pool", "token order", "choice order", "room"],
)
def test_what_only_some_models_have(accelerators: dict[str, Accelerator], shape: str, extra: Sizes) -> None:
    accelerator = accelerators[shape]
    for seed, normalisation in ((3, "all"), (4, "chosen")):
        network = random_integer_network(seed, accelerator.shape.precision, extra, normalisation=normalisation)
        routings = [v for v in run(network, random_image(network, 7), 0).values.values() if isinstance(v, Routing)]
        assert any((routing.chosen < 0).any() for routing in routings) != extra.pooled
        assert_equals_reference(accelerator, network, 0)


@pytest.mark.parametrize(("score", "selects"), [("softmax", False), ("sigmoid", False), ("sigmoid", True)])
def test_scores_and_groups_of_experts(accelerators: dict[str, Accelerator], score: Score, selects: bool) -> None:
    accelerator = accelerators["grouped"]
    sizes = Sizes(layers=4, experts=6, k=3, score=score, group=2, kept_groups=2, gated=True, selects=selects)
    sizes = replace(sizes, weigh_inputs=selects)
    for seed, normalisation in ((3, "all"), (4, "chosen"), (5, "none")):
        network = random_integer_network(seed, W8A8, sizes, normalisation=normalisation)
        assert_equals_reference(accelerator, network, 0)


@pytest.mark.parametrize("shape", ["more", "wide"])
@pytest.mark.parametrize("centred", [True, False])
def test_normalised_queries_and_keys(accelerators: dict[str, Accelerator], shape: str, centred: bool) -> None:
    accelerator = accelerators[shape]
    sizes = Sizes(tasks=1, normalised=True, centred=centred)
    assert_equals_reference(accelerator, random_integer_network(4, accelerator.shape.precision, sizes), 0)


@pytest.mark.parametrize("shape", ["more", "wide", "grouped"])
def test_biases_of_scores_and_hidden_keys(accelerators: dict[str, Accelerator], shape: str) -> None:
    accelerator = accelerators[shape]
    network = random_integer_network(
        4, accelerator.shape.precision, Sizes(tasks=1, biased=True, gated=shape == "grouped")
    )
    assert_equals_reference(accelerator, network, 0)


@pytest.mark.parametrize("shape", ["more", "wide"])
@pytest.mark.parametrize("slots", [1, 14])
def test_soft_mixtures(accelerators: dict[str, Accelerator], shape: str, slots: int) -> None:
    accelerator = accelerators[shape]
    network = random_integer_network(4, accelerator.shape.precision, Sizes(tasks=1, slots=slots))
    assert_equals_reference(accelerator, network, 0)


def test_scores_of_the_whole_range(accelerators: dict[str, Accelerator]) -> None:
    """Scores of ±2048: the running exponent rises by more than a probability has bits."""
    network = random_integer_network(3, W8A8, Sizes(layers=1, experts=0, tasks=1))
    loud = [
        replace(operation, score_multiplier=operation.score_multiplier * 0 + 65535, score_shift=np.full(3, 10))
        if isinstance(operation, IntegerAttention)
        else operation
        for operation in network.operations
    ]
    assert_equals_reference(accelerators["w8a8"], replace(network, operations=tuple(loud)), 0)


def test_gpp_and_the_vendors_integers_give_the_same(accelerators: dict[str, Accelerator]) -> None:
    accelerator = accelerators["w8a8"]
    checked = replace(accelerator, library=build(accelerator.project, "g++"))
    assert_equals_reference(checked, random_integer_network(2, W8A8), 1)
