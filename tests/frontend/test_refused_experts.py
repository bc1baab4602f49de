"""Sums of expert outputs that are no mixture of experts are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.frontend.support import insert_after, nodes, refusals


@pytest.mark.parametrize("attribute", ["activation_type", "k"])
def test_a_moe_operator_of_another_kind(tmp_path: Path, attribute: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        (moe,) = nodes(graph, "MoE")
        for each in moe.attribute:
            if each.name == attribute:
                each.CopyFrom(helper.make_attribute(attribute, "swiglu" if attribute == "activation_type" else 9))

    (refusal,) = refusals("ort_moe-dynamo20", tmp_path, edit)
    assert refusal.name == "moe"
    assert "activation swiglu" in refusal.reason or "9 of 4 experts" in refusal.reason


@pytest.mark.parametrize(
    ("place", "factor", "reason"),
    [(1, 0.5, "another mixture of tokens"), (0, None, "another token than it holds")],
    ids=["dispatch", "combine"],
)
def test_slots_must_hold_a_token_each(tmp_path: Path, place: int, factor: float | None, reason: str) -> None:
    """Half a token in a slot, which is not soft MoE either; outputs of slots given to the next token."""

    def edit(graph: onnx.GraphProto) -> None:
        tensor = nodes(graph, "Einsum")[place]
        if factor is not None:
            graph.initializer.append(numpy_helper.from_array(np.float32(factor), "half"))
            insert_after(graph, tensor, helper.make_node("Mul", ["", "half"], [""], name="part"))
        else:
            graph.initializer.append(numpy_helper.from_array(np.roll(np.arange(7), 1), "order"))
            insert_after(graph, tensor, helper.make_node("Gather", ["", "order"], [""], name="roll", axis=0))

    found = refusals("capacity_choice-ts17", tmp_path, edit)
    assert any(reason in refusal.reason and refusal.remedy for refusal in found)


@pytest.mark.parametrize("name", ["soft_einsum-ts17", "soft_loop-dynamo20"])
@pytest.mark.parametrize("which", [0, 1], ids=["dispatch", "combine"])
def test_slots_hold_the_softmax_of_their_logits(tmp_path: Path, name: str, which: int) -> None:
    """Another function of the logits, close to the softmax: each softmax of the soft mixture plus a little."""

    def edit(graph: onnx.GraphProto) -> None:
        after = [*nodes(graph, "Softmax"), *nodes(graph, "Div")]
        own = [node for node in after if "/soft/" in node.name or "blocks.1.soft" in str(node.metadata_props)]
        graph.initializer.append(numpy_helper.from_array(np.float32(1e-4), "little"))
        insert_after(graph, own[which], helper.make_node("Add", ["", "little"], [""], name="more"))

    found = refusals(name, tmp_path, edit)
    assert any("softmax of its logits" in refusal.reason and "soft MoE" in refusal.remedy for refusal in found)


def test_an_expert_left_out_at_export(tmp_path: Path) -> None:
    """`if mask.any()` in Python bakes in which experts the export input hit."""

    def edit(graph: onnx.GraphProto) -> None:
        last = [node for node in nodes(graph, "Add") if "experts" in node.name][-1]
        for other in graph.node:
            other.input[:] = [last.input[0] if name == last.output[0] else name for name in other.input]

    found = refusals("experts_loop_sum-ts17", tmp_path, edit)
    assert any("3 experts meet a router of 4" in refusal.reason and "leaves out" in refusal.reason for refusal in found)


def test_a_loop_over_the_experts_that_the_example_chose(tmp_path: Path) -> None:
    """transformers' `for expert in hit.nonzero()`, unrolled: as many rows as the example input has."""

    def edit(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "only"))
        chosen = nodes(graph, "NonZero")[0]
        insert_after(graph, chosen, helper.make_node("Squeeze", ["", "only"], [""], name="baked"))

    refusal = refusals("experts_index_add-dynamo20", tmp_path, edit)[0]
    assert refusal.name == "baked"
    assert "those of the example input" in refusal.reason
    assert "batched_mm" in refusal.remedy


@pytest.mark.parametrize("reduction", ["none", "mul"])
def test_expert_outputs_that_replace_or_multiply_are_not_taken_for_a_sum(tmp_path: Path, reduction: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for attribute in nodes(graph, "ScatterND")[1].attribute:
            attribute.s = reduction.encode()

    found = refusals("experts_index_add-dynamo20", tmp_path, edit)
    assert any(refusal.op == "ScatterND" and "otherwise than by adding" in refusal.reason for refusal in found)


def test_expert_outputs_added_to_other_tokens_are_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        first, second = nodes(graph, "ScatterND")[:2]
        second.input[1] = first.input[1]

    found = refusals("experts_index_add-dynamo20", tmp_path, edit)
    assert any("other tokens than it got" in refusal.reason for refusal in found)


def test_a_condition_with_its_branches_exchanged_is_not_taken_for_a_skipped_expert(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        then, otherwise = nodes(graph, "If")[0].attribute
        then.name, otherwise.name = otherwise.name, then.name

    found = refusals("experts_condition-dynamo20", tmp_path, edit)
    assert any("not a top-2 gate" in refusal.reason for refusal in found)


def test_a_branch_that_no_routing_takes_is_not_trusted(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        condition = nodes(graph, "If")[0]
        always = helper.make_node("Or", [condition.input[0], "true"], ["always"], name="always")
        graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
        graph.node.insert(list(graph.node).index(condition), always)
        condition.input[0] = "always"

    found = refusals("experts_condition-dynamo20", tmp_path, edit)
    assert found[0].op == "If"
    assert "no sampled routing takes" in found[0].reason


def test_sorted_rows_added_to_other_tokens_are_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        scatter = nodes(graph, "ScatterND")[0]
        gathers = [node for node in nodes(graph, "GatherND") if node.output[0] != scatter.input[1]]
        scatter.input[1] = next(node.input[1] for node in gathers if node.input[1] != scatter.input[1])

    found = refusals("experts_sorted-dynamo20", tmp_path, edit)
    assert any("other tokens than they got" in refusal.reason for refusal in found)


def test_rows_of_a_sum_written_to_other_rows_are_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        first, second = [node for node in nodes(graph, "ScatterND") if not node.attribute][:2]
        second.input[1] = first.input[1]

    found = refusals("experts_mask_assign-dynamo20", tmp_path, edit)
    assert any("written to other rows" in refusal.reason for refusal in found)


def test_a_shared_expert_weighed_otherwise_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in nodes(graph, "Sigmoid") if node.name == "node_sigmoid").op_type = "Tanh"

    found = refusals("shared_gated-dynamo20", tmp_path, edit)
    assert any("another function than a sigmoid" in refusal.reason for refusal in found)
