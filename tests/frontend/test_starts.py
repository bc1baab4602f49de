"""Streams that begin behind a normalisation: class tokens and positions that join it, and blocks without a norm before them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from moehls.frontend import read_network
from moehls.integer.operations import AddResidual, IntegerConstant, IntegerEmbed, IntegerLinear, IntegerNorm
from moehls.integer.precision import W8A8
from moehls.integer.validate import check
from moehls.network.operations import Add, Constant, Embed, LayerNorm, Linear, SelectTokens
from moehls.quantize import quantize, random_calibration
from moehls.reference import run
from tests.frontend.support import edited, fixture, insert_after, nodes, refusals


def test_a_class_token_behind_the_norm_is_a_row_of_zeros_before_it() -> None:
    """Embedding, norm without offset, linear, the rows: the class token is all of its own row."""
    embed, norm, rows, linear, add = read_network(fixture("embed_norm-ts17"), {}).operations[:5]
    assert isinstance(embed, Embed)
    assert isinstance(norm, LayerNorm)
    assert isinstance(rows, Constant)
    assert isinstance(linear, Linear)
    assert isinstance(add, Add)
    assert not (embed.prefix.any() or embed.position[:1].any() or norm.bias.any() or linear.bias.any())
    assert (add.left, add.right) == (rows.output, linear.output)
    graph = onnx.load(str(fixture("embed_norm-ts17"))).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    position = next(array for name, array in arrays.items() if "position" in name)
    token = next(array for name, array in arrays.items() if name.endswith("cls"))
    np.testing.assert_allclose(rows.rows[:1], token[0] + position[0, :1], rtol=1e-6)


def test_the_class_token_survives_quantisation() -> None:
    """Row 0 of the integer stream is the constant row to a unit, whatever the image is."""
    network = read_network(fixture("embed_norm-dynamo20"), {})
    images = random_calibration(network, 0)
    integer = quantize(network, images, W8A8)
    check(integer)
    embed, norm, constant, linear = integer.operations[:4]
    assert isinstance(embed, IntegerEmbed)
    assert isinstance(norm, IntegerNorm)
    assert isinstance(constant, IntegerConstant)
    assert isinstance(linear, IntegerLinear)
    assert linear.epilogue == AddResidual(constant.output)
    assert linear.input == norm.fine
    for image in images[:3]:
        began = run(integer, image).array(linear.output)
        assert np.abs(began[0] - constant.rows[0]).max() <= 1
        assert np.abs(began[1:] - constant.rows[1:]).max() > 100


def test_positions_join_a_normalisation_of_any_stream(tmp_path: Path) -> None:
    """Also that before an attention, beside the residual stream; the same as onnxruntime and mapped."""

    def edit(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[0]
        table = np.arange(7 * 8, dtype=np.float32).reshape(1, 7, 8)
        graph.initializer.append(numpy_helper.from_array(table, "positions"))
        insert_after(graph, norm, helper.make_node("Add", ["", "positions"], ["later"], name="later"))

    network = read_network(edited("plain-ts17", tmp_path, edit), {})
    check(quantize(network, random_calibration(network, 0), W8A8))


def test_a_norm_without_epsilon_takes_no_class_token(tmp_path: Path) -> None:
    """It would not leave rows of zeros zero."""

    def edit(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[0]
        next(each for each in norm.attribute if each.name == "epsilon").f = 0.0

    refusal = refusals("embed_norm-ts17", tmp_path, edit)[0]
    assert refusal.op == "Concat"
    assert "normalisation without epsilon" in refusal.reason


def test_a_projection_is_another_embedding_unless_the_stream_goes_on_beside_it() -> None:
    """`tokens_projected` has a matrix behind its embedding; the first block of a post-norm encoder reads the stream."""
    projected = read_network(fixture("tokens_projected-ts17"), {}).operations
    assert isinstance(projected[1], LayerNorm)
    first = read_network(fixture("post_norm_first-ts17"), {}).operations
    assert isinstance(first[1], SelectTokens)
    assert (first[1].start, first[1].stop) == (0, len(first[0].position) if isinstance(first[0], Embed) else 0)
    assert [type(operation) for operation in first[2:5]] == [Linear] * 3
