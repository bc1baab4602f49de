"""The C++ equals the NumPy reference: random networks on several shapes, every value of every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moehls.emit.hls import emit_hls
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntegerAttention, IntegerNetwork
from moehls.integer.precision import W8A8, W16A16, Precision
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
from moehls.simulate.csim import Library, Memories, build
from tests.support.random_networks import Sizes, random_image, random_integer_network

SHAPES = {
    "w8a8": Shape(W8A8, 4, 8, 4, 2, 256, 128, 64, 64, 8, 8, 32, 6, 64),
    "w16a16": Shape(W16A16, 6, 16, 8, 4, 256, 128, 64, 64, 8, 8, 32, 6, 64),
}


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    """A library a shape, compiled once."""
    built = {}
    for name, shape in SHAPES.items():
        project = tmp_path_factory.mktemp(name)
        emit_hls(shape, "exact", project)
        built[name] = build(project)
    return built


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


def assert_equals_reference(library: Library, shape: Shape, network: IntegerNetwork, task: int) -> None:
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
                np.testing.assert_array_equal(tensor(stage.place, memories, shape), reference, err_msg=stage.value)
                compared.add(stage.value)

    library.load(port_chunks(stream_words(program, shape), shape.ports))
    pixels = input_bytes(quantise_image(network, image), program.input, shape)
    results = library.run(pixels, program.output_beats, task, compare)
    for name, value in output_tensors(results, program.outputs).items():
        source = next(output.value for output in network.outputs if output.name == name)
        np.testing.assert_array_equal(value, expected.array(source), err_msg=name)
    unread = {operation.fine for operation in network.operations if hasattr(operation, "fine")}
    assert set(expected.values) - compared - unread == {network.input.name}


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("task", [0, 1])
def test_every_value_equals_the_reference(libraries: dict[str, Library], precision: Precision, task: int) -> None:
    network = random_integer_network(1, precision, normalisation="chosen" if task else "all")
    assert_equals_reference(libraries[precision.name], SHAPES[precision.name], network, task)
