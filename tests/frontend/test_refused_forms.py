"""Forms of published models that the accelerator has no step for are refused by their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.frontend.support import insert_after, nodes, refusals


def constant(graph: onnx.GraphProto, name: str, array: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def weighed(graph: onnx.GraphProto, source: str, columns: int) -> list[onnx.NodeProto]:
    """A softmax of `columns` logits of 8 channels."""
    weight = np.random.default_rng(0).standard_normal((8, columns)).astype(np.float32)
    return [
        helper.make_node(
            "MatMul", [source, constant(graph, "second", weight)], ["second_logits"], name="second_logits"
        ),
        helper.make_node("Softmax", ["second_logits"], ["second_softmax"], name="second_softmax", axis=-1),
    ]


def test_rotary_positions(tmp_path: Path) -> None:
    """Factors that differ from token to token; what is turned is no refusal of its own."""

    def edit(graph: onnx.GraphProto) -> None:
        norm = nodes(graph, "LayerNormalization")[0]
        table = constant(graph, "cosines", np.cos(np.arange(7 * 8, dtype=np.float32)).reshape(1, 7, 8))
        insert_after(graph, norm, helper.make_node("Identity", [""], [""], name="plain"))
        turned = [
            helper.make_node("MatMul", ["plain_in", constant(graph, "eye", np.eye(8, dtype=np.float32))], ["product"]),
            helper.make_node("Split", ["product"], ["left", "right"], name="halves", axis=-1, num_outputs=2),
            helper.make_node("Neg", ["right"], ["negative"], name="negative"),
            helper.make_node("Concat", ["negative", "left"], ["turned"], name="turned", axis=-1),
            helper.make_node("Mul", ["turned", table], ["rotated"], name="rotated"),
        ]
        plain = next(node for node in graph.node if node.name == "plain")
        turned[0].input[0], plain.input[0] = plain.input[0], "rotated"
        place = list(graph.node).index(plain)
        for node in reversed(turned):
            graph.node.insert(place, node)

    (found,) = refusals("plain-dynamo20", tmp_path, edit)
    assert (found.name, found.shapes) == ("rotated", ((1, 7, 8), (1, 7, 8)))
    assert "rotary positions" in found.reason
    assert "added to the tokens" in found.remedy


def test_batch_prioritised_routing(tmp_path: Path) -> None:
    """V-MoE: the tokens with the largest gates fill the experts first."""

    def edit(graph: onnx.GraphProto) -> None:
        first, all_of = constant(graph, "first", np.array(0)), constant(graph, "all_of", np.array([7]))
        topk, places = nodes(graph, "TopK")[-1], next(node for node in graph.node if node.output[0] == "t_1")
        graph.node.insert(
            list(graph.node).index(topk) + 1, helper.make_node("Gather", ["getitem_6", first], ["best"], axis=1)
        )
        ordering = [
            helper.make_node("TopK", ["best", all_of], ["by_gate_values", "order"], name="by_gate"),
            helper.make_node("Gather", ["getitem_7", "order"], ["ordered"], axis=0),
            helper.make_node("TopK", ["order", all_of], ["back_values", "inverse"], largest=0, name="back"),
        ]
        for node in reversed(ordering):
            graph.node.insert(list(graph.node).index(topk) + 2, node)
        next(node for node in graph.node if node.output[0] == "t").input[0] = "ordered"
        insert_after(graph, places, helper.make_node("Gather", ["", "inverse"], [""], axis=0))

    found = refusals("capacity_choice-dynamo20", tmp_path, edit)[-1]
    assert "batch-prioritised routing" in found.reason
    assert "'by_gate'" in found.reason
    assert "batch_priority=False" in found.reason


def test_a_residual_mixture(tmp_path: Path) -> None:
    """DeepSpeed's use_residual: a second softmax weighs the sum of experts."""

    def edit(graph: onnx.GraphProto) -> None:
        total = next(node for node in graph.node if node.output[0] == "view_6")
        start, stop, axis = (constant(graph, f"cut{n}", np.array([n])) for n in (0, 1, 2))
        parts = [
            *weighed(graph, "layer_norm_3", 2),
            helper.make_node("Slice", ["second_softmax", start, stop, axis], ["share"]),
        ]
        for node in reversed(parts):
            graph.node.insert(list(graph.node).index(total), node)
        insert_after(graph, total, helper.make_node("Mul", ["", "share"], [""], name="weighed"))

    found = refusals("capacity_choice-dynamo20", tmp_path, edit)[0]
    assert found.name == "weighed"
    assert "residual mixture" in found.reason
    assert "shared expert" in found.remedy


def test_an_output_of_two_heads(tmp_path: Path) -> None:
    """Each would be computed by the host behind its own matrix."""

    def edit(graph: onnx.GraphProto) -> None:
        logits = graph.output[0].name
        head = next(node for node in graph.node if node.output[0] == logits)
        product = next(node for node in graph.node if node.output[0] in head.input)
        tail = [
            *weighed(graph, product.input[0], 5),
            helper.make_node("Softmax", [logits], ["first_softmax"], axis=-1),
            helper.make_node("Add", ["first_softmax", "second_softmax"], ["both"], name="both"),
        ]
        graph.node.extend(tail)
        graph.output[0].name = "both"

    found = refusals("plain-dynamo20", tmp_path, edit)
    assert found[0].name == "both"
    assert "two heads" in found[0].reason
    assert "what each head computes" in found[0].remedy
