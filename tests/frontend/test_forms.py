"""Every form of every piece, from both exporters, is read as the same network; each reading is checked by onnxruntime."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from moehls.frontend import inspect_model, read_network
from moehls.frontend.check import BOUND
from moehls.network.operations import Attention, Embed, Experts, Gelu, LayerNorm, Network, Route, SelectTokens
from tests.frontend.support import fixture, names

EXPERT_STYLES = [name for name in names() if name.startswith("experts_") and "layer_scale" not in name]
"""All are exports of one model: the experts are written differently, the weights are the same."""


@pytest.mark.parametrize("name", names())
def test_every_form_is_read_and_equals_onnxruntime(name: str) -> None:
    inspection = inspect_model(fixture(name), {})
    assert inspection.unsupported == ()
    assert inspection.float_error is not None
    assert inspection.float_error < BOUND / 10
    assert inspection.summary is not None
    assert inspection.summary.blocks[0].heads == 2


def test_the_fixtures_cover_both_exporters_and_opsets_17_to_23() -> None:
    ends = Counter(name.rsplit("-", 1)[1] for name in names())
    for opset in range(17, 24):
        assert ends[f"ts{opset}"]
        assert ends[f"dynamo{opset}"]


def assert_same(left: Network, right: Network) -> None:
    """The same operations on the same values with arrays equal to float32 rounding."""
    assert [type(o) for o in left.operations] == [type(o) for o in right.operations]
    for first, second in zip(left.operations, right.operations, strict=True):
        for field in dataclasses.fields(first):
            a, b = getattr(first, field.name), getattr(second, field.name)
            if isinstance(a, np.ndarray):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=f"{first.name}.{field.name}")
            elif isinstance(a, float):
                assert a == pytest.approx(b, rel=1e-6)
            else:
                assert a == b, f"{first.name}.{field.name}"


@pytest.mark.parametrize("name", EXPERT_STYLES)
def test_every_style_of_experts_is_the_same_network(name: str) -> None:
    assert_same(read_network(fixture(name), {}), read_network(fixture("experts_dense-ts17"), {}))


@pytest.mark.parametrize("name", ["sdpa", "attention_bmm", "attention_einsum", "attention_scaled_query", "qkv_index"])
def test_every_form_of_attention_is_the_same_network(name: str) -> None:
    wanted = read_network(fixture("plain-ts17"), {})
    found = [read_network(fixture(each), {}) for each in names() if each.rsplit("-", 1)[0] == name]
    assert found
    for network in found:
        assert_same(network, wanted)


def test_the_scale_of_attention_is_not_folded_into_weights() -> None:
    for name in ("plain-ts17", "sdpa-ts17", "sdpa-dynamo23", "attention_scaled_query-ts17"):
        attention = operations(read_network(fixture(name), {}), Attention)[0]
        assert attention.heads == 2
        assert attention.scale == pytest.approx(4**-0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "form"), [("erf", "exact"), ("erf_half", "exact"), ("tanh_written", "tanh"), ("tanh_product", "tanh")]
)
def test_written_gelu_is_gelu(name: str, form: str) -> None:
    for exporter in ("ts17", "dynamo20"):
        network = read_network(fixture(f"gelu_{name}-{exporter}"), {})
        assert [o.form for o in operations(network, Gelu)] == [form]


def operations(network: Network, kind: type) -> list:  # type: ignore[type-arg]
    return [operation for operation in network.operations if isinstance(operation, kind)]


@pytest.mark.parametrize(
    ("name", "prefix"), [("plain", 1), ("position_first", 1), ("registers", 3), ("distilled", 3), ("no_class_token", 0)]
)
def test_leading_tokens_and_positions(name: str, prefix: int) -> None:
    embed = operations(read_network(fixture(f"{name}-ts17"), {}), Embed)[0]
    assert embed.prefix.shape == (prefix, 8)
    assert embed.position.shape == (6 + prefix, 8)
    assert embed.position[prefix:].any()


def test_rearranged_patches_give_the_same_weight_whatever_the_pixel_order() -> None:
    """The linear layer reads channels last in one model; its columns are put back in the order channel, row, column."""
    first = operations(read_network(fixture("embed_linear-ts17"), {}), Embed)[0]
    second = operations(read_network(fixture("embed_linear_channels_last-dynamo20"), {}), Embed)[0]
    columns = first.weight.reshape(8, 2 * 4 * 4)
    reordered = columns.reshape(8, 4, 4, 2).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(second.weight, reordered)


def test_one_normalisation_and_one_selected_token_serve_a_head() -> None:
    """The class token is taken before the last normalisation, so that the head touches one token only."""
    kinds = [type(o) for o in read_network(fixture("plain-ts17"), {}).operations]
    assert kinds[-3:-1] == [SelectTokens, LayerNorm]


@pytest.mark.parametrize(
    ("name", "order"), [("gate_m3vit", "all"), ("gate_topk_softmax", "chosen"), ("gate_renormalise", "chosen")]
)
def test_gate_orders(name: str, order: str) -> None:
    for exporter in ("ts17", "dynamo20"):
        route = operations(read_network(fixture(f"{name}-{exporter}"), {}), Route)[0]
        assert (route.k, route.normalisation) == (2, order)


@pytest.mark.parametrize("exporter", ["ts17", "ts23", "dynamo18", "dynamo23"])
def test_a_stacked_gate_by_task_has_a_weight_a_task(exporter: str) -> None:
    network = read_network(fixture(f"task_stacked-{exporter}"), {})
    assert (network.tasks, network.task_input) == (2, "task")
    route = operations(network, Route)[0]
    assert route.weight.shape == (2, 4, 8)
    assert (route.weight[0] != route.weight[1]).all()


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_a_joined_task_vector_is_a_bias_by_task(exporter: str) -> None:
    route = operations(read_network(fixture(f"task_joined-{exporter}"), {}), Route)[0]
    np.testing.assert_array_equal(route.weight[0], route.weight[1])
    assert (route.bias[0] != route.bias[1]).all()


def test_a_named_batch_dimension_is_one_unless_set_to_what_the_model_cannot_be() -> None:
    for exporter in ("ts17", "dynamo20"):
        free = read_network(fixture(f"experts_dense_dynamic-{exporter}"), {})
        assert_same(free, read_network(fixture(f"experts_dense_dynamic-{exporter}"), {"batch": "1"}))
        assert_same(free, read_network(fixture(f"experts_dense-{exporter}"), {}))


def test_layer_scale_joins_the_weights_before_it() -> None:
    for name in ("layer_scale-ts17", "experts_layer_scale-dynamo20"):
        network = read_network(fixture(name), {})
        plain = read_network(fixture("plain-ts17" if name.startswith("layer") else "experts_dense-ts17"), {})
        assert len(network.operations) <= len(plain.operations) + (1 if operations(network, Experts) else 0)


def test_reading_twice_gives_the_same_network() -> None:
    first, second = (read_network(fixture("experts_gather-dynamo20"), {}) for _ in range(2))
    for a, b in zip(first.operations, second.operations, strict=True):
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
