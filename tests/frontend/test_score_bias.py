"""Constant biases and masks of attention are read wherever a graph has them; those that depend on the image are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend import read_network
from moehls.network.operations import Attention, FloatArray
from tests.frontend.support import Edit, edited, insert_after, nodes, refusals

RNG = np.random.default_rng(0)


def biases(name: str, folder: Path, edit: Edit) -> list[FloatArray | None]:
    """Of every attention of an edited fixture, which is compared with onnxruntime."""
    network = read_network(edited(name, folder, edit), {})
    return [operation.bias for operation in network.operations if isinstance(operation, Attention)]


def scores_of(graph: onnx.GraphProto) -> onnx.NodeProto:
    """The node whose output the first softmax reads."""
    softmax = nodes(graph, "Softmax")[0]
    return next(node for node in graph.node if softmax.input[0] in node.output)


def on_the_scores(*steps: tuple[str, list[str]], **arrays: np.ndarray) -> Edit:
    """Operators between the scores and the softmax; an empty input name stands for the scores."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
        for number, (op, inputs) in enumerate(steps):
            node = scores_of(graph)
            new = helper.make_node(op, [], ["_"], name=f"{op}{number}")
            new.input.extend(["", *inputs])
            insert_after(graph, node, new)
            if inputs and inputs[0] == "condition":  # the condition comes first
                placed = next(other for other in graph.node if other.name == new.name)
                placed.input[:] = ["condition", new.input[0], inputs[1]]

    return edit


def as_input(op: str, place: int, array: np.ndarray, **attributes: float) -> Edit:
    """The first node `op` with `array` as its input `place`."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(array, "mask"))
        node = nodes(graph, op)[0]
        node.input.extend([""] * (place - len(node.input)))
        node.input.append("mask")
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    return edit


TABLE = RNG.standard_normal((2, 7, 7)).astype(np.float32)
HIDDEN = (RNG.random((7, 7)) < 0.4) & ~np.eye(7, dtype=bool)
LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("name", ["plain-ts17", "plain-dynamo20"])
def test_a_table_a_head_on_the_scores(tmp_path: Path, name: str) -> None:
    (bias,) = biases(name, tmp_path, on_the_scores(("Add", ["table"]), table=TABLE))
    np.testing.assert_array_equal(bias, TABLE)  # type: ignore[arg-type]


def test_a_bias_and_a_mask_one_behind_the_other(tmp_path: Path) -> None:
    edit = on_the_scores(
        ("Sub", ["table"]), ("Mul", ["half"]), ("Where", ["condition", "low"]),
        table=TABLE, half=np.array(0.5, np.float32), condition=~HIDDEN, low=np.array(LOWEST, np.float32),
    )  # fmt: skip
    (bias,) = biases("plain-dynamo20", tmp_path, edit)
    assert bias is not None
    np.testing.assert_array_equal(bias[:, ~HIDDEN], -TABLE[:, ~HIDDEN] / 2)
    assert (bias[:, HIDDEN] < -1e9).all()


def test_biases_and_a_mask_in_one_array(tmp_path: Path) -> None:
    table = np.where(HIDDEN, np.float32(-np.inf), TABLE)
    (bias,) = biases("plain-ts17", tmp_path, on_the_scores(("Add", ["table"]), table=table))
    np.testing.assert_array_equal(bias, table)  # type: ignore[arg-type]


def test_a_square_weight_that_is_infinite_is_no_bias(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for index, tensor in enumerate(graph.initializer):
            array = numpy_helper.to_array(tensor).copy()
            if array.ndim == 2 and array.shape[0] == array.shape[1]:
                array[1, 2] = -np.inf
                graph.initializer[index].CopyFrom(numpy_helper.from_array(array, tensor.name))
                return
        raise AssertionError("no square weight")

    with pytest.raises(MoehlsError):
        read_network(edited("plain-ts17", tmp_path, edit), {})


def test_a_query_that_sees_no_key_sees_all_alike_where_the_mask_is_finite(tmp_path: Path) -> None:
    blind = HIDDEN.copy()
    blind[2] = True
    low = np.where(blind, np.float32(LOWEST), np.float32(0))
    (bias,) = biases("plain-dynamo20", tmp_path, on_the_scores(("Add", ["low"]), low=low))
    assert bias is not None


@pytest.mark.parametrize(
    ("name", "op", "place", "tokens"),
    [
        ("timm_vit-dynamo23", "Attention", 3, 17),
        ("ort_attention-ts17", "Attention", 5, 7),
        ("ort_multi_head-ts17", "MultiHeadAttention", 5, 7),
    ],
)
def test_a_relative_position_bias_of_an_attention_operator(
    tmp_path: Path, name: str, op: str, place: int, tokens: int
) -> None:
    table = RNG.standard_normal((1, 2, tokens, tokens)).astype(np.float32)
    bias = biases(name, tmp_path, as_input(op, place, table))[0]
    np.testing.assert_array_equal(bias, table[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "op", "place"), [("ort_attention-ts17", "Attention", 3), ("ort_multi_head-ts17", "MultiHeadAttention", 4)]
)
def test_a_padding_mask_of_an_attention_operator(tmp_path: Path, name: str, op: str, place: int) -> None:
    seen = np.array([[1, 1, 0, 1, 1, 0, 0]], np.int32)
    (bias,) = biases(name, tmp_path, as_input(op, place, seen))
    assert bias is not None
    np.testing.assert_array_equal(bias, np.broadcast_to(np.where(seen, 0.0, -1e4), (1, 7, 7)))


@pytest.mark.parametrize("name", ["ort_attention-ts17", "ort_multi_head-ts17"])
def test_a_causal_order(tmp_path: Path, name: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.domain)
        node.attribute.append(helper.make_attribute("unidirectional", 1))

    (bias,) = biases(name, tmp_path, edit)
    assert bias is not None
    np.testing.assert_array_equal(np.isneginf(bias[0]), np.triu(np.ones((7, 7)), 1))


def test_a_mask_that_hides_nothing_is_none(tmp_path: Path) -> None:
    edit = on_the_scores(("Add", ["zeros"]), zeros=np.zeros((1, 1, 7), np.float32))
    assert biases("plain-ts17", tmp_path, edit) == [None]


REFUSED = {
    "sees no key": (
        on_the_scores(("Add", ["low"]), low=np.where(np.arange(7)[:, None] == 3, -np.inf, 0.0).astype(np.float32)),
        "hides all keys from query 3",
    ),
    "another shape": (on_the_scores(("Add", ["table"]), table=np.ones((3, 7, 7), np.float32)), "shape [3, 7, 7]"),
    "not low": (
        on_the_scores(("Where", ["condition", "low"]), condition=~HIDDEN, low=np.array(-5.0, np.float32)),
        "replaced by -5",
    ),
    "infinite": (on_the_scores(("Sub", ["low"]), low=np.where(HIDDEN, -np.inf, 0.0).astype(np.float32)), "or infinite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_masks_that_are_refused(tmp_path: Path, name: str) -> None:
    edit, message = REFUSED[name]
    (refusal,) = refusals("plain-dynamo20", tmp_path, edit)
    assert message in refusal.reason
    assert refusal.remedy


def test_a_bias_of_the_image_is_refused(tmp_path: Path) -> None:
    """As a decomposed relative position of queries, or a mask computed of the tokens, would be."""

    def edit(graph: onnx.GraphProto) -> None:
        node = scores_of(graph)
        norm = nodes(graph, "LayerNormalization")[0]
        graph.initializer.append(numpy_helper.from_array(RNG.standard_normal((8, 7)).astype(np.float32), "keys"))
        make = helper.make_node("MatMul", [norm.output[0], "keys"], ["of_tokens"], name="of_tokens")
        graph.node.insert(list(graph.node).index(norm) + 1, make)
        new = helper.make_node("Add", ["", "of_tokens"], ["_"], name="decomposed")
        insert_after(graph, node, new)

    found = refusals("plain-dynamo20", tmp_path, edit)
    assert any(r.name == "decomposed" and "depends on the input" in r.reason and r.remedy for r in found)
