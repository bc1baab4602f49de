"""Every form of every piece, from both exporters, is read as the same network; each reading is checked by onnxruntime."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from moehls.frontend import inspect_model, read_network
from moehls.frontend.check import BOUND
from moehls.frontend.oracle import oracle_graph
from moehls.network.operations import Activation, Attention, Embed, Experts, LayerNorm, Network, Route, SelectTokens
from tests.frontend.support import edited, fixture, names
from tests.frontend.table import groups, row

EXPERT_STYLES = [
    name for name in names() if name.startswith("experts_") and "layer_scale" not in name and "half" not in name
]
"""All are exports of one model: the experts are written differently, the weights are the same."""


@pytest.mark.parametrize("name", names())
def test_every_form_is_read_and_equals_onnxruntime(name: str) -> None:
    inspection = inspect_model(fixture(name), {})
    assert inspection.unsupported == ()
    assert inspection.float_error is not None
    assert inspection.float_error < BOUND / 10
    assert inspection.summary is not None
    assert inspection.summary.blocks[0].heads == 2


def test_the_fixtures_cover_opsets_11_to_23_and_both_exporters() -> None:
    ends = Counter(name.rsplit("-", 1)[1] for name in names())
    assert all(ends[f"ts{opset}"] for opset in range(11, 24))
    assert all(ends[f"dynamo{opset}"] for opset in range(17, 24))


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


@pytest.mark.parametrize(
    "name",
    [
        "sdpa",
        "attention_bmm",
        "attention_einsum",
        "attention_scaled_query",
        "attention_open_mask",
        "attention_zero_mask",
        "qkv_index",
        "ort_attention",
        "ort_optimised",
    ],
)
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
        assert [o.form for o in operations(network, Activation)] == [form]


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
def test_a_constant_factor_on_the_gate_goes_to_the_second_layer(exporter: str) -> None:
    scaled = operations(read_network(fixture(f"gate_scaled-{exporter}"), {}), Experts)[0]
    plain = operations(read_network(fixture(f"experts_dense-{exporter}"), {}), Experts)[0]
    np.testing.assert_array_equal(scaled.first_weight, plain.first_weight)
    np.testing.assert_allclose(scaled.second_weight, 2.5 * plain.second_weight, rtol=1e-6)
    np.testing.assert_allclose(scaled.second_bias, 2.5 * plain.second_bias, rtol=1e-6)


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_a_one_hot_task_is_a_task_number_for_the_network(exporter: str) -> None:
    network = read_network(fixture(f"task_vector-{exporter}"), {})
    assert (network.tasks, network.task_input) == (2, "task")
    stacked = read_network(fixture("task_stacked-ts17"), {})
    np.testing.assert_array_equal(operations(network, Route)[0].weight, operations(stacked, Route)[0].weight)


@pytest.mark.parametrize(("name", "order"), [("ort_moe", "all"), ("ort_moe_normalised", "chosen")])
def test_the_moe_operator_has_softmax_top_k_and_tanh_gelu(name: str, order: str) -> None:
    network = read_network(fixture(f"{name}-dynamo20"), {})
    route, experts = operations(network, Route)[0], operations(network, Experts)[0]
    assert (route.k, route.normalisation, experts.form) == (2, order, "tanh")


@pytest.mark.parametrize("name", ["ort_moe-dynamo20", "ort_moe_normalised-dynamo20"])
def test_onnxruntimes_moe_kernel_agrees_with_the_nodes_that_stand_for_it_in_the_check(name: str) -> None:
    """Where the node's inputs are outputs of the graph too; otherwise the kernel differs, and the check does not rely on it."""
    kernel, oracle = onnx.load(str(fixture(name))), onnx.load(str(fixture(name)))
    (moe,) = (node for node in kernel.graph.node if node.domain)
    shown = [moe.input[0], moe.input[1], moe.output[0]]
    oracle_graph(oracle.graph)
    assert not [node for node in oracle.graph.node if node.domain]
    for model in (kernel, oracle):
        model.graph.output.extend(onnx.ValueInfoProto(name=each) for each in shown)
    image = np.random.default_rng(0).standard_normal((1, 2, 8, 12)).astype(np.float32)
    first, second = (
        ort.InferenceSession(model.SerializeToString()).run(shown, {"image": image}) for model in (kernel, oracle)
    )
    for left, right in zip(first, second, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["silu", "relu"])
def test_the_moe_operator_with_another_activation(tmp_path: Path, form: str) -> None:
    """Read, equal to the nodes that stand for it, and these equal to onnxruntime's kernel."""

    def edit(graph: onnx.GraphProto) -> None:
        (moe,) = (node for node in graph.node if node.domain)
        next(a for a in moe.attribute if a.name == "activation_type").s = form.encode()
        gelu = next(node for node in graph.node if node.op_type == "Gelu")
        gelu.op_type, gelu.domain = ("Relu", "") if form == "relu" else ("QuickGelu", "com.microsoft")
        del gelu.attribute[:]
        if form == "silu":
            gelu.attribute.append(helper.make_attribute("alpha", 1.0))

    path = edited("ort_moe-dynamo20", tmp_path, edit)
    network = read_network(path, {})
    assert [o.form for o in operations(network, Experts)] == [form]
    kernel, oracle = onnx.load(str(path)), onnx.load(str(path))
    (moe,) = (node for node in kernel.graph.node if node.op_type == "MoE")
    shown = [moe.input[0], moe.input[1], moe.output[0]]
    oracle_graph(oracle.graph)
    for model in (kernel, oracle):
        model.graph.output.extend(onnx.ValueInfoProto(name=each) for each in shown)
    image = np.random.default_rng(0).standard_normal((1, 2, 8, 12)).astype(np.float32)
    first, second = (
        ort.InferenceSession(model.SerializeToString()).run(shown, {"image": image}) for model in (kernel, oracle)
    )
    for left, right in zip(first, second, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["plain_half-ts17", "plain_half-dynamo20", "ort_half-ts17"])
def test_half_precision_weights_are_kept_and_computed_in_float32(name: str) -> None:
    half = operations(read_network(fixture(name), {}), Embed)[0]
    plain = operations(read_network(fixture("plain-ts17"), {}), Embed)[0]
    np.testing.assert_array_equal(half.weight, plain.weight.astype(np.float16).astype(np.float32))
    assert inspect_model(fixture(name), {}).warnings == ("half-precision values are computed in float32",)


def test_bfloat16_weights_are_kept_and_computed_in_float32(tmp_path: Path) -> None:
    narrow = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)

    def edit(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = numpy_helper.to_array(tensor).astype(narrow)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    path = edited("plain-dynamo20", tmp_path, edit)
    plain = operations(read_network(fixture("plain-dynamo20"), {}), Embed)[0]
    found = operations(read_network(path, {}), Embed)[0]
    np.testing.assert_array_equal(found.weight, plain.weight.astype(narrow).astype(np.float32))
    assert inspect_model(path, {}).warnings == ("half-precision values are computed in float32",)


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
        assert [type(o) for o in network.operations] == [type(o) for o in plain.operations]


def test_reading_twice_gives_the_same_network() -> None:
    first, second = (read_network(fixture("experts_gather-dynamo20"), {}) for _ in range(2))
    for a, b in zip(first.operations, second.operations, strict=True):
        for field in dataclasses.fields(a):
            np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


def test_weights_that_are_stored_quantised_are_read(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if list(t.dims) == [8, 12])
        codes = np.random.default_rng(0).integers(-90, 90, (8, 12)).astype(np.int8)
        node = helper.make_node("DequantizeLinear", ["codes", "step", "offset"], [tensor.name], name="weight")
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            [
                numpy_helper.from_array(codes, "codes"),
                numpy_helper.from_array(np.array(0.01, np.float32), "step"),
                numpy_helper.from_array(np.array(3, np.int8), "offset"),
            ]
        )
        graph.node.insert(0, node)

    assert operations(read_network(edited("plain-ts19", tmp_path, edit), {}), Activation)


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("gate_pruned-ts17", (2, "all", 0.3, False, 0, "token")),
        ("gate_pruned_chosen-dynamo20", (2, "chosen", 0.3, False, 0, "token")),
        ("gate_pruned_rest-ts17", (2, "all", 0.3, True, 0, "token")),
        ("capacity_choice-dynamo20", (2, "all", 0.0, False, 3, "choice")),
        ("capacity_tokens-ts17", (2, "all", 0.0, False, 3, "token")),
        ("capacity_loop-dynamo20", (2, "all", 0.0, False, 3, "choice")),
        ("capacity_mask-ts17", (2, "all", 0.0, False, 3, "token")),
        ("capacity_kept-dynamo20", (2, "all", 0.3, False, 3, "choice")),
    ],
)
def test_thresholds_and_capacities(name: str, gate: tuple[object, ...]) -> None:
    (route,) = operations(read_network(fixture(name), {}), Route)
    fields = (route.k, route.normalisation, route.threshold, route.renormalise, route.capacity, route.priority)
    assert fields == pytest.approx(gate)


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("gate_sigmoid-ts17", ("sigmoid", "none", 0, 0)),
        ("gate_topk_sigmoid-dynamo20", ("sigmoid", "none", 0, 0)),
        ("gate_sigmoid_chosen-dynamo20", ("sigmoid", "chosen", 0, 0)),
        ("shared_sigmoids-ts17", ("sigmoid", "chosen", 0, 0)),
        ("gate_grouped-ts17", ("softmax", "all", 2, 1)),
        ("gate_selected-ts17", ("sigmoid", "chosen", 0, 0)),
        ("gate_selected_groups-dynamo20", ("sigmoid", "chosen", 3, 2)),
    ],
)
def test_sigmoids_and_groups(name: str, gate: tuple[object, ...]) -> None:
    (route,) = operations(read_network(fixture(name), {}), Route)
    assert (route.score, route.normalisation, route.group, route.kept_groups) == gate


@pytest.mark.parametrize(("name", "pairs"), [("gate_selected-dynamo20", False), ("gate_selected_groups-ts17", True)])
def test_a_bias_for_the_choice_is_found(name: str, pairs: bool) -> None:
    (route,) = operations(read_network(fixture(name), {}), Route)
    assert route.pairs == pairs
    assert route.selection is not None
    np.testing.assert_allclose(route.selection[0], 0.2 + 0.2 * np.sin(np.arange(9)), atol=1e-6)


@pytest.mark.parametrize(("name", "weighs"), [("weighed_inputs-ts17", True), ("gated_experts_dense-dynamo20", False)])
def test_weighed_inputs_are_told_from_weighed_outputs(name: str, weighs: bool) -> None:
    (experts,) = operations(read_network(fixture(name), {}), Experts)
    assert experts.weigh_inputs == weighs


def test_experts_on_slots_are_those_on_tokens() -> None:
    (plain,) = operations(read_network(fixture("experts_dense-ts17"), {}), Experts)
    for name in names():
        if name.startswith("capacity") and "kept" not in name:
            (experts,) = operations(read_network(fixture(name), {}), Experts)
            np.testing.assert_allclose(experts.first_weight, plain.first_weight)
            np.testing.assert_allclose(experts.second_bias, plain.second_bias)


def test_the_documentation_lists_every_form() -> None:
    text = (Path(__file__).parents[2] / "docs" / "frontend.md").read_text()
    for form, opsets in groups().items():
        assert row(form, opsets) in text
