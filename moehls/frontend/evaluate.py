"""Concrete evaluation of one ONNX node with the reference evaluator, for constants, task tables and routing samples."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from moehls.frontend.context import UnsupportedError, attribute, first_line
from moehls.frontend.layout import Array
from moehls.frontend.maps import LARGEST

_REMEDY = "export with constant shapes and standard operators"
_SHAPE_INPUT = {"ConstantOfShape": 0, "Expand": 1}


class NodeEvaluator:
    """Evaluates one node on concrete inputs, any number of times."""

    def __init__(self, node: ir.Node, opset: int) -> None:
        self._node = node
        quantises = node.op_type in ("QuantizeLinear", "DequantizeLinear") and not attribute(node, "block_size", 0)
        self._quantises = quantises and node.domain in ("", "ai.onnx", "com.microsoft")
        if self._quantises:
            return
        try:
            proto = ir.serde.serialize_node(node)
            self._names = list(proto.input)
            read, written = (
                [helper.make_empty_tensor_value_info(name) for name in names if name]
                for names in (proto.input, proto.output)
            )
            graph = helper.make_graph([proto], "node", read, written)
            imports = [helper.make_opsetid(domain, opset) for domain in sorted({"", node.domain})]
            self._evaluator = ReferenceEvaluator(helper.make_model(graph, opset_imports=imports))
        except Exception as error:
            raise UnsupportedError(f"is not a node that can be evaluated ({first_line(error)})", _REMEDY) from error

    def __call__(self, inputs: Sequence[Array | None]) -> list[Array]:
        """The node's outputs.

        Raises:
            UnsupportedError: the node cannot be evaluated.
        """
        self._check_size(inputs)
        if self._quantises:
            return [_quantised(self._node, inputs)]
        if self._node.op_type == "GatherElements" and self._node.domain in ("", "ai.onnx"):
            return [_gathered(self._node, inputs)]
        feeds = {name: array for name, array in zip(self._names, inputs, strict=True) if array is not None}
        try:
            with np.errstate(all="ignore"):
                outputs = self._evaluator.run(None, feeds)
        except Exception as error:
            raise UnsupportedError(f"cannot be evaluated on constants ({first_line(error)})", _REMEDY) from error
        return [np.asarray(output) for output in outputs]

    def _check_size(self, inputs: Sequence[Array | None]) -> None:
        shape: list[int] = []
        op = self._node.op_type
        if op in _SHAPE_INPUT and (given := inputs[_SHAPE_INPUT[op]]) is not None:
            shape = [int(size) for size in given.reshape(-1)]
        elif op == "Tile" and inputs[0] is not None and inputs[1] is not None:
            shape = [a * int(b) for a, b in zip(inputs[0].shape, inputs[1], strict=False)]
        elif op == "OneHot" and inputs[0] is not None and inputs[1] is not None:
            shape = [inputs[0].size, int(inputs[1].reshape(-1)[0])]
        elif op == "Range" and all(value is not None for value in inputs):
            start, limit, step = (float(value.reshape(-1)[0]) for value in inputs if value is not None)
            shape = [int(abs(limit - start) / max(abs(step), 1e-9)) + 1]
        if any(size < 0 for size in shape) or prod(shape) > LARGEST:
            raise UnsupportedError(f"makes a tensor of shape {shape}", "export a model of ordinary size")


def _gathered(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    """GatherElements, of which the evaluator takes neither a negative axis nor more than 32 entries along it.

    Raises:
        UnsupportedError: the indices do not fit.
    """
    x, index = (*inputs, None, None)[:2]
    if x is None or index is None or x.ndim != index.ndim or not x.ndim or index.dtype.kind != "i":
        raise UnsupportedError("has no indices, or of another rank", _REMEDY)
    axis = attribute(node, "axis", 0) % x.ndim
    sizes = [x.shape[dim] if dim == axis else size for dim, size in enumerate(index.shape)]
    outside = index.size and (index.min() < -x.shape[axis] or index.max() >= x.shape[axis])
    if outside or any(size > own for size, own in zip(sizes, x.shape, strict=True)):
        raise UnsupportedError(f"takes indices {list(index.shape)} of {list(x.shape)} that do not fit", _REMEDY)
    return np.asarray(np.take_along_axis(x[tuple(map(slice, sizes))], index.astype(np.int64), axis))


def _quantised(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    """QuantizeLinear or DequantizeLinear, which the evaluator does not know in every opset.

    Raises:
        UnsupportedError: scale or zero point is missing or does not fit.
    """
    x, scale, zero = (*inputs, None, None, None)[:3]
    if x is None or scale is None or (scale.ndim == 1 and scale.size > 1 and x.ndim == 0):
        raise UnsupportedError("has no scale, or one that does not fit", _REMEDY)
    points = np.zeros(scale.shape, np.uint8 if node.op_type == "QuantizeLinear" else x.dtype) if zero is None else zero
    axis = attribute(node, "axis", 1)
    shape = [1] * max(x.ndim, 1)
    if scale.size > 1:
        shape[axis % x.ndim] = scale.size
    else:
        shape = []
    factor, base = scale.reshape(shape), points.reshape(shape)
    if np.broadcast_shapes(x.shape, factor.shape) != x.shape or points.dtype.kind not in "iu":
        raise UnsupportedError("has no scale, or one that does not fit", _REMEDY)
    if node.op_type == "DequantizeLinear":
        return np.asarray((x.astype(np.int64) - base.astype(np.int64)).astype(np.float32) * factor.astype(np.float32))
    limits = np.iinfo(points.dtype)
    integers = np.rint(x.astype(np.float32) / factor.astype(np.float32)) + base.astype(np.float32)
    return np.asarray(np.clip(integers, limits.min, limits.max).astype(points.dtype))
