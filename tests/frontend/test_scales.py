"""Constants that embedded tokens and the products of gated MLPs are multiplied with go to the weights before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.frontend import read_network
from moehls.network.operations import Embed, Linear
from tests.frontend.support import edited, fixture, insert_after, nodes, refusals

EIGHT = np.linspace(0.5, 2, 8, dtype=np.float32)


def scale(graph: onnx.GraphProto, node: onnx.NodeProto, op: str, constant: np.ndarray) -> None:
    """Put `op(·, constant)` behind `node`."""
    graph.initializer.append(numpy_helper.from_array(constant, "scale"))
    insert_after(graph, node, helper.make_node(op, ["", "scale"], [""], name="scaled"))


@pytest.mark.parametrize(("op", "constant"), [("Mul", np.array(8**0.5, np.float32)), ("Div", EIGHT)])
def test_embedded_tokens_are_scaled(op: str, constant: np.ndarray, tmp_path: Path) -> None:
    """Class token, positions and patches, as `x · sqrt(dim)` does in older transformers."""

    def edit(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[0]
        scale(graph, next(node for node in graph.node if node.output[0] == norm.input[0]), op, constant)

    plain = read_network(fixture("plain-ts17"), {}).operations[0]
    found = read_network(edited("plain-ts17", tmp_path, edit), {}).operations[0]
    assert isinstance(plain, Embed)
    assert isinstance(found, Embed)
    factor = constant if op == "Mul" else 1 / constant
    np.testing.assert_allclose(found.prefix, plain.prefix * factor, rtol=1e-6)
    np.testing.assert_allclose(found.position, plain.position * factor, rtol=1e-6)


def test_embedded_tokens_times_another_constant_each_are_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[0]
        before = next(node for node in graph.node if node.output[0] == norm.input[0])
        scale(graph, before, "Mul", np.linspace(0.5, 2, 7, dtype=np.float32).reshape(1, 7, 1))

    refusal = refusals("plain-ts17", tmp_path, edit)[0]
    assert refusal.name == "scaled"
    assert "differs from token to token" in refusal.reason


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_the_product_of_a_gated_mlp_is_scaled(op: str, tmp_path: Path) -> None:
    """st-moe's `mult_bias`, one factor a hidden channel."""
    constant = np.linspace(0.5, 2, 12, dtype=np.float32)

    def edit(graph: onnx.GraphProto) -> None:
        linears = {node.output[0] for node in nodes(graph, "MatMul")} | {
            node.output[0] for node in nodes(graph, "Gemm")
        }
        added = {node.output[0] for node in nodes(graph, "Add")}
        product = next(
            node
            for node in nodes(graph, "Mul")
            if len(set(node.input) & (linears | added)) == 1 and _is_hidden(graph, node)
        )
        scale(graph, product, op, constant)

    plain = read_network(fixture("gated_silu-dynamo20"), {})
    found = read_network(edited("gated_silu-dynamo20", tmp_path, edit), {})
    changed = [
        (old, new)
        for old, new in zip(plain.operations, found.operations, strict=True)
        if isinstance(old, Linear) and isinstance(new, Linear) and not np.array_equal(old.weight, new.weight)
    ]
    ((old, new),) = changed
    factor = constant if op == "Mul" else 1 / constant
    np.testing.assert_allclose(new.weight, old.weight * factor[:, None], rtol=1e-6)


def _is_hidden(graph: onnx.GraphProto, product: onnx.NodeProto) -> bool:
    """Whether a matrix of 12 columns reads the product."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return any(
        12 in shapes.get(name, ())
        for node in nodes(graph, "MatMul")
        if product.output[0] in node.input
        for name in node.input
    )
