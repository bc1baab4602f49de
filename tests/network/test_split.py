"""Hidden layers in parts compute what they compute whole."""

from __future__ import annotations

import numpy as np
import pytest

from moehls.frontend import read_network
from moehls.network.interpreter import run
from moehls.network.operations import Activation, Add, Experts, Linear, Network
from moehls.network.split import split_hidden
from moehls.project import Project
from moehls.quantize.structure import structure
from tests.frontend.support import fixture


@pytest.fixture(scope="module")
def network(digits: Project) -> Network:
    return digits.network


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("task", [0, 1])
def test_a_split_network_is_the_same_function(network: Network, parts: int, task: int) -> None:
    image = np.random.default_rng(parts).random((1, *network.input.shape), np.float32)
    whole, split = run(network, image, task), run(split_hidden(network, parts), image, task)
    for output in network.outputs:
        np.testing.assert_allclose(split[output.value], whole[output.value], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["gated_fused-ts17", "shared_gated-dynamo20"])
def test_gated_mlps_and_experts_in_parts_are_the_same_function(name: str) -> None:
    whole = read_network(fixture(name), {})
    split = split_hidden(whole, 3)
    structure(split)
    assert len(split.operations) > len(whole.operations)
    image = np.random.default_rng(0).random((1, *whole.input.shape), np.float32)
    expected, found = run(whole, image), run(split, image)
    for output in whole.outputs:
        np.testing.assert_allclose(found[output.value], expected[output.value], rtol=1e-4, atol=1e-5)


def test_every_hidden_layer_is_narrower(network: Network) -> None:
    split = split_hidden(network, 2)

    def widths(found: Network) -> list[int]:
        linear = {op.output: len(op.weight) for op in found.operations if isinstance(op, Linear)}
        mlps = [linear[op.input] for op in found.operations if isinstance(op, Activation)]
        return mlps + [op.first_weight.shape[1] for op in found.operations if isinstance(op, Experts)]

    assert max(widths(split)) * 2 == max(widths(network))
    assert len(widths(split)) == 2 * len(widths(network))


def test_the_second_bias_is_added_once(network: Network) -> None:
    for op in split_hidden(network, 4).operations:
        if isinstance(op, Experts) and not op.name.endswith(".part0"):
            assert not op.second_bias.any()
    first = [op for op in split_hidden(network, 4).operations if isinstance(op, Experts) and op.name.endswith("part0")]
    assert any(op.second_bias.any() for op in first)


def test_names_stay_unique_and_outputs_stay(network: Network) -> None:
    split = split_hidden(network, 3)
    names = [op.output for op in split.operations]
    assert len(names) == len(set(names))
    assert {output.value for output in network.outputs} <= set(names)
    assert {op.output for op in network.operations if isinstance(op, Add)} <= set(names)


def test_one_part_is_the_network_itself(network: Network) -> None:
    assert split_hidden(network, 1) is network
