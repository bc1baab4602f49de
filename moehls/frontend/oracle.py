"""The graph that the check runs in onnxruntime: the file's own, but for what it rounds or computes at random or not reliably.

Activations are not quantised: the network is the float one, whose values the machine quantises in its own way. Noise becomes
zero, since the reader takes it only where it is multiplied by zero. A `com.microsoft::MoE` node becomes standard nodes, written
from the operator's documentation, since onnxruntime's kernel for CPUs gives wrong values in places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper


def oracle_graph(graph: onnx.GraphProto) -> None:
    """Change `graph` in place."""
    nodes: list[onnx.NodeProto] = []
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(not name or name in constant for name in node.input) and not node.op_type.startswith("Random"):
            constant.update(node.output)
    for number, node in enumerate(graph.node):
        if node.op_type in ("RandomNormalLike", "RandomUniformLike"):
            nodes.append(helper.make_node("Sub", [node.input[0], node.input[0]], node.output))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constant:
            nodes.append(helper.make_node("Identity", node.input[:1], node.output))
            del graph.value_info[:]
        elif node.op_type == "MoE" and node.domain == "com.microsoft":
            nodes += _mixture(graph, node, f"moe{number}_")
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _mixture(graph: onnx.GraphProto, node: onnx.NodeProto, prefix: str) -> Iterator[onnx.NodeProto]:
    """Softmax, top-k, a scatter of the gate weights, and all experts as Einsum."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    x, logits, first, first_bias, second, second_bias = [*node.input, "", "", "", ""][:6]
    serial = iter(range(99))

    def constant(value: float | list[int], kind: type) -> str:
        name = f"{prefix}constant{next(serial)}"
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def name(part: str) -> str:
        return prefix + part

    yield helper.make_node("Softmax", [logits], [name("p")], axis=-1)
    k = constant([int(attributes.get("k", 1))], np.int64)
    yield helper.make_node("TopK", [name("p"), k], [name("v"), name("i")], axis=-1)
    share = name("v")
    if attributes.get("normalize_routing_weights", 0):
        yield helper.make_node("ReduceSum", [share, constant([-1], np.int64)], [name("s")], keepdims=1)
        share = name("w")
        yield helper.make_node("Div", [name("v"), name("s")], [share])
    yield helper.make_node("Sub", [name("p"), name("p")], [name("zero")])
    yield helper.make_node("ScatterElements", [name("zero"), name("i"), share], [name("gates")], axis=1)
    yield helper.make_node("Shape", [x], [name("shape")])
    yield helper.make_node("Flatten", [x], [name("x")], axis=-1)
    yield helper.make_node("Einsum", [name("x"), first], [name("a")], equation="nd,ehd->neh")
    yield helper.make_node("Add", [name("a"), first_bias or constant(0.0, np.float32)], [name("b")])
    activation = attributes.get("activation_type", b"relu")
    if activation == b"relu":
        yield helper.make_node("Relu", [name("b")], [name("h")])
    elif activation == b"silu":
        yield helper.make_node("Sigmoid", [name("b")], [name("g")])
        yield helper.make_node("Mul", [name("b"), name("g")], [name("h")])
    else:
        yield helper.make_node("Mul", [name("b"), name("b")], [name("b2")])
        yield helper.make_node("Mul", [name("b2"), name("b")], [name("b3")])
        yield helper.make_node("Mul", [name("b3"), constant(0.044715, np.float32)], [name("c")])
        yield helper.make_node("Add", [name("b"), name("c")], [name("d")])
        yield helper.make_node("Mul", [name("d"), constant(math.sqrt(2 / math.pi), np.float32)], [name("e")])
        yield helper.make_node("Tanh", [name("e")], [name("t")])
        yield helper.make_node("Add", [name("t"), constant(1.0, np.float32)], [name("u")])
        yield helper.make_node("Mul", [name("b"), name("u")], [name("g")])
        yield helper.make_node("Mul", [name("g"), constant(0.5, np.float32)], [name("h")])
    yield helper.make_node("Einsum", [name("h"), second], [name("m")], equation="neh,edh->ned")
    yield helper.make_node("Add", [name("m"), second_bias or constant(0.0, np.float32)], [name("n")])
    yield helper.make_node("Einsum", [name("n"), name("gates")], [name("o")], equation="ned,ne->nd")
    yield helper.make_node("Reshape", [name("o"), name("shape")], node.output)
