"""Attention, normalisation and activations that the network has no operation for are refused, not taken for others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.frontend.support import activation, nodes, refusals


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh", "Exp"])
def test_a_function_that_is_no_activation(tmp_path: Path, op: str) -> None:
    (refusal,) = refusals("plain-dynamo20", tmp_path, lambda graph: activation(graph, op))
    assert "none of GELU" in refusal.reason


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
