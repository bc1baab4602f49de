"""Mean pooling: the mean of all tokens of a map is the map of the tokens' mean, so it moves before the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute, integers
from moehls.frontend.layout import Array, LayoutError, drop_dims
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Affine, Value


def _axes(node: ir.Node, inputs: list[Value], rank: int) -> tuple[int, ...] | None:
    """The dimensions a node reduces, None where they are not constant or all."""
    if node.op_type == "GlobalAveragePool":
        return tuple(range(2, rank))
    given = integers(inputs[1]) if len(inputs) > 1 else node.attributes.get("axes")
    axes = given.value if isinstance(given, ir.Attr) else given
    return None if axes is None else tuple(axis % rank for axis in axes)


def read_pool(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """ReduceMean, ReduceSum or GlobalAveragePool over all tokens."""
    value = inputs[0]
    if not isinstance(value, TOKENS):
        return None
    layout = value.layout
    axes = _axes(node, inputs, len(layout.dims))
    if axes is None or not any(axis.token for dim in axes for axis in layout.dims[dim]):
        return None
    if any(not axis.token for dim in axes for axis in layout.dims[dim]):
        raise LayoutError("tokens and channels are averaged together")
    if any(axis.token for dim, group in enumerate(layout.dims) if dim not in axes for axis in group):
        raise LayoutError("a mean over some token dimensions only")
    rows = value if isinstance(value, Affine) else context.builder.materialise(value)
    if rows.selector is not None and rows.selector.samples:
        raise LayoutError("the outputs of chosen experts are averaged over the tokens")
    keep = node.op_type == "GlobalAveragePool" or bool(attribute(node, "keepdims", 1))
    positions = layout.token_positions

    def move(array: Array) -> Array:
        return np.squeeze(array, positions)

    base = context.builder.mean(rows.base)
    pooled = replace(restructure(rows, drop_dims(layout, axes, keep), move), base=base, grid=None)
    return replace(pooled, factor=pooled.factor * layout.tokens) if node.op_type == "ReduceSum" else pooled


RULES: Rules = (("ReduceMean ReduceSum GlobalAveragePool", read_pool),)
