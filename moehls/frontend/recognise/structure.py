"""Data movement: reshapes, transposes, slices of channels, concatenation of channels and of stacked experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute, integers
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.layout import (
    Array,
    Axis,
    Layout,
    LayoutError,
    Move,
    expand,
    invariant,
    merge_dim,
    reshape,
    take,
    tile,
    transpose,
)
from moehls.frontend.maps import folded, identity_index, with_weight
from moehls.frontend.moves import restructure
from moehls.frontend.values import (
    Affine,
    Constant,
    FeedForward,
    Hidden,
    Mixture,
    Normalised,
    Patches,
    PerTask,
    Pointwise,
    RouteSource,
    Scores,
    Selector,
    Shared,
    Statistic,
    Sum,
    Tokens,
    Value,
    Weighing,
    shape_of,
)

TOKENS = (Affine, Pointwise, Hidden, FeedForward, Mixture, Shared, Sum, Normalised, Patches)
_NEGATIVE_OPSET = "give the shape as constants at export"


def moved(context: Context, value: Tokens, change: Callable[[Layout], tuple[Layout, Move]]) -> Value:
    """`value` after a data movement of its layout."""
    if isinstance(value, Mixture):
        layout, move = change(value.layout)
        if np.array_equal(move(identity_index(value.layout)), identity_index(layout)):
            return replace(value, layout=layout)
    if isinstance(value, (Sum, Shared, Mixture, Normalised)):
        value = context.builder.materialise(value)
    layout, move = change(value.layout)
    return restructure(value, layout, move)


def new_shape(node: ir.Node, shape: tuple[int, ...], inputs: list[Value], opset: int) -> tuple[int, ...]:
    """The shape after Reshape, Flatten, Squeeze or Unsqueeze.

    Raises:
        UnsupportedError: the shape is not constant or does not fit.
    """
    rank = len(shape)
    if node.op_type == "Reshape":
        target = list(_given(node, inputs, "shape"))
        if not attribute(node, "allowzero", 0):
            target = [shape[i] if size == 0 and i < rank else size for i, size in enumerate(target)]
        known = prod(size for size in target if size != -1)
        if target.count(-1) == 1 and known and prod(shape) % known == 0:
            target[target.index(-1)] = prod(shape) // known
        if prod(target) != prod(shape) or min(target, default=1) < 1:
            raise UnsupportedError(f"cannot reshape {list(shape)} to {target}", _NEGATIVE_OPSET)
        return tuple(target)
    if node.op_type == "Flatten":
        axis = attribute(node, "axis", 1) % (rank + 1)
        return prod(shape[:axis]), prod(shape[axis:])
    axes = list(_given(node, inputs, "axes")) if len(inputs) > 1 or "axes" in node.attributes else None
    if node.op_type == "Squeeze":
        drop = [i for i, size in enumerate(shape) if size == 1] if axes is None else [axis % rank for axis in axes]
        return tuple(size for i, size in enumerate(shape) if i not in drop)
    total = rank + len(axes or ())
    places = {axis % total for axis in axes or ()}
    rest = iter(shape)
    return tuple(1 if i in places else next(rest) for i in range(total))


def _given(node: ir.Node, inputs: list[Value], name: str) -> tuple[int, ...]:
    """Integers from an attribute or from the second input."""
    if name in node.attributes:
        return tuple(int(entry) for entry in node.attributes[name].value)
    found = integers(inputs[1]) if len(inputs) > 1 else None
    if found is None:
        raise UnsupportedError(f"its {name} is not a constant", "export with static shapes, or fix them with --set")
    return found


def read_reshape(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if isinstance(value, Scores):
        shape = new_shape(node, value.shape, inputs, context.opset)
        if shape[-2:] != value.shape[-2:]:
            raise LayoutError("attention scores are reshaped across queries and keys")
        query, key = value.query, value.key
        query_shape = (*shape[:-1], query.layout.shape[-1])
        key_shape = (*shape[:-2], shape[-1], key.layout.shape[-1])
        return replace(
            value,
            query=restructure(query, *reshape(query.layout, query_shape)),
            key=restructure(key, *reshape(key.layout, key_shape)),
            bias=None if value.bias is None else value.bias.reshape(shape),
        )
    if not isinstance(value, TOKENS):
        return None
    shape = new_shape(node, value.layout.shape, inputs, context.opset)
    return moved(context, value, lambda layout: reshape(layout, shape))


def read_transpose(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, TOKENS):
        return None
    rank = len(value.layout.dims)
    order = attribute(node, "perm", None) or tuple(reversed(range(rank)))
    return moved(context, value, lambda layout: transpose(layout, order))


def read_expand(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, TOKENS):
        return None
    shape = np.broadcast_shapes(value.layout.shape, _given(node, inputs, "shape"))
    return moved(context, value, lambda layout: expand(layout, shape))


def read_tile(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    repeats = integers(inputs[1])
    if not isinstance(value, TOKENS) or repeats is None:
        return None
    return moved(context, value, lambda layout: tile(layout, repeats))


def read_pass(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Identity, inference-time Dropout, Cast of floats to float32."""
    if node.op_type == "Dropout" and len(inputs) > 2 and (not isinstance(inputs[2], Constant) or inputs[2].array.any()):
        raise UnsupportedError("dropout is active", "export in eval mode (model.eval())", instead=inputs[0])
    lazy = isinstance(inputs[0], (*TOKENS, Scores, Statistic))
    if node.op_type == "Cast" and not (lazy and attribute(node, "to", 0) == 1):
        return None
    return [inputs[0]] * len(node.outputs)


def chosen_indices(node: ir.Node, inputs: list[Value], dim: int, size: int, opset: int) -> Array:
    """Entries a Slice takes of its dimension `dim`, found by running the node on their numbers."""
    shape = shape_of(inputs[0]) or ()
    numbers = np.arange(size, dtype=np.int64).reshape([size if i == dim else 1 for i in range(len(shape))])
    constants = [value.array if isinstance(value, Constant) else None for value in inputs[1:]]
    taken = NodeEvaluator(node, opset)([np.broadcast_to(numbers, shape), *constants])[0]
    if not taken.size:
        raise LayoutError("nothing is left of the tensor")
    return np.moveaxis(taken, dim, 0).reshape(taken.shape[dim], -1)[:, 0]


def read_slice(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Slice of feature dimensions (token dimensions: `tokens.py`)."""
    value = inputs[0]
    if not isinstance(value, TOKENS) or not all(isinstance(item, Constant) for item in inputs[1:]):
        return None
    result: Value = value
    for dim, size in enumerate(value.layout.shape):
        if size == 1 or any(axis.token for axis in value.layout.dims[dim]):
            continue
        indices = chosen_indices(node, inputs, dim, size, context.opset)
        if len(indices) != size or not np.array_equal(indices, np.arange(size)):
            assert isinstance(result, TOKENS)
            result = moved(context, result, lambda layout, d=dim, i=indices: take(layout, d, i, True))  # type: ignore[misc]
    return result


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Gather of a feature dimension at constant places."""
    value, indices = inputs[0], inputs[1]
    if not isinstance(value, TOKENS) or not isinstance(indices, Constant):
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    if any(axis.token for axis in value.layout.dims[dim]):
        return None
    places = indices.array.reshape(-1).astype(np.int64) % value.layout.shape[dim]
    taken = moved(context, value, lambda layout: take(layout, dim, places, indices.array.ndim > 0))
    if indices.array.ndim < 2 or not isinstance(taken, TOKENS):
        return taken
    shape = (*value.layout.shape[:dim], *indices.array.shape, *value.layout.shape[dim + 1 :])
    return moved(context, taken, lambda layout: reshape(layout, shape))


def read_split(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, TOKENS):
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    if any(axis.token for axis in value.layout.dims[dim]):
        raise LayoutError("tokens are split")
    size, parts = value.layout.shape[dim], len(node.outputs)
    sizes = list(_given(node, inputs, "split")) if len(inputs) > 1 or "split" in node.attributes else []
    sizes = sizes or [min(-(-size // parts), size - i * -(-size // parts)) for i in range(parts)]
    starts = np.cumsum([0, *sizes])
    return [
        moved(context, value, lambda layout, a=a, b=b: take(layout, dim, np.arange(a, b), True))  # type: ignore[misc]
        for a, b in pairwise(starts.tolist())
    ]


def read_concat(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Concatenation of features: constants or a task vector joined to tokens, stacked experts, q/k/v put together."""
    if not all(isinstance(value, (*TOKENS, Constant, PerTask)) for value in inputs):
        return None
    tokens = [value for value in inputs if isinstance(value, TOKENS)]
    if not tokens:
        return None
    dim = attribute(node, "axis", 0) % len(tokens[0].layout.dims)
    if any(axis.token for axis in tokens[0].layout.dims[dim]):
        return None
    if all(isinstance(value, FeedForward) for value in inputs):
        return _stack([value for value in inputs if isinstance(value, FeedForward)], dim)
    parts = [
        context.builder.materialise(value) if isinstance(value, TOKENS) and not isinstance(value, Affine) else value
        for value in inputs
    ]
    like = next(part for part in parts if isinstance(part, Affine))
    return _join([_as_affine(part, like, dim) for part in parts if isinstance(part, (Affine, Constant, PerTask))], dim)


def _as_affine(part: Affine | Constant | PerTask, like: Affine, dim: int) -> Affine:
    """Constants as affine maps with zero weight over the base of `like`."""
    if isinstance(part, Affine):
        return with_weight(folded(part))
    table = part.array[None] if isinstance(part, Constant) else part.table
    size = table.shape[1:][dim - len(like.layout.dims)]
    dims = (*like.layout.dims[:dim], (Axis(size, False),) if size != 1 else (), *like.layout.dims[dim + 1 :])
    layout = Layout(dims)
    bias = invariant(layout, table)
    selector = None
    if isinstance(part, PerTask):
        selector = Selector("task")
    weight = np.zeros((*[1] * len(layout.axes), 1, like.base.channels), np.float32)
    return Affine(layout, like.base, weight, None, bias, 1.0, selector)


def _widened(layout: Layout, array: Array, dim: int) -> Array:
    """A component array with one full axis for dimension `dim`."""
    merged, merge = merge_dim(layout, dim)
    array = merge(array)
    position = merged.positions(dim).start
    size = layout.shape[dim]
    if not merged.dims[dim]:
        array = np.expand_dims(array, position)
    return np.broadcast_to(array, (*array.shape[:position], size, *array.shape[position + 1 :]))


def _concatenate(layouts: list[Layout], arrays: list[Array], dim: int) -> Array:
    """Component arrays one after the other along dimension `dim`."""
    position = layouts[0].positions(dim).start
    wide = [_widened(layout, array, dim) for layout, array in zip(layouts, arrays, strict=True)]
    sizes = [[array.shape[i] for array in wide] for i in range(wide[0].ndim)]
    target = [max(extents) for extents in sizes]
    full = [
        np.broadcast_to(array, [array.shape[i] if i == position else size for i, size in enumerate(target)])
        for array in wide
    ]
    return np.concatenate(full, axis=position)


def _joined_layout(layouts: list[Layout], dim: int) -> Layout:
    size = sum(layout.shape[dim] for layout in layouts)
    first = layouts[0]
    for layout in layouts:
        if layout.dims[:dim] + layout.dims[dim + 1 :] != first.dims[:dim] + first.dims[dim + 1 :]:
            raise LayoutError("tensors of different token layouts are concatenated")
    return Layout((*first.dims[:dim], (Axis(size, False),), *first.dims[dim + 1 :]))


def _join(parts: list[Affine], dim: int) -> Affine:
    """Affine maps of one base side by side."""
    if any(part.base != parts[0].base for part in parts):
        raise LayoutError("channels of different token matrices are concatenated")
    selectors = [part.selector for part in parts if part.selector is not None]
    if any(selector.source != "task" for selector in selectors) or any(part.weighing is not None for part in parts):
        raise LayoutError("outputs of chosen experts are concatenated")
    layouts = [part.layout for part in parts]
    weight = _concatenate(layouts, [part.weight for part in parts if part.weight is not None], dim)
    bias = _concatenate(layouts, [part.bias for part in parts], dim)
    return Affine(_joined_layout(layouts, dim), parts[0].base, weight, None, bias, 1.0, (*selectors, None)[0])


def _stack(parts: list[FeedForward], dim: int) -> FeedForward:
    """Feed-forward networks of one input side by side, as stacked experts are."""
    first = parts[0]
    if any((part.base, part.form, part.selector) != (first.base, first.form, None) for part in parts):
        raise LayoutError("the outputs of different kinds of experts are concatenated")
    ups = [part.up for part in parts if part.up is not None]
    if len(ups) not in (0, len(parts)):
        raise LayoutError("the outputs of gated and of plain experts are concatenated")
    layouts = [part.layout for part in parts]
    return FeedForward(
        _joined_layout(layouts, dim),
        first.base,
        first.form,
        _concatenate(layouts, [part.first for part in parts], dim),
        _concatenate(layouts, [part.first_bias for part in parts], dim),
        _concatenate(layouts, [part.second for part in parts], dim),
        _concatenate(layouts, [part.second_bias for part in parts], dim),
        up=_concatenate(layouts, ups, dim) if ups else None,
        up_bias=_concatenate(layouts, [p.up_bias for p in parts if p.up_bias is not None], dim) if ups else None,
        coefficient=_routed(layouts, [part.coefficient for part in parts], dim),
        source=_router([part.source for part in parts]),
        weighing=_weighings(layouts, [part.weighing for part in parts], dim),
    )


def _routed(layouts: list[Layout], parts: Sequence[tuple[Array, ...] | None], dim: int) -> tuple[Array, ...] | None:
    """What routing gives networks side by side, on each sample; None where it gives none of them anything."""
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise LayoutError("networks that routing weighs and others are concatenated")
    return tuple(_concatenate(layouts, list(sample), dim) for sample in zip(*given, strict=True)) if given else None


def _router(sources: Sequence[RouteSource | None]) -> RouteSource | None:
    """The one router of networks side by side."""
    if any(source is not sources[0] for source in sources):
        raise LayoutError("networks that different routers weigh are concatenated")
    return sources[0]


def _weighings(layouts: list[Layout], parts: list[Weighing | None], dim: int) -> Weighing | None:
    samples = _routed(layouts, [None if part is None else part.samples for part in parts], dim)
    source = _router([None if part is None else part.source for part in parts])
    return None if samples is None or source is None else Weighing(source, samples)


RULES: Rules = (
    ("Reshape Flatten Squeeze Unsqueeze", read_reshape),
    ("Transpose", read_transpose),
    ("Expand", read_expand),
    ("Tile", read_tile),
    ("Identity Dropout Cast", read_pass),
    ("Slice", read_slice),
    ("Gather", read_gather),
    ("Split", read_split),
    ("Concat", read_concat),
)
