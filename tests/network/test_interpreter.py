"""The float interpreter against formulas written out one token at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.network.interpreter import Routing, activation, erf, evaluate, outputs, run, top_k
from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    Embed,
    Experts,
    FloatArray,
    LayerNorm,
    Linear,
    Network,
    NetworkInput,
    NetworkOutput,
    Route,
    SelectTokens,
)

RNG = np.random.default_rng(0)
SAMPLES, CHANNELS, EXPERTS, TASKS = 3, 8, 4, 2


def array(*shape: int) -> FloatArray:
    return RNG.standard_normal(shape).astype(np.float32)


def network() -> Network:
    """One block with experts, two tasks, a head on the class token and the tokens themselves as outputs."""
    operations = (
        Embed("embed0", "image", "embed0", array(CHANNELS, 2, 4, 4), array(CHANNELS), array(1, CHANNELS), array(7, CHANNELS)),
        LayerNorm("norm0", "embed0", "norm0", array(CHANNELS), array(CHANNELS), 1e-6),
        Linear("q", "norm0", "q", array(CHANNELS, CHANNELS), array(CHANNELS)),
        Linear("k", "norm0", "k", array(CHANNELS, CHANNELS), array(CHANNELS)),
        Attention("attention0", "q", "k", "norm0", "attention0", 2, 0.5),
        Add("add0", "embed0", "attention0", "add0"),
        Route("route0", "add0", "route0", array(TASKS, EXPERTS, CHANNELS), array(TASKS, EXPERTS), 2, "all"),
        Experts(
            "experts0", "add0", "route0", "experts0", array(EXPERTS, 5, CHANNELS), array(EXPERTS, 5),
            array(EXPERTS, CHANNELS, 5), array(EXPERTS, CHANNELS), "exact",
        ),
        Activation("gelu0", "experts0", "gelu0", "tanh"),
        SelectTokens("select0", "gelu0", "select0", 0, 1),
    )  # fmt: skip
    shown = (NetworkOutput("class", "select0", (1, CHANNELS)), NetworkOutput("tokens", "add0", (1, 7, CHANNELS)))
    return Network("net", NetworkInput("image", (2, 8, 12)), operations, shown, TASKS, "task")


NETWORK = network()
IMAGES = array(SAMPLES, 2, 8, 12)
VALUES = run(NETWORK, IMAGES, task=1, keep=True)


def value(name: str) -> FloatArray:
    found = VALUES[name]
    assert isinstance(found, np.ndarray)
    return found


def operation(name: str) -> object:
    return next(o for o in NETWORK.operations if o.name == name)


def test_embed_takes_patches_row_by_row_after_the_leading_token() -> None:
    embed = operation("embed0")
    assert isinstance(embed, Embed)
    for sample in range(SAMPLES):
        np.testing.assert_allclose(value("embed0")[sample, 0], embed.prefix[0] + embed.position[0], rtol=1e-6)
        for row in range(2):
            for column in range(3):
                patch = IMAGES[sample, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                expected = (embed.weight * patch).sum((1, 2, 3)) + embed.bias + embed.position[1 + 3 * row + column]
                np.testing.assert_allclose(
                    value("embed0")[sample, 1 + 3 * row + column], expected, rtol=1e-4, atol=1e-5
                )


def test_attention_of_one_query() -> None:
    q, k, v = value("q"), value("k"), value("norm0")
    for head in (slice(0, 4), slice(4, 8)):
        scores = k[1, :, head] @ q[1, 3, head] * 0.5
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(value("attention0")[1, 3, head], weights @ v[1, :, head], rtol=1e-4, atol=1e-5)


def test_experts_of_one_token_weigh_the_two_largest_logits_of_the_task() -> None:
    route, experts, x = operation("route0"), operation("experts0"), value("add0")[2, 4]
    assert isinstance(route, Route)
    assert isinstance(experts, Experts)
    logits = route.weight[1] @ x + route.bias[1]
    gates = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    expected = np.zeros(CHANNELS)
    for e in np.argsort(-logits)[:2]:
        hidden = activation(experts.first_weight[e] @ x + experts.first_bias[e], "exact")
        expected += gates[e] * (experts.second_weight[e] @ hidden + experts.second_bias[e])
    np.testing.assert_allclose(value("experts0")[2, 4], expected, rtol=1e-4, atol=1e-5)


def test_a_gate_over_the_chosen_experts_sums_to_one() -> None:
    route = operation("route0")
    assert isinstance(route, Route)
    routing = evaluate(replace(route, normalisation="chosen"), VALUES, task=0)
    assert isinstance(routing, Routing)
    np.testing.assert_allclose(routing.gates.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(routing.gates, -1)[..., ::-1], routing.gates)


def test_forced_choices_are_taken_with_gates_from_their_own_logits() -> None:
    free = VALUES["route0"]
    assert isinstance(free, Routing)
    swapped = free.indices[..., ::-1].copy()
    values = run(NETWORK, IMAGES, task=1, routing={"route0": swapped}, keep=True)
    routing = values["route0"]
    assert isinstance(routing, Routing)
    np.testing.assert_array_equal(routing.indices, swapped)
    np.testing.assert_array_equal(routing.gates, free.gates[..., ::-1])
    np.testing.assert_allclose(values["experts0"], value("experts0"), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_forced_choices_of_another_shape_are_refused() -> None:
    with pytest.raises(MoehlsError, match="route0"):
        run(NETWORK, IMAGES, routing={"route0": np.zeros((SAMPLES, 7, 3), np.int64)})


def test_samples_do_not_meet() -> None:
    alone = run(NETWORK, IMAGES[1:2], task=1)
    np.testing.assert_allclose(alone["select0"], value("select0")[1:2], rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_values_are_forgotten_unless_kept() -> None:
    assert set(run(NETWORK, IMAGES)) == {"select0", "add0"}
    assert set(VALUES) == {"image", *(o.output for o in NETWORK.operations)}


def test_outputs_put_the_samples_in_the_place_of_a_leading_one() -> None:
    shown = outputs(NETWORK, VALUES)
    assert {name: found.shape for name, found in shown.items()} == {"class": (3, 8), "tokens": (3, 7, 8)}


@pytest.mark.parametrize("task", [-1, 2])
def test_a_task_the_network_does_not_have(task: int) -> None:
    with pytest.raises(MoehlsError, match="tasks 0 to 1"):
        run(NETWORK, IMAGES, task=task)


def test_images_of_another_shape() -> None:
    with pytest.raises(MoehlsError, match=r"\[samples, 2, 8, 12\]"):
        run(NETWORK, IMAGES[:, :, :4])


def test_equal_logits_go_to_the_lower_index() -> None:
    assert top_k(np.array([[1, 3, 3, 1]], np.float32), 3).tolist() == [[1, 2, 0]]


def test_erf_and_gelu_to_float32_accuracy() -> None:
    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    exact = np.array([math.erf(float(each)) for each in x])
    assert np.abs(erf(x) - exact).max() < 2e-7
    wanted = [0.5 * float(each) * (1 + math.erf(float(each) / math.sqrt(2))) for each in x]
    assert np.abs(activation(x, "exact") - wanted).max() < 1e-6
    assert 1e-4 < np.abs(activation(x, "tanh") - activation(x, "exact")).max() < 1e-3
