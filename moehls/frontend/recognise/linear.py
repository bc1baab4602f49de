"""Linear layers: a product with a constant, a bias added, a factor or a LayerScale vector multiplied."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.contraction import contract, joint_selector, labels_of, weights_of
from moehls.frontend.layout import Array, LayoutError, expand, invariant
from moehls.frontend.maps import folded, with_weight
from moehls.frontend.moves import restructure
from moehls.frontend.values import (
    Affine,
    Constant,
    FeedForward,
    Mixture,
    Normalised,
    Patches,
    PerTask,
    Pointwise,
    Selector,
    Shared,
    Sum,
    Value,
    shape_of,
)


def as_affine(context: Context, value: Value) -> Affine | None:
    """The value as an affine map, materialised where it is not one; None for anything but tokens."""
    if isinstance(value, Affine):
        return value
    if isinstance(value, (FeedForward, Mixture, Normalised, Patches, Pointwise, Shared, Sum)):
        return context.builder.materialise(value)
    return None


def table_of(value: Value) -> Array | None:
    """A float constant or a task table as `[variants, *shape]`."""
    if isinstance(value, Constant) and value.array.dtype == np.float32:
        return value.array[None]
    return value.table if isinstance(value, PerTask) and value.table.dtype == np.float32 else None


def read_product(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """MatMul, Gemm or Einsum of tokens with weights, on either side."""
    if len(inputs) < 2:
        return None
    ranks = [len(shape_of(value) or ()) for value in inputs[:2]]
    labels = labels_of(node, *ranks)
    for left, right, used in ((inputs[0], inputs[1], labels), (inputs[1], inputs[0], labels.swapped)):
        weights = weights_of(right)
        if weights is None or (value := as_affine(context, left)) is None:
            continue
        result: Affine = contract(value, weights, used)
        alpha = attribute(node, "alpha", 1.0)
        result = replace(result, factor=result.factor * alpha)
        if len(inputs) == 2:
            return result
        table = table_of(inputs[2])
        return None if table is None else add_table(result, table * np.float32(attribute(node, "beta", 1.0)))
    return None


def add_table(value: Affine, table: Array) -> Affine:
    """Add a constant, or one a task."""
    if not table.any():
        return value
    value = folded(_broadcast(value, table))
    selector = Selector("task") if table.shape[0] > 1 else None
    bias = value.bias + invariant(value.layout, table)
    return replace(value, bias=bias, selector=joint_selector(value.selector, selector), grid=None)


def scale_table(value: Affine, table: Array) -> Affine:
    """Multiply by a constant: a scalar stays a factor, a vector scales the weights."""
    if table.size == 1 and value.layout.shape == np.broadcast_shapes(value.layout.shape, table.shape[1:]):
        return replace(value, factor=value.factor * float(table.reshape(-1)[0]), grid=None)
    if table.shape[0] > 1:
        raise LayoutError("tokens are scaled by a factor that depends on the task")
    value = with_weight(folded(_broadcast(value, table)))
    assert value.weight is not None
    scale = invariant(value.layout, table)
    return replace(value, weight=value.weight * scale[..., None], bias=value.bias * scale, grid=None)


def _broadcast(value: Affine, table: Array) -> Affine:
    shape = np.broadcast_shapes(value.layout.shape, table.shape[1:])
    return value if shape == value.layout.shape else restructure(value, *expand(value.layout, shape))


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Bias: a constant added to or subtracted from an affine map; a zero added to anything changes nothing."""
    for token, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if table is None or shape_of(token) is None or table_of(token) is not None:
            continue
        if node.op_type == "Sub" and other is inputs[0]:
            return (
                add_table(replace(token, factor=-token.factor, grid=None), table) if isinstance(token, Affine) else None
            )
        same_shape = np.broadcast_shapes(shape_of(token) or (), table.shape[1:]) == shape_of(token)
        if not table.any() and same_shape:
            return token
        if isinstance(token, Affine):
            return add_table(token, -table if node.op_type == "Sub" else table)
    return None


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A constant multiplied with, or dividing, an affine map."""
    for token, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if table is None or not isinstance(token, Affine):
            continue
        if node.op_type == "Div":
            if other is inputs[0]:
                return None
            table = np.asarray(1 / table.astype(np.float64), np.float64)
            table = table if table.size == 1 else table.astype(np.float32)
        if table.size > 1 and _differs(token, table):
            raise UnsupportedError(
                "tokens are multiplied by constants that differ from token to token, as rotary positions (RoPE) do; the "
                "accelerator has no step for it",
                "use learned or sine positions that are added to the tokens, or a relative position bias of the scores",
                ends=True,
            )
        return scale_table(token, table)
    return None


def _differs(token: Affine, table: Array) -> bool:
    """Whether a constant of the tensor's shape is not the same for all tokens."""
    shape = token.layout.shape
    if np.broadcast_shapes(shape, table.shape[1:]) != shape:
        return False
    try:
        invariant(token.layout, table)
    except LayoutError:
        return True
    return False


RULES: Rules = (
    ("MatMul Gemm Einsum", read_product),
    ("Add Sub", read_add),
    ("Mul Div", read_scale),
)
