"""What cannot be read is refused: all nodes at once, each with its name, operator, shapes, scope, reason and remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend import Refusal, inspect_model, read_network
from moehls.network.operations import Experts
from tests.frontend.support import edited, fixture, insert_after, nodes


def refusals(name: str, folder: Path, edit: Callable[[onnx.GraphProto], None]) -> tuple[Refusal, ...]:
    inspection = inspect_model(edited(name, folder, edit), {})
    assert inspection.summary is None
    return inspection.unsupported


def test_every_node_is_listed_at_once(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "Softmax"):
            node.op_type = "Hardmax"
        activation(graph, "Tanh")

    for exporter in ("dynamo20", "ts17"):
        found = refusals(f"experts_dense-{exporter}", tmp_path, edit)
        assert [refusal.op for refusal in found].count("Hardmax") == 3
        assert len([refusal for refusal in found if "none of GELU" in refusal.reason]) == 1


def activation(graph: onnx.GraphProto, op: str) -> None:
    """Put an activation in the place of the first MLP's."""
    gelu = next(node for node in graph.node if node.op_type in ("Gelu", "Erf"))
    first = next(node for node in graph.node if node.op_type == "Div") if gelu.op_type == "Erf" else gelu
    last = gelu
    while gelu.op_type == "Erf" and last.op_type not in ("MatMul", "Gemm"):
        end, last = last, next(node for node in graph.node if last.output[0] in node.input)
    output = gelu.output[0] if gelu.op_type == "Gelu" else end.output[0]
    new = helper.make_node(op, [first.input[0]], [f"{output}_replaced"], name="activation")
    graph.node.insert(list(graph.node).index(first), new)
    for node in graph.node:
        node.input[:] = [new.output[0] if name == output else name for name in node.input]


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


def test_noise_of_training_mode(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and not tensor.dims and not numpy_helper.to_array(tensor):
                tensor.CopyFrom(numpy_helper.from_array(np.float32(0.25), tensor.name))

    found = refusals("gate_m3vit-dynamo20", tmp_path, edit)
    assert any("noise" in refusal.reason and "eval" in refusal.remedy for refusal in found)


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


def test_an_expert_left_out_at_export(tmp_path: Path) -> None:
    """`if mask.any()` in Python bakes in which experts the export input hit."""

    def edit(graph: onnx.GraphProto) -> None:
        last = [node for node in nodes(graph, "Add") if "experts" in node.name][-1]
        for other in graph.node:
            other.input[:] = [last.input[0] if name == last.output[0] else name for name in other.input]

    found = refusals("experts_loop_sum-ts17", tmp_path, edit)
    assert any("3 experts meet a router of 4" in refusal.reason and "leaves out" in refusal.reason for refusal in found)


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


def test_a_gate_of_other_tokens_is_refused(tmp_path: Path) -> None:
    """The other branch of a gated MLP reads the norm before attention."""

    def edit(graph: onnx.GraphProto) -> None:
        product = next(node for node in nodes(graph, "Mul") if node.name == "node_mul_7")
        up = next(node for node in nodes(graph, "MatMul") if node.output[0] == product.input[1])
        up.input[0] = nodes(graph, "MatMul")[0].input[0]

    found = refusals("gated_silu-dynamo20", tmp_path, edit)
    assert any("something else than a linear map of the same tokens" in refusal.reason for refusal in found)


def test_a_root_mean_square_of_other_rows_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        squares = nodes(graph, "Pow")
        squares[1].input[0] = squares[0].input[0]

    found = refusals("norm_rms_cast-dynamo20", tmp_path, edit)
    assert any("root mean square of other rows" in refusal.reason for refusal in found)


def test_a_shared_expert_weighed_otherwise_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in nodes(graph, "Sigmoid") if node.name == "node_sigmoid").op_type = "Tanh"

    found = refusals("shared_gated-dynamo20", tmp_path, edit)
    assert any("another function than a sigmoid" in refusal.reason for refusal in found)


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
def test_a_bias_on_the_scores_for_the_choice_only_is_refused_once(name: str, tmp_path: Path) -> None:
    """DeepSeek-V3: experts are chosen by sigmoid + bias."""

    def edit(graph: onnx.GraphProto) -> None:
        top = nodes(graph, "TopK")[0]
        graph.initializer.append(numpy_helper.from_array(np.linspace(-0.1, 0.1, 4, dtype=np.float32), "correction"))
        biased = helper.make_node("Add", [top.input[0], "correction"], ["biased"], name="score_bias")
        graph.node.insert(list(graph.node).index(top), biased)
        top.input[0] = "biased"

    (refusal,) = refusals(name, tmp_path, edit)
    assert refusal.name == "score_bias"
    assert "e_score_correction_bias" in refusal.reason
    assert "on the logits" in refusal.remedy


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
