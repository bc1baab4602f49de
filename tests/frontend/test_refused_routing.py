"""Gates that are not those of a router are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.frontend import read_network
from moehls.network.operations import Experts, Route
from tests.frontend.support import edited, fixture, insert_after, nodes, refusals


def after_softmax(graph: onnx.GraphProto, op: str, constant: np.ndarray, name: str) -> None:
    """Put `op(·, constant)` on the gate probabilities."""
    graph.initializer.append(numpy_helper.from_array(constant, f"{name}_constant"))
    softmax = nodes(graph, "Softmax")[-1]
    insert_after(graph, softmax, helper.make_node(op, ["", f"{name}_constant"], [""], name=name))


@pytest.mark.parametrize("op", ["Add", "Pow"])
def test_a_bent_gate_is_not_taken_for_a_scaled_one(tmp_path: Path, op: str) -> None:
    bend = np.array(1.01 if op == "Pow" else 0.01, np.float32)
    found = refusals("experts_loop-ts17", tmp_path, lambda graph: after_softmax(graph, op, bend, "bent"))
    assert any("not a top-2 gate" in refusal.reason for refusal in found)


def test_a_gate_of_zero_is_no_gate(tmp_path: Path) -> None:
    zero = np.array(0, np.float32)
    found = refusals("experts_loop-ts17", tmp_path, lambda graph: after_softmax(graph, "Mul", zero, "zero"))
    assert found


def test_gates_less_a_threshold_are_no_gates(tmp_path: Path) -> None:
    """What is above the threshold is kept as it is; here the threshold is taken off too."""

    def edit(graph: onnx.GraphProto) -> None:
        softmax = nodes(graph, "Softmax")[-1]
        insert_after(graph, softmax, helper.make_node("Shrink", [""], [""], name="prune", lambd=0.05, bias=0.05))

    found = refusals("experts_dense-ts17", tmp_path, edit)
    assert any("not a top-2 gate" in refusal.reason for refusal in found)


def test_permuted_gates_are_followed_not_refused(tmp_path: Path) -> None:
    """The gate weights permuted before they meet the experts: each expert gets the router column it really met."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 0, 3, 1], np.int64), "order"))
        (scatter,) = nodes(graph, "ScatterElements")
        insert_after(graph, scatter, helper.make_node("Gather", ["", "order"], [""], name="permute", axis=-1))

    network = read_network(edited("experts_dense-ts17", tmp_path, edit), {})
    plain = read_network(fixture("experts_dense-ts17"), {})
    (found,), (straight,) = ([o for o in n.operations if isinstance(o, Experts)] for n in (network, plain))
    np.testing.assert_array_equal(found.first_weight[[2, 0, 3, 1]], straight.first_weight)


def test_a_gate_of_other_tokens_is_refused(tmp_path: Path) -> None:
    """The other branch of a gated MLP reads the norm before attention."""

    def edit(graph: onnx.GraphProto) -> None:
        product = next(node for node in nodes(graph, "Mul") if node.name == "node_mul_7")
        up = next(node for node in nodes(graph, "MatMul") if node.output[0] == product.input[1])
        up.input[0] = nodes(graph, "MatMul")[0].input[0]

    found = refusals("gated_silu-dynamo20", tmp_path, edit)
    assert any("something else than a linear map of the same tokens" in refusal.reason for refusal in found)


def test_a_router_with_other_scores_is_refused_once(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for softmax in nodes(graph, "Softmax"):
            if nodes(graph, "TopK")[0].input[0] == softmax.output[0]:
                softmax.op_type = "Tanh"
                del softmax.attribute[:]

    (refusal,) = refusals("gated_experts_loop-dynamo20", tmp_path, edit)
    assert refusal.op == "TopK"
    assert "neither a softmax nor the sigmoids" in refusal.reason


@pytest.mark.parametrize("name", ["gate_sigmoid-ts17", "gate_sigmoid_chosen-dynamo20"])
def test_a_bias_on_the_sigmoids_that_also_weighs_is_refused(name: str, tmp_path: Path) -> None:
    """Unlike DeepSeek-V3's, whose gate weights are the sigmoids without it."""

    def edit(graph: onnx.GraphProto) -> None:
        top = nodes(graph, "TopK")[0]
        graph.initializer.append(numpy_helper.from_array(np.linspace(-0.1, 0.1, 4, dtype=np.float32), "correction"))
        biased = helper.make_node("Add", [top.input[0], "correction"], ["biased"], name="score_bias")
        graph.node.insert(list(graph.node).index(top), biased)
        top.input[0] = "biased"

    (refusal,) = refusals(name, tmp_path, edit)
    assert "not a top-2 gate" in refusal.reason


def negative_bias(graph: onnx.GraphProto, bias: np.ndarray) -> None:
    """The bias of the choice replaced."""
    for tensor in graph.initializer:
        if tensor.dims and tensor.dims[-1] == 9 and np.prod(tensor.dims) == 9:
            given = bias.astype(np.float32).reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(given, tensor.name))


BIASES = {"much": 0.2 * np.sin(np.arange(9.0)) - 0.3, "little": -0.001 * np.arange(1.0, 10.0)}


@pytest.mark.parametrize("bias", BIASES)
def test_a_group_left_out_by_zeros_is_refused_where_ranks_are_negative(tmp_path: Path, bias: str) -> None:
    """An expert of another group, at zero, would be chosen before one with a negative sum of sigmoid and bias."""
    edit = partial(negative_bias, bias=BIASES[bias])
    (refusal,) = refusals("gate_selected_groups-dynamo20", tmp_path, edit)
    assert "at -inf" in refusal.reason


@pytest.mark.parametrize("bias", BIASES)
def test_a_group_left_out_by_infinity_may_have_negative_ranks(tmp_path: Path, bias: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        negative_bias(graph, BIASES[bias])
        (where,) = nodes(graph, "Where")
        constants = {tensor.name: tensor for tensor in graph.initializer}
        place = next(i for i in (1, 2) if where.input[i] in constants)
        graph.initializer.append(numpy_helper.from_array(np.float32(-np.inf), "outside"))
        where.input[place] = "outside"

    network = read_network(edited("gate_selected_groups-dynamo20", tmp_path, edit), {})
    (route,) = (operation for operation in network.operations if isinstance(operation, Route))
    assert (route.group, route.kept_groups, route.pairs) == (3, 2, True)
    assert route.selection is not None
    np.testing.assert_allclose(route.selection[0], BIASES[bias], atol=1e-7)
