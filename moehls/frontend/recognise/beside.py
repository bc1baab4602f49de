"""A head of two token matrices side by side, as DINOv2's of the class token and the mean of the patches.

In goes a `Concat` of channels of several matrices, which stays what it is until a product reads it: that is a sum of products,
each of one matrix with its part of the weight.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, apply, attribute
from moehls.frontend.recognise.linear import add_table, table_of
from moehls.frontend.values import Affine, Beside, Constant, Normalised, Pointwise, Sum, Value


def read_concat(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Channels of different token matrices along the last dimension; of one matrix they are an affine map."""
    parts = [
        value if isinstance(value, Affine) else context.builder.materialise(value)
        for value in inputs
        if isinstance(value, Affine | Normalised)
    ]
    if parts and any(isinstance(value, Constant) for value in inputs) and len(parts) < len(inputs):
        raise UnsupportedError(
            "constant tokens are put behind or between tokens that have been normalised",
            "join class and register tokens before the others, to the embedded patches or to a normalisation of them",
        )
    if len(inputs) < 2 or len(parts) < len(inputs):
        return None
    rank = len(parts[0].layout.shape)
    if attribute(node, "axis", 0) % rank != rank - 1 or len({part.base for part in parts}) == 1:
        return None
    if any(axis.token for part in parts for axis in part.layout.dims[-1]):
        return None
    return Beside(tuple(parts)) if len({part.layout.shape[:-1] for part in parts}) == 1 else None


def read_product(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """MatMul or Gemm with a constant."""
    if len(inputs) < 2 or not isinstance(inputs[0], Beside) or not isinstance(inputs[1], Constant):
        return None
    weight = inputs[1].array.T if attribute(node, "transB", 0) else inputs[1].array
    if weight.ndim != 2 or attribute(node, "transA", 0):
        return None
    weight = weight * np.float32(attribute(node, "alpha", 1.0))
    cuts = np.cumsum([part.layout.shape[-1] for part in inputs[0].parts])[:-1]
    rows = np.split(weight, cuts)
    pieces = [
        apply(context, "MatMul", [part, Constant(own)])[0] for part, own in zip(inputs[0].parts, rows, strict=True)
    ]
    total = reduce(lambda left, right: apply(context, "Add", [left, right])[0], pieces)
    if len(inputs) == 2:
        return total
    table = table_of(inputs[2])
    return None if table is None else _with_bias(total, table * np.float32(attribute(node, "beta", 1.0)))


def read_bias(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A constant added to a sum goes to a linear map in it."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if table is not None and isinstance(value, Sum):
            return _with_bias(value, table)
    return None


def _with_bias(value: Value, table: np.ndarray) -> Sum | None:
    """To the first linear map of the sum, not to the residual stream."""
    if not isinstance(value, Sum) or np.broadcast_shapes(value.layout.shape, table.shape[1:]) != value.layout.shape:
        return None
    for part, other in ((value.left, value.right), (value.right, value.left)):
        if isinstance(part, Affine):
            changed: Affine | Sum | None = None if part.weight is None else add_table(part, table)
        else:
            changed = _with_bias(part, table)
        if changed is not None:
            return Sum(changed, other) if part is value.left else Sum(other, changed)
    return None


def read_turned(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Channels beside others whose sign was changed, as rotary positions turn them."""
    turned = [_negated(value) for value in inputs]
    return None if all(new is old for new, old in zip(turned, inputs, strict=True)) else context.read(node, turned)


def _negated(value: Value) -> Value:
    """The affine map of which a value is the negative."""
    if not isinstance(value, Pointwise):
        return value
    x = np.linspace(-4, 4, 65)
    with np.errstate(all="ignore"):
        negative = np.array_equal(value.function(x), -x)
    return replace(value.operand, factor=-value.operand.factor, grid=None) if negative else value


RULES: Rules = (
    ("Concat", read_turned),
    ("Concat", read_concat),
    ("MatMul Gemm", read_product),
    ("Add", read_bias),
)
