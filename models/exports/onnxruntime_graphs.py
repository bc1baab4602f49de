"""Fixtures with onnxruntime's own operators: exports that went through its optimiser, and a MoE node in place of experts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxscript.optimizer
from onnx import helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.optimizer import optimize_model

from models.exports.forms import CHOSEN, EXPERTS, HEADS, HIDDEN, WIDTH
from models.strip import strip


def optimised(content: bytes, heads: int = HEADS, width: int = WIDTH, level: int = 0) -> bytes:
    """The graph after onnxruntime's transformer optimiser: fused attention, normalisation and GELU.

    At `level` 2 the runtime's own extended optimisations come before.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        model = optimize_model(
            str(path), model_type="vit", num_heads=heads, hidden_size=width, opt_level=level, only_onnxruntime=False
        ).model
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    for node in model.graph.node:
        node.ClearField("doc_string")
    return bytes(model.SerializeToString(deterministic=True))


def folded(content: bytes) -> bytes:
    """The graph after onnxscript's optimiser: folded constants and shapes."""
    model = onnxscript.optimizer.optimize(onnx.load_from_string(content), onnx_shape_inference=False)
    strip(model)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString(deterministic=True))


def halved(content: bytes, inputs: bool) -> bytes:
    """The graph after onnxruntime's conversion to float16, its inputs and outputs too where `inputs` says so."""
    model = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=not inputs)
    return bytes(model.SerializeToString(deterministic=True))


def with_moe(content: bytes, normalise: bool) -> bytes:
    """An export of `Form(experts="dense")` by dynamo whose gate and experts become one `com.microsoft::MoE`.

    The other MLPs get the node's GELU, the tanh form, so that the model has one activation.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    softmax = [node for node in graph.node if node.op_type == "Softmax"][-1]
    start = list(graph.node).index(softmax)
    end = max(i for i, node in enumerate(graph.node) if node.op_type == "Einsum")
    bias = next(node for node in graph.node if softmax.input[0] in node.output)
    x = next(node.input[0] for node in graph.node if bias.input[0] in node.output)
    names = ["", "", "", ""]
    for tensor in graph.initializer:
        shape = tuple(tensor.dims)
        wanted = [(EXPERTS, HIDDEN, WIDTH), (EXPERTS, HIDDEN), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, WIDTH)]
        if shape in wanted:
            names[wanted.index(shape)] = tensor.name
    node = helper.make_node(
        "MoE",
        [x, softmax.input[0], *names],
        graph.node[end].output,
        name="moe",
        domain="com.microsoft",
        k=CHOSEN,
        activation_type="gelu",
        normalize_routing_weights=int(normalise),
    )
    kept = [*list(graph.node)[:start], node, *list(graph.node)[end + 1 :]]
    copies = [onnx.NodeProto.FromString(each.SerializeToString()) for each in kept]
    del graph.node[:]
    graph.node.extend(copies)
    for each in graph.node:
        if each.op_type == "Gelu":
            del each.attribute[:]
            each.attribute.append(helper.make_attribute("approximate", "tanh"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return bytes(model.SerializeToString(deterministic=True))


def with_fused_attention(content: bytes, fused: bool) -> bytes:
    """A TorchScript export whose attention becomes com.microsoft Attention (one matrix) or MultiHeadAttention (three)."""
    model = onnx.load_from_string(content)
    graph = model.graph
    for number, softmax in enumerate([node for node in graph.node if node.op_type == "Softmax"]):
        nodes = list(graph.node)
        end = next(i for i, node in enumerate(nodes) if softmax.output[0] in node.input)
        last = next(i for i in range(end, len(nodes)) if nodes[i].op_type == "Reshape")
        products = [i for i in range(end) if nodes[i].op_type == "MatMul" and "/query" not in nodes[i].name][-1:]
        start = max(i for i in range(products[0]) if nodes[i].op_type == "LayerNormalization")
        between = [node for node in nodes[start + 1 : last + 1] if node.op_type in ("MatMul", "Add")]
        weights = {tensor.name for tensor in graph.initializer}
        layers = [node for node in between if any(name in weights for name in node.input)]
        if fused:
            matrix, bias = (next(name for name in node.input if name in weights) for node in layers[:2])
            inputs, op = [nodes[start].output[0], matrix, bias], "Attention"
            kept: list[onnx.NodeProto] = []
        else:
            kept = layers[:6]
            inputs, op = [node.output[0] for node in layers[:6] if node.op_type == "Add"], "MultiHeadAttention"
        made = helper.make_node(
            op, inputs, nodes[last].output, name=f"attention{number}", domain="com.microsoft", num_heads=HEADS
        )
        copies = [
            onnx.NodeProto.FromString(node.SerializeToString())
            for node in [*nodes[: start + 1], *kept, made, *nodes[last + 1 :]]
        ]
        del graph.node[:]
        graph.node.extend(copies)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return bytes(model.SerializeToString(deterministic=True))
