"""A wrong recognition, planted by hand, never passes the comparison with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.frontend.check import check_network, relative_error
from moehls.frontend.load import load_model
from moehls.frontend.lower import Reading, read_graph
from moehls.frontend.normalise import normalise
from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    Constant,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    MeanTokens,
    Network,
    Operation,
    Route,
    SelectTokens,
)
from tests.frontend.support import fixture, names

Change = Callable[[Any], Operation]


def reading(name: str) -> Reading:
    loaded = load_model(fixture(name), {})
    return read_graph(normalise(loaded.model, name), loaded.inputs, loaded.opset, name, 0)


def planted(network: Network, kind: type, change: Change, number: int = 0) -> Network:
    """The network with its operation `number` of a kind changed."""
    places = [i for i, operation in enumerate(network.operations) if isinstance(operation, kind)]
    operations = list(network.operations)
    operations[places[number]] = change(operations[places[number]])
    return replace(network, operations=tuple(operations))


def swap_experts(o: Experts) -> Experts:
    order = [1, 0, 2, 3]
    return replace(o, first_weight=o.first_weight[order], first_bias=o.first_bias[order])


def swap_branches(o: Experts) -> Experts:
    return replace(o, first_weight=o.up_weight, up_weight=o.first_weight)


WRONG: dict[str, tuple[type, Change]] = {
    "patches in column order": (Embed, lambda o: replace(o, weight=o.weight.transpose(0, 1, 3, 2))),
    "positions shifted": (Embed, lambda o: replace(o, position=np.roll(o.position, 1, axis=0))),
    "class token missing": (Embed, lambda o: replace(o, prefix=o.prefix * 0)),
    "epsilon of another norm": (LayerNorm, lambda o: replace(o, epsilon=1e-3)),
    "norm without bias": (LayerNorm, lambda o: replace(o, bias=o.bias * 0)),
    "linear without bias": (Linear, lambda o: replace(o, bias=o.bias * 0)),
    "outputs of a linear swapped": (Linear, lambda o: replace(o, weight=o.weight[::-1])),
    "query and key swapped": (Attention, lambda o: replace(o, query=o.key, key=o.query)),
    "scale forgotten": (Attention, lambda o: replace(o, scale=1.0)),
    "another number of heads": (Attention, lambda o: replace(o, heads=4)),
    "tanh in place of exact GELU": (Activation, lambda o: replace(o, form="tanh")),
    "two experts swapped": (Experts, swap_experts),
    "second bias missing": (Experts, lambda o: replace(o, second_bias=o.second_bias * 0)),
    "renormalised gate": (Route, lambda o: replace(o, normalisation="chosen")),
    "k one too small": (Route, lambda o: replace(o, k=o.k - 1)),
    "k one too large": (Route, lambda o: replace(o, k=o.k + 1)),
    "router columns permuted": (Route, lambda o: replace(o, weight=o.weight[:, ::-1], bias=o.bias[:, ::-1])),
    "tasks swapped": (Route, lambda o: replace(o, weight=o.weight[::-1])),
    "another token selected": (SelectTokens, lambda o: replace(o, start=o.start + 1, stop=o.stop + 1)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_planted_error_is_caught(wrong: str) -> None:
    kind, change = WRONG[wrong]
    found = reading("task_stacked-dynamo18")
    assert found.network is not None
    path = fixture("task_stacked-dynamo18")
    check_network(found.network, path, found, 0)
    with pytest.raises(MoehlsError, match="does not compute what the file does"):
        check_network(planted(found.network, kind, change), path, found, 0)


GATED: dict[str, tuple[type, Change, int]] = {
    "gate and other branch swapped": (Experts, swap_branches, 0),
    "other branch of another expert": (Experts, lambda o: replace(o, up_weight=o.up_weight[[1, 0, 2, 3]]), 0),
    "GELU in place of SiLU": (Activation, lambda o: replace(o, form="exact"), 0),
    "quick GELU in place of SiLU": (Experts, lambda o: replace(o, form="quick"), 0),
    "LayerNorm in place of RMSNorm": (LayerNorm, lambda o: replace(o, centred=True), 1),
    "another sigmoid beside the routed experts": (Route, lambda o: replace(o, weight=-o.weight), 1),
    "shared expert without its gate": (Route, lambda o: replace(o, weight=o.weight * 0), 1),
}


@pytest.mark.parametrize("wrong", GATED)
def test_a_planted_error_in_gated_and_shared_experts_is_caught(wrong: str) -> None:
    kind, change, number = GATED[wrong]
    found = reading("shared_gated-dynamo20")
    assert found.network is not None
    path = fixture("shared_gated-dynamo20")
    check_network(found.network, path, found, 0)
    with pytest.raises(MoehlsError, match="does not compute what the file does"):
        check_network(planted(found.network, kind, change, number), path, found, 0)


FORMS: dict[str, tuple[str, type, Change]] = {
    "another order of priority": ("capacity_choice-ts17", Route, lambda o: replace(o, priority="token")),
    "a larger capacity": ("capacity_tokens-dynamo20", Route, lambda o: replace(o, capacity=o.capacity + 1)),
    "capacity forgotten": ("capacity_mask-ts17", Route, lambda o: replace(o, capacity=0)),
    "gates of choices without room": ("published_room-ts17", Route, lambda o: replace(o, room=False)),
    "threshold forgotten": ("gate_pruned-ts17", Route, lambda o: replace(o, threshold=0.0)),
    "rest not renormalised": ("gate_pruned_rest-dynamo20", Route, lambda o: replace(o, renormalise=False)),
    "what a threshold leaves out takes places": ("capacity_kept-ts17", Route, lambda o: replace(o, threshold=1e-9)),
    "sigmoids divided by their sum": ("gate_sigmoid-ts17", Route, lambda o: replace(o, normalisation="chosen")),
    "sigmoids as a softmax": ("gate_sigmoid_chosen-ts17", Route, lambda o: replace(o, score="softmax")),
    "groups forgotten": ("gate_grouped-ts17", Route, lambda o: replace(o, group=0, kept_groups=0)),
    "router on the experts' norm": ("gate_residual-ts17", Route, lambda o: replace(o, input="norm3")),
    "bias dropped": ("timm_beit_relative-ts17", Attention, lambda o: replace(o, bias=None)),
    "bias transposed": ("timm_beit_relative-dynamo23", Attention, lambda o: replace(o, bias=o.bias.swapaxes(1, 2))),
    "bias of another head": ("timm_beit_shared-ts17", Attention, lambda o: replace(o, bias=o.bias[::-1])),
    "bias subtracted": ("attention_bias-dynamo20", Attention, lambda o: replace(o, bias=-o.bias)),
    "bias beside the scale": (
        "attention_bias_scaled-ts17",
        Attention,
        lambda o: replace(o, bias=o.bias / np.float32(o.scale)),
    ),
    "mask of the next key": ("attention_hidden-dynamo23", Attention, lambda o: replace(o, bias=o.bias[:, ::-1, ::-1])),
    "mask dropped": ("attention_causal-ts17", Attention, lambda o: replace(o, bias=None)),
    "queries without their norm": ("qk_norm-ts17", Attention, lambda o: replace(o, query="linear0")),
    "slots in another order": ("soft_einsum-ts17", Constant, lambda o: replace(o, rows=o.rows[::-1])),
    "slots to another expert": ("soft_loop-ts17", Route, lambda o: replace(o, weight=o.weight[:, ::-1])),
    "bias of the choice forgotten": ("gate_selected-ts17", Route, lambda o: replace(o, selection=None)),
    "groups by one of their best": ("gate_selected_groups-ts17", Route, lambda o: replace(o, pairs=False)),
    "outputs weighed, not inputs": ("weighed_inputs-ts17", Experts, lambda o: replace(o, weigh_inputs=False)),
    "one activation for two": ("activations_gelus-dynamo20", Activation, lambda o: replace(o, form="tanh")),
    "class token of another row": ("embed_norm-ts17", Constant, lambda o: replace(o, rows=o.rows[::-1])),
    "offset of a norm twice": (
        "embed_norm_positions-ts17",
        LayerNorm,
        lambda o: replace(o, bias=o.bias + o.weight / 9),
    ),
    "class token as patches are": ("embed_norm-dynamo20", Embed, lambda o: replace(o, prefix=o.prefix + o.bias)),
    "queries of a first block without a norm": ("post_norm_first-ts17", Attention, lambda o: replace(o, query=o.key)),
    "stream before its norm": ("pre_norm-ts17", Add, lambda o: replace(o, left="embed0")),
    "mean with the class token": ("mean_then_norm-ts17", MeanTokens, lambda o: replace(o, start=0)),
    "normalised queries over all channels": ("qk_norm-ts17", LayerNorm, lambda o: replace(o, epsilon=0.1)),
    "keys without their norm": ("qk_norm_rms-ts17", Attention, lambda o: replace(o, key="linear1")),
    "exact in place of quick GELU": ("activation_quick-ts17", Activation, lambda o: replace(o, form="exact")),
    "ReLU in place of SiLU": ("activation_silu_written-ts17", Activation, lambda o: replace(o, form="relu")),
    "SiLU in place of ReLU": ("activation_relu-dynamo20", Activation, lambda o: replace(o, form="silu")),
    "exact in place of tanh GELU": ("gelu_tanh_written-ts17", Activation, lambda o: replace(o, form="exact")),
    "gated MLP's branches swapped": ("gated_silu-ts17", Activation, lambda o: replace(o, input="linear1")),
    "layer scale forgotten": ("timm_deit3-ts17", Linear, lambda o: replace(o, weight=o.weight * 1.001)),
    "image not normalised": ("embed_normalised-ts17", Embed, lambda o: replace(o, bias=o.bias * 0)),
    "colours in another order": ("embed_reversed-ts17", Embed, lambda o: replace(o, weight=o.weight[:, ::-1])),
    "bytes of another colour": ("embed_bytes-ts17", Embed, lambda o: replace(o, weight=o.weight[:, ::-1])),
    "features of another block": ("timm_features-ts17", SelectTokens, lambda o: replace(o, input="norm1")),
    "mean of the other tokens": ("timm_mean_all-ts17", MeanTokens, lambda o: replace(o, stop=o.stop - 1)),
    "a head of the other token": ("distilled-ts17", SelectTokens, lambda o: replace(o, start=1, stop=2)),
    "tanh in place of ReLU in an operator": ("ort_optimised_tanh-ts17", Activation, lambda o: replace(o, form="exact")),
    "exact GELU of a MoE operator": ("ort_moe-dynamo20", Experts, lambda o: replace(o, form="exact")),
    "weights of an operator's experts": ("ort_moe-dynamo20", Experts, swap_experts),
    "another constant of a task": ("task_joined-ts17", Route, lambda o: replace(o, bias=o.bias[::-1])),
    "a quantised weight without its rounding": (
        "qdq_plain-dynamo20",
        Linear,
        lambda o: replace(o, weight=o.weight * 1.002),
    ),
}


@pytest.mark.parametrize("wrong", FORMS)
def test_a_planted_error_in_another_form_is_caught(wrong: str) -> None:
    name, kind, change = FORMS[wrong]
    found = reading(name)
    assert found.network is not None
    check_network(found.network, fixture(name), found, 0)
    with pytest.raises(MoehlsError, match="does not compute what the file does"):
        check_network(planted(found.network, kind, change), fixture(name), found, 0)


STYLES = (
    *(
        name
        for name in names()
        if name.startswith("experts_") and "half" not in name and name.endswith(("ts17", "sorted-dynamo20"))
    ),
    "experts_condition-dynamo20",
    "experts_repeat-dynamo20",
    "gate_one_assign-dynamo20",
    "weighed_inputs_gather-ts17",
    "weighed_inputs_index_add-dynamo20",
    "weighed_inputs_loop-ts17",
)


@pytest.mark.parametrize("name", STYLES)
def test_a_swapped_expert_is_caught_in_every_style(name: str) -> None:
    found = reading(name)
    assert found.network is not None
    with pytest.raises(MoehlsError, match="does not compute what the file does"):
        check_network(planted(found.network, Experts, swap_experts), fixture(name), found, 0)


def test_a_near_tie_is_decided_as_onnxruntime_decides_it() -> None:
    """Two experts with all but equal logits: either choice is right, so the check follows the file's."""
    found = reading("experts_loop-dynamo20")
    assert found.network is not None

    def tie(route: Route) -> Route:
        return replace(route, bias=route.bias + np.float32(1e-6) * np.arange(4, dtype=np.float32))

    check_network(planted(found.network, Route, tie), fixture("experts_loop-dynamo20"), found, 0)


def test_a_small_error_in_the_logits_is_caught_even_where_no_choice_changes() -> None:
    found = reading("experts_loop-dynamo20")
    assert found.network is not None
    wrong = planted(found.network, Route, lambda o: replace(o, bias=o.bias + np.float32(1e-3)))
    with pytest.raises(MoehlsError, match="logits of router route0"):
        check_network(wrong, fixture("experts_loop-dynamo20"), found, 0)


def test_relative_error() -> None:
    ones = np.ones((2, 3), np.float32)
    assert relative_error(ones, ones) == 0
    assert relative_error(1.1 * ones, ones) == pytest.approx(0.1)
    assert relative_error(np.ones((3, 2)), ones) == float("inf")
    assert relative_error(ones * np.nan, ones) == float("inf")
