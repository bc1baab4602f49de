"""Half-precision models computed in float32: every float16 or bfloat16 tensor, type and cast becomes float32.

The weights keep their values exactly, but for the scalars of GELU, which get the value they are the rounding of. What the file
would round to half precision on the way is not rounded, here as on the accelerator, which has its own number formats.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
_GELU = np.array([math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), 0.044715], np.float32)
_TYPES = {"to", "dtype", "output_dtype", "stash_type", "softmax_precision"}
"""Attributes that hold an element type."""


def load_widened(path: Path) -> onnx.ModelProto:
    """The model of a file, in float32 where it is in half precision."""
    model = onnx.load(str(path))
    _widen_graph(model.graph)
    for function in model.functions:
        _widen_nodes(function.node)
    return model


def _widen_graph(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.INT and attribute.name in _TYPES and attribute.i in _HALF:
                attribute.i = TensorProto.FLOAT
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                _widen_tensor(tensor)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _widen_graph(graph)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _HALF:
        narrow = numpy_helper.to_array(tensor)
        wide = np.asarray(narrow, np.float32)
        if narrow.size == 1:
            meant = _GELU[_GELU.astype(narrow.dtype) == narrow.reshape(-1)]
            wide = np.where(meant.size, meant.sum(), wide).astype(np.float32).reshape(wide.shape)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
