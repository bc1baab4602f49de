"""What cannot be read is refused: all nodes at once, each with its name, operator, shapes, scope, reason and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend import inspect_model, read_network
from tests.frontend.support import activation, edited, fixture, insert_after, nodes, refusals


def test_every_node_is_listed_at_once(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "Softmax"):
            node.op_type = "Hardmax"
        activation(graph, "Tanh")

    for exporter in ("dynamo20", "ts17"):
        found = refusals(f"experts_dense-{exporter}", tmp_path, edit)
        assert [refusal.op for refusal in found].count("Hardmax") == 3
        assert len([refusal for refusal in found if "none of GELU" in refusal.reason]) == 1


def test_a_refusal_tells_where_and_what_to_do(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        nodes(graph, "Softmax")[0].op_type = "Hardmax"

    for name, scope in (("plain-ts17", "blocks.0/attention"), ("plain-dynamo20", "blocks.0.attention")):
        (refusal,) = refusals(name, tmp_path, edit)
        assert refusal.op == "Hardmax"
        assert refusal.scope == scope
        assert refusal.shapes == ((1, 2, 7, 7),)
        assert refusal.reason
        assert refusal.remedy
        with pytest.raises(MoehlsError, match="Hardmax") as error:
            read_network(tmp_path / "edited.onnx", {})
        assert scope in str(error.value)


def test_noise_of_training_mode(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims and not numpy_helper.to_array(tensor):
                tensor.CopyFrom(numpy_helper.from_array(np.float32(0.25), tensor.name))

    found = refusals("gate_m3vit-dynamo20", tmp_path, edit)
    assert any("noise" in refusal.reason and "eval" in refusal.remedy for refusal in found)


def test_a_task_input_that_no_node_reads_is_warned_of(tmp_path: Path) -> None:
    """What an exporter leaves where it bakes in the gate of the example's task."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("task", onnx.TensorProto.INT64, []))

    path = edited("experts_loop-ts17", tmp_path, edit)
    (warning,) = inspect_model(path, {}).warnings
    assert "'task'" in warning
    assert "ModuleList" in warning
    heard: list[str] = []
    network = read_network(path, {}, warn=heard.append)
    assert heard == [warning]
    assert (network.tasks, network.task_input) == (1, None)


def test_a_one_hot_input_is_mentioned_and_plain_models_are_not() -> None:
    assert "one-hot vector of 2 tasks" in inspect_model(fixture("task_vector-ts17"), {}).warnings[0]
    assert inspect_model(fixture("experts_loop-ts17"), {}).warnings == ()


def test_dropout_in_training_mode(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "ratio"))
        graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
        norm = nodes(graph, "LayerNormalization")[0]
        insert_after(graph, norm, helper.make_node("Dropout", ["", "ratio", "training"], [""], name="drop"))

    (refusal,) = refusals("plain-dynamo20", tmp_path, edit)
    assert refusal.name == "drop"
    assert "eval" in refusal.remedy


def test_names_from_the_graph_are_quoted(tmp_path: Path) -> None:
    evil = 'x"; rm -rf /\n#include <evil>'

    def edit(graph: onnx.GraphProto) -> None:
        softmax = nodes(graph, "Softmax")[0]
        softmax.op_type, softmax.name = "Hardmax", evil

    with pytest.raises(MoehlsError) as error:
        read_network(edited("plain-dynamo20", tmp_path, edit), {})
    assert repr(evil) in str(error.value)
    assert len(str(error.value).splitlines()) == 2


def test_names_in_a_network_come_from_roles_only() -> None:
    network = read_network(fixture("plain-ts17"), {})
    assert all(operation.name.isidentifier() for operation in network.operations)


def quantised(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "step"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero_point"))
    norm = nodes(graph, "LayerNormalization")[0]
    insert_after(graph, norm, helper.make_node("DynamicQuantizeLinear", [""], [""], name="beyond"))
    dynamic = nodes(graph, "DynamicQuantizeLinear")[0]
    dynamic.output.extend(["dynamic_step", "dynamic_zero"])
    insert_after(graph, dynamic, helper.make_node("DequantizeLinear", ["", "step", "zero_point"], [""], name="back"))


def gated(graph: onnx.GraphProto) -> None:
    rng = np.random.default_rng(0)
    graph.initializer.append(numpy_helper.from_array(rng.standard_normal((8, 12)).astype(np.float32), "gate"))
    gelu = nodes(graph, "Gelu")[0]
    bias = next(node for node in graph.node if gelu.input[0] in node.output)
    product = next(node for node in nodes(graph, "MatMul") if node.output[0] in bias.input)
    at = list(graph.node).index(gelu)
    graph.node.insert(at, helper.make_node("MatMul", [product.input[0], "gate"], ["gate_out"], name="gate_product"))
    sigmoid = helper.make_node("Sigmoid", ["gate_out"], ["gate_on"], name="gate_on")
    graph.node.insert(at + 1, sigmoid)
    gelu.op_type, gelu.name = "Mul", "beyond"
    gelu.input.append("gate_on")
    del gelu.attribute[:]


def convolution(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.ones((7, 7, 1), np.float32), "kernel"))
    norm = nodes(graph, "LayerNormalization")[0]
    insert_after(graph, norm, helper.make_node("Conv", ["", "kernel"], [""], name="beyond"))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (quantised, "dynamic scale"),
        (gated, "not an activation and a linear map"),
        (convolution, "convolution of tokens"),
    ],
)
def test_what_the_network_has_no_operation_for_is_named(
    tmp_path: Path, edit: Callable[[onnx.GraphProto], None], reason: str
) -> None:
    found = refusals("plain-dynamo23", tmp_path, edit)
    assert next(refusal.name for refusal in found if reason in refusal.reason) == "beyond"
    assert all(refusal.remedy for refusal in found)


@pytest.mark.parametrize(
    ("op", "odd", "near"), [("Softmax", "Sqrt", "head by head"), ("LayerNormalization", "Round", "plain ViT")]
)
def test_what_no_rule_reads_has_the_nearest_form_as_remedy(op: str, odd: str, near: str, tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        node = nodes(graph, op)[0]
        for other in graph.node:
            other.input[:] = ["odd" if name == node.output[0] else name for name in other.input]
        made = helper.make_node(odd, [node.output[0]], ["odd"], name="odd")
        graph.node.insert(list(graph.node).index(node) + 1, made)

    refusal = refusals("three_matrices-dynamo20", tmp_path, edit)[0]
    assert refusal.name == "odd"
    assert near in refusal.remedy


@pytest.mark.parametrize("op", ["Erf", "Softplus"])
def test_what_the_host_has_no_step_for_is_refused_behind_the_heads(op: str, tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        name = graph.output[0].name
        graph.node.append(helper.make_node(op, [name], ["last"], name="last"))
        graph.output[0].name = "last"
        del graph.output[0].type.tensor_type.shape.dim[:]
        graph.output[0].type.tensor_type.shape.dim.add().dim_param = "some"
        graph.output[0].type.tensor_type.shape.dim.add().dim_param = "any"

    refusal = refusals("plain-dynamo20", tmp_path, edit)[-1]
    assert f"no step for this {op} behind the heads" in refusal.reason
    assert "end the graph at the head's outputs" in refusal.remedy


def test_all_dropouts_of_a_training_export_are_listed(tmp_path: Path) -> None:
    """From the one on the embedded tokens on, although no norm has been read before it."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "ratio"))
        graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
        for number, node in enumerate([nodes(graph, "Add")[0], *nodes(graph, "LayerNormalization")]):
            dropout = helper.make_node("Dropout", ["", "ratio", "training"], [""], name=f"drop{number}")
            insert_after(graph, node, dropout)

    found = refusals("plain-dynamo20", tmp_path, edit)
    assert [refusal.name for refusal in found] == ["drop0", "drop1", "drop2", "drop3"]
    assert {refusal.reason for refusal in found} == {"dropout is active"}


def test_nodes_behind_a_patch_embedding_that_is_none_are_listed_too(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.node.insert(0, helper.make_node("Relu", ["image"], ["clipped"], name="clipped"))
        nodes(graph, "Conv")[0].input[0] = "clipped"
        for node in nodes(graph, "Softmax"):
            node.op_type = "Hardmax"
        activation(graph, "HardSwish")

    found = refusals("plain-dynamo20", tmp_path, edit)
    assert [refusal.op for refusal in found] == ["Relu", "Hardmax", "HardSwish"]


def test_experts_with_another_activation_are_refused_and_so_is_their_gate(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "Gelu")[1:]:
            node.op_type = "HardSwish"
            del node.attribute[:]
        softmax = nodes(graph, "Softmax")[-1]
        graph.initializer.append(numpy_helper.from_array(np.float32(1.01), "bend"))
        insert_after(graph, softmax, helper.make_node("Pow", ["", "bend"], [""], name="bent"))

    found = refusals("experts_index_add-dynamo20", tmp_path, edit)
    assert [refusal.reason for refusal in found][:4] == ["an activation without a table"] * 4
    assert "not a top-2 gate" in found[-1].reason
    assert "route with a softmax" in found[-1].remedy


def test_a_class_token_behind_the_first_norm(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 8), np.float32), "late"))
        norm = nodes(graph, "LayerNormalization")[0]
        insert_after(graph, norm, helper.make_node("Concat", ["", "late"], [""], name="joined", axis=1))

    refusal = refusals("plain-dynamo20", tmp_path, edit)[0]
    assert refusal.name == "joined"
    assert "constant tokens are put behind" in refusal.reason
    assert "before the others" in refusal.remedy


def test_pooling_by_a_learned_query(tmp_path: Path) -> None:
    """The class token's queries replaced by constants."""

    def edit(graph: onnx.GraphProto) -> None:
        rng = np.random.default_rng(0)
        graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal((1, 2, 1, 4)).astype(np.float32), "learned")
        )
        softmax = nodes(graph, "Softmax")[0]
        makers = {node.output[0]: node for node in graph.node}
        product = makers[softmax.input[0]]
        while product.op_type != "MatMul":
            product = makers[product.input[0]]
        product.input[0] = "learned"

    found = refusals("plain-ts17", tmp_path, edit)
    assert any("pool by a class token" in refusal.remedy for refusal in found)
