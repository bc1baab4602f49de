"""Attention, normalisation and activations that the network has no operation for are refused, not taken for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.frontend.support import activation, insert_after, nodes, refusals


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp"])
def test_a_function_that_is_no_activation(tmp_path: Path, op: str) -> None:
    (refusal,) = refusals("plain-dynamo20", tmp_path, lambda graph: activation(graph, op))
    assert "none of GELU" in refusal.reason


def test_a_mask_that_is_not_zero(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        mask = np.triu(np.full((7, 7), -1e9, np.float32), 1)
        graph.initializer.append(numpy_helper.from_array(mask, "mask"))
        scores = next(node for node in graph.node if "Softmax" in node.op_type).input[0]
        producer = next(node for node in graph.node if scores in node.output)
        insert_after(graph, producer, helper.make_node("Add", [scores, "mask"], ["masked"], name="causal"))

    (refusal,) = refusals("plain-dynamo20", tmp_path, edit)
    assert refusal.name == "causal"
    assert "mask" in refusal.reason


@pytest.mark.parametrize("name", ["ort_attention-ts17", "ort_multi_head-ts17"])
def test_fused_attention_with_a_causal_order(tmp_path: Path, name: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.domain)
        node.attribute.append(helper.make_attribute("unidirectional", 1))

    (refusal,) = refusals(name, tmp_path, edit)
    assert "causal" in refusal.reason


def masked(graph: onnx.GraphProto, op: str, place: int, shape: tuple[int, ...]) -> None:
    """Give the first node `op` a mask or bias as its input `place`."""
    bias = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(bias, "relative_position_bias"))
    node = nodes(graph, op)[0]
    node.input.extend([""] * (place - len(node.input)))
    node.input.append("relative_position_bias")


@pytest.mark.parametrize(
    ("name", "op", "place"),
    [
        ("timm_vit-dynamo23", "Attention", 3),
        ("ort_attention-ts17", "Attention", 5),
        ("ort_multi_head-ts17", "MultiHeadAttention", 5),
    ],
)
def test_a_relative_position_bias_of_an_attention_operator(tmp_path: Path, name: str, op: str, place: int) -> None:
    tokens = 17 if name.startswith("timm") else 7
    found = refusals(name, tmp_path, lambda graph: masked(graph, op, place, (1, 2, tokens, tokens)))
    assert any(refusal.op == op and "with a mask" in refusal.reason and refusal.remedy for refusal in found)


def test_a_relative_position_bias_on_the_scores(tmp_path: Path) -> None:
    """As in BEiT and Swin: a table a head, added before the softmax."""

    def edit(graph: onnx.GraphProto) -> None:
        bias = np.random.default_rng(0).standard_normal((2, 7, 7)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(bias, "table"))
        softmax = nodes(graph, "Softmax")[0]
        producer = next(node for node in graph.node if softmax.input[0] in node.output)
        insert_after(graph, producer, helper.make_node("Add", ["", "table"], [""], name="bias"))

    (refusal,) = refusals("plain-ts17", tmp_path, edit)
    assert (refusal.name, refusal.shapes[1]) == ("bias", (2, 7, 7))
    assert "mask or bias" in refusal.reason


def test_a_root_mean_square_of_other_rows_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        squares = nodes(graph, "Pow")
        squares[1].input[0] = squares[0].input[0]

    found = refusals("norm_rms_cast-dynamo20", tmp_path, edit)
    assert any("root mean square of other rows" in refusal.reason for refusal in found)


def test_a_norm_of_tokens_is_refused_with_what_to_change(tmp_path: Path) -> None:
    """A norm over the seven tokens, in the place of a head's four channels, put on the queries."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.ones(7, np.float32), "head_weight"))
        scores = next(node for node in graph.node if node.op_type == "MatMul" and reads_heads(node, graph))
        swap = {"perm": [0, 1, 3, 2]}
        steps = (
            helper.make_node("Transpose", [scores.input[0]], ["turned"], name="turn", **swap),
            helper.make_node("LayerNormalization", ["turned", "head_weight"], ["even"], name="q_norm"),
            helper.make_node("Transpose", ["even"], ["normed"], name="back", **swap),
        )
        for step in steps:
            graph.node.insert(list(graph.node).index(scores), step)
        scores.input[0] = "normed"

    refusal = refusals("three_matrices-dynamo20", tmp_path, edit)[0]
    assert refusal.name == "q_norm"
    assert "does not run over the channels" in refusal.reason
    assert "qk_norm=True" in refusal.remedy


def reads_heads(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether both operands of a product are transposed: queries and keys a head."""
    makers = {name: other.op_type for other in graph.node for name in other.output}
    return all(makers.get(name) in ("Transpose", "Mul") for name in node.input)
