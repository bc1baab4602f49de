"""The second layer of an MLP or of experts: a product of GELU outputs with weights, then bias and LayerScale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute
from moehls.frontend.contraction import (
    CHANNEL,
    HIDDEN,
    VARIANT,
    Labels,
    Weights,
    arrange,
    joint_selector,
    labels_of,
    plan,
    spread_weighing,
    weights_of,
)
from moehls.frontend.layout import Array, LayoutError, expand, invariant
from moehls.frontend.maps import folded, with_weight
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.linear import scale_table, table_of
from moehls.frontend.values import FeedForward, Gathered, Grid, Hidden, Pointwise, Value, shape_of
from moehls.network.operations import Lattice


def second_layer(value: Hidden, weights: Weights, labels: Labels) -> FeedForward:
    """`weights · hidden` for each element of the result; kept axes of the hidden tensor are experts or slots."""
    pre = with_weight(folded(value.pre))
    assert pre.weight is not None
    p = plan(pre.layout, weights, labels)
    kept = [i for i in p.left if i not in p.summed]
    sizes = [pre.layout.axes[i].size for i in p.summed]
    hidden = int(np.prod(sizes))

    def along_hidden(array: Array, ids: list[int], trailing: list[int]) -> Array:
        """[*out axes, variants, hidden, …]: the summed axes become the hidden axis."""
        rest = [i for i in ids if i not in p.summed]
        moved = arrange(array, ids, [*p.summed, *rest])
        moved = np.broadcast_to(moved, (*sizes, *moved.shape[len(sizes) :]))
        moved = moved.reshape(hidden, *moved.shape[len(sizes) :])
        return arrange(moved, [HIDDEN, *rest], [*p.out, VARIANT, HIDDEN, *trailing])

    left = list(p.left)
    first = along_hidden(pre.weight, [*left, VARIANT, CHANNEL], [CHANNEL])
    first_bias = along_hidden(pre.bias, [*left, VARIANT], [])
    up, up_bias = None, None
    if value.up is not None:
        other = with_weight(folded(value.up))
        assert other.weight is not None
        up = along_hidden(other.weight, [*left, VARIANT, CHANNEL], [CHANNEL])
        up_bias = along_hidden(other.bias, [*left, VARIANT], [])
    second = along_hidden(p.array, [VARIANT, *p.right], [])
    selector = pre.selector
    if selector is not None and selector.samples:
        if any(sample.shape[i] != 1 for sample in selector.samples for i in p.summed):
            raise LayoutError("expert choices differ along the hidden channels")
        moved = tuple(arrange(sample.squeeze(p.summed), kept, p.out) for sample in selector.samples)
        selector = replace(selector, samples=moved)

    def lattice(grid: Grid | None) -> Lattice | None:
        """Of the hidden channels, where it is the same for all that is beside them."""
        if grid is None:
            return None
        arrays = [along_hidden(array[..., None], [*left, VARIANT], []) for array in (grid.scale, grid.zero)]
        if any(array.size != hidden for array in arrays):
            return None
        scale, zero = (array.reshape(hidden).astype(np.float64) for array in arrays)
        return Lattice(scale, zero, grid.bits, grid.signed)

    return FeedForward(
        p.layout,
        pre.base,
        value.form,
        first,
        first_bias,
        second,
        np.zeros([1] * (len(p.out) + 1), np.float32),
        joint_selector(selector, p.selector),
        up=up,
        up_bias=up_bias,
        grid=lattice(value.grid),
        up_grid=None if value.up is None or value.up.factor != 1 else lattice(value.up.grid),
        weighing=spread_weighing(pre.weighing, p),
    )


def read_second(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    if len(inputs) < 2 or not any(isinstance(value, (Hidden, Pointwise)) for value in inputs[:2]):
        return None
    labels = labels_of(node, *(len(shape_of(value) or ()) for value in inputs[:2]))
    for left, right, used in ((inputs[0], inputs[1], labels), (inputs[1], inputs[0], labels.swapped)):
        weights = weights_of(right)
        if weights is None:
            continue
        if isinstance(left, Pointwise):
            left = context.builder.activation(left)
        if not isinstance(left, Hidden):
            continue
        result = second_layer(left, weights, used)
        if len(inputs) == 2:
            return result
        result = _scaled(result, np.full((1,), attribute(node, "alpha", 1.0), np.float32))
        table = table_of(inputs[2])
        return None if table is None else _shifted(result, table * np.float32(attribute(node, "beta", 1.0)))
    return None


def _wide(value: FeedForward, table: Array) -> FeedForward:
    shape = np.broadcast_shapes(value.layout.shape, table.shape[1:])
    return value if shape == value.layout.shape else restructure(value, *expand(value.layout, shape))


def _shifted(value: FeedForward, table: Array) -> FeedForward:
    value = _wide(value, table)
    return replace(value, second_bias=value.second_bias + invariant(value.layout, table))


def _scaled(value: FeedForward, table: Array) -> FeedForward:
    value = _wide(value, table)
    scale = invariant(value.layout, table)
    return replace(value, second=value.second * scale[..., None], second_bias=value.second_bias * scale)


def read_bias(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Bias of the second layer (before the gate weighs it), also gathered by expert."""
    for token, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if isinstance(token, FeedForward) and token.coefficient is None and not isinstance(other, Gathered):
            table = table_of(other)
            if table is not None and table.shape[0] == 1:
                return _shifted(token, table)
    return None


def read_gated_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A constant on the product of a gated MLP (st-moe's `mult_bias`) goes to the branch without activation."""
    for hidden, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if not isinstance(hidden, Hidden) or hidden.up is None or table is None or table.shape[0] != 1:
            continue
        shape = hidden.layout.shape
        if np.broadcast_shapes(shape, table.shape[1:]) != shape or (node.op_type == "Div" and other is inputs[0]):
            return None
        scale = 1 / table if node.op_type == "Div" else table
        return replace(hidden, up=scale_table(hidden.up, scale), grid=None)
    return None


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """LayerScale or a scalar on the second layer."""
    for token, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if isinstance(token, FeedForward) and table is not None and table.shape[0] == 1:
            if node.op_type == "Div":
                if other is inputs[0]:
                    return None
                table = (1 / table.astype(np.float64)).astype(np.float32)
            return _scaled(token, table)
    return None


RULES: Rules = (
    ("MatMul Gemm Einsum", read_second),
    ("Add", read_bias),
    ("Mul Div", read_gated_scale),
    ("Mul Div", read_scale),
)
