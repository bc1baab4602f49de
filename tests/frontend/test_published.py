"""Mixtures of experts as public repositories write them: what they are read as, and what is close to them is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.frontend import inspect_model, read_network
from moehls.frontend.gates import Gate, flat_logits, match_experts, weights_by_value
from moehls.network.operations import Route
from tests.frontend.support import Edit, edited, fixture, insert_after, nodes, refusals
from tests.frontend.test_gates import EXPERTS, mixture

READ = {
    "hit_rows": (2, "chosen", 0),
    "flat_masks": (2, "chosen", 0),
    "top1_gather": (1, "all", 0),
    "argmax_gather": (1, "all", 0),
    "argmax_masks": (1, "all", 0),
    "switch": (1, "all", 3),
    "room": (2, "all", 3),
    "not_below": (2, "chosen", 0),
    "above_next": (2, "all", 0),
    "convolutions": (2, "all", 0),
}
"""k, normalisation, capacity"""


@pytest.mark.parametrize("style", READ)
def test_the_gate_of_a_published_mixture(style: str) -> None:
    network = read_network(fixture(f"published_{style}-dynamo20"), {})
    (route,) = (operation for operation in network.operations if isinstance(operation, Route))
    assert (route.k, route.normalisation, route.capacity) == READ[style]


def renamed(old: str, new: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        nodes(graph, old)[-1].op_type = new

    return edit


def rows_of_another_expert(graph: onnx.GraphProto) -> None:
    first, second = [
        node for node in nodes(graph, "GatherND") if node.input[0] == nodes(graph, "GatherND")[0].input[0]
    ][:2]
    second.input[1] = first.input[1]


def written_to_another_expert(graph: onnx.GraphProto) -> None:
    first, second = nodes(graph, "ScatterND")[:2]
    second.input[1] = first.input[1]


def next_token(graph: onnx.GraphProto) -> None:
    """Off by one: the rows of the tokens behind those that chose the first expert."""
    graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "one"))
    moves = [node for node in graph.node if node.op_type in ("Reshape", "Transpose", "Squeeze")]
    read = {name for node in nodes(graph, "MatMul") for name in node.input}
    for node in reversed(moves):
        read |= {node.input[0]} if node.output[0] in read else set()
    gather = next(node for node in nodes(graph, "GatherND") if node.output[0] in read)
    shifted = helper.make_node("Add", [gather.input[1], "one"], ["shifted"], name="shift")
    graph.node.insert(list(graph.node).index(gather), shifted)
    gather.input[1] = "shifted"


def without_its_mask(graph: onnx.GraphProto) -> None:
    """Every expert takes all tokens for which the capacity holds."""
    product = next(node for node in nodes(graph, "Mul") if "convert" in node.input[1] or "Cast" in node.input[1])
    insert_after(graph, product, helper.make_node("Max", ["", product.input[1]], [""], name="unmasked"))


def softmax_of_tokens(graph: onnx.GraphProto) -> None:
    """Gate weights of the token before."""
    order = np.roll(np.arange(7), 1)
    graph.initializer.append(numpy_helper.from_array(order, "order"))
    insert_after(
        graph, nodes(graph, "Softmax")[-1], helper.make_node("Gather", ["", "order"], [""], name="roll", axis=1)
    )


@pytest.mark.parametrize(
    ("style", "edit", "reason"),
    [
        ("hit_rows", rows_of_another_expert, "other tokens than it got|tokens dispatched"),
        ("hit_rows", next_token, "other tokens than it got"),
        ("hit_rows", written_to_another_expert, "other tokens than it got"),
        ("flat_masks", next_token, "tokens dispatched|other tokens|other rows"),
        ("flat_masks", written_to_another_expert, "other rows|other tokens"),
        ("switch", renamed("LessOrEqual", "Greater"), "not a top-|replace those of other"),
        ("switch", without_its_mask, "replace those of other experts|not a top-"),
        ("switch", written_to_another_expert, "other tokens than it got"),
        ("room", renamed("Less", "LessOrEqual"), "slots|not a top-2 gate"),
        ("room", renamed("Div", "Mul"), "not a top-2 gate"),
        ("not_below", renamed("GreaterOrEqual", "Less"), "not a top-|expert outputs are added"),
        ("above_next", renamed("Greater", "Less"), "not a top-|expert outputs are added"),
        ("top1_gather", renamed("ReduceMax", "ReduceMin"), "not a top-1 gate"),
        ("argmax_masks", renamed("ArgMax", "ArgMin"), "not a top-1 gate"),
        ("convolutions", softmax_of_tokens, "not a top-2 gate"),
    ],
)
def test_what_is_close_to_a_published_mixture_is_refused(tmp_path: Path, style: str, edit: Edit, reason: str) -> None:
    found = refusals(f"published_{style}-dynamo20", tmp_path, edit)
    texts = " ".join(refusal.reason for refusal in found)
    assert any(part in texts for part in reason.split("|")), texts


def test_a_sum_that_no_gate_weighs_is_refused_where_it_is_written(tmp_path: Path) -> None:
    (refusal,) = refusals("published_top1_gather-dynamo20", tmp_path, renamed("ReduceMax", "ReduceMin"))
    assert refusal.op in ("Mul", "Add")
    assert "blocks.1" in refusal.scope


def test_a_convolution_over_several_tokens_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        convolution = nodes(graph, "Conv")[1]
        tensor = next(each for each in graph.initializer if each.name == convolution.input[1])
        wide = np.repeat(numpy_helper.to_array(tensor), 3, axis=2)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
        convolution.attribute.extend([helper.make_attribute("pads", [1, 1])])
        for attribute in [each for each in convolution.attribute if each.name == "pads"][:-1]:
            convolution.attribute.remove(attribute)

    found = refusals("published_convolutions-dynamo20", tmp_path, edit)
    assert any(refusal.op == "Conv" for refusal in found)


def test_outputs_written_over_the_tokens_are_refused(tmp_path: Path) -> None:
    """The first Switch Transformers: tokens without room keep their value."""

    def edit(graph: onnx.GraphProto) -> None:
        nodes(graph, "ScatterND")[0].input[0] = nodes(graph, "GatherND")[0].input[0]

    refusal = refusals("published_switch-dynamo20", tmp_path, edit)[0]
    assert refusal.op == "ScatterND"
    assert "over the tokens themselves" in refusal.reason


def test_a_squeeze_that_onnxruntime_refuses_is_explained(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "second"))
        rows = {node.output[0] for node in nodes(graph, "GatherND")}
        added = {name for node in nodes(graph, "Add") if rows & set(node.input) for name in node.input}
        product = next(node for node in nodes(graph, "Mul") if node.output[0] in added)
        insert_after(graph, product, helper.make_node("Squeeze", ["", "second"], [""], name="idle"))

    inspection = inspect_model(edited("published_flat_masks-dynamo20", tmp_path, edit), {})
    assert any("`squeeze(dim)` does nothing" in refusal.reason for refusal in inspection.unsupported)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("gate", [Gate(2, "all"), Gate(3, "chosen"), Gate(2, "none", score="sigmoid")])
def test_experts_chosen_by_comparison_are_proved_at_ties_too(gate: Gate, kept: bool) -> None:
    whole = mixture(lambda gates: gates, list(range(EXPERTS)), 1, "all")
    gates = weights_by_value(flat_logits(whole.source), gate, kept)
    terms = tuple(replace(term, coefficient=gates[:, e]) for e, term in enumerate(whole.terms))
    assert match_experts(replace(whole, terms=terms)).gate == gate
