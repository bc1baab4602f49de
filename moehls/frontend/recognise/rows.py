"""Rows that routing takes out of a matrix of tokens: which tokens they are of, how they are moved, where they are written.

How many rows an expert gets differs from sample to sample. A tensor of rows has the layout that it would have with all tokens in
the place of the rows, and its elements lie in the order rows, channels, whatever dimensions of size 1 are about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, UnsupportedError, attribute
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.layout import Array, Layout, LayoutError, reshape
from moehls.frontend.recognise.structure import moved
from moehls.frontend.values import Affine, Constant, Dispatched, FeedForward, Hidden, Mixture, Pointwise, Routed, Value

ROWS = (Affine, Pointwise, Hidden, FeedForward, Mixture)


def rows_dim(layout: Layout) -> int | None:
    """The dimension that runs over the tokens, perhaps with channels behind them; None where elements lie otherwise."""
    kinds = [axis.token for axis in layout.axes]
    dims = [dim for dim, group in enumerate(layout.dims) if any(axis.token for axis in group)]
    return dims[0] if len(dims) == 1 and kinds == sorted(kinds, reverse=True) else None


def rows_shape(layout: Layout, count: int) -> tuple[int, ...]:
    """The shape of a tensor of `count` rows."""
    place = rows_dim(layout)
    return tuple(size // layout.tokens * count if dim == place else size for dim, size in enumerate(layout.shape))


def shape_of_all(shapes: Sequence[tuple[int, ...]], counts: Sequence[int], tokens: int) -> tuple[int, ...] | None:
    """The shape with all tokens in the place of the rows, of the shapes that samples with `counts` rows have."""
    most = int(np.argmax(counts))
    telling = most if counts[most] > 1 else int(np.argmin(counts))  # the place of the rows shows where they are not one
    place = next((dim for dim, size in enumerate(shapes[telling]) if size != 1), None)
    if place is None or not counts[most] or place >= len(shapes[most]):
        return None
    before, own, behind = shapes[most][:place], shapes[most][place] // counts[most], shapes[most][place + 1 :]
    if any((*before, own * rows, *behind) != found for rows, found in zip(counts, shapes, strict=True)):
        return None
    return (*before, own * tokens, *behind)


def gathered_rows(node: ir.Node, layout: Layout, index: Routed) -> tuple[Routed, tuple[int, ...]] | None:
    """What a Gather or GatherND takes of tokens in `layout`.

    Returns:
        the token of each row, and the shape with all tokens in the place of the rows; None where it takes no whole rows.
    """
    lead = max((dim + 1 for dim, group in enumerate(layout.dims) if any(axis.token for axis in group)), default=0)
    if any(not axis.token for group in layout.dims[:lead] for axis in group):
        return None
    numbers = np.arange(layout.tokens).reshape(layout.shape[:lead])
    if node.op_type == "GatherND":
        if attribute(node, "batch_dims", 0) or index.shape[-1] > lead:
            return None
        taken = [numbers[tuple(np.moveaxis(sample, -1, 0))] for sample in index.samples]
    else:
        axis = attribute(node, "axis", 0) % len(layout.dims)
        if axis >= lead:
            return None
        taken = [np.take(numbers, sample, axis) for sample in index.samples]
    shapes = [(*rows.shape, *layout.shape[lead:]) for rows in taken]
    shape = shape_of_all(shapes, [rows.size for rows in taken], layout.tokens)
    return None if shape is None else (Routed(index.source, tuple(rows.reshape(-1) for rows in taken)), shape)


def moved_rows(context: Context, node: ir.Node, inputs: list[Value]) -> Dispatched | None:
    """Reshape, Squeeze, Unsqueeze, Flatten, Transpose, Expand or Slice that keeps all rows and their order.

    Raises:
        LayoutError: it does not.
    """
    value, given = inputs[0], inputs[1:]
    if not isinstance(value, Dispatched) or not all(isinstance(entry, (Constant, Routed)) for entry in given):
        return None
    layout, features = value.rows.layout, value.rows.layout.features
    evaluate = NodeEvaluator(node, context.opset)
    shapes: list[tuple[int, ...]] = []
    for number, tokens in enumerate(value.tokens.samples):
        own = np.arange(len(tokens) * features).reshape(rows_shape(layout, len(tokens)))
        others = [_at(entry, number) for entry in given]
        try:
            (result,) = evaluate([own, *others])
        except UnsupportedError as error:
            raise _squeezed(node, own.shape) or _baked_in(node, inputs[1:]) or error from error
        if not np.array_equal(result.reshape(-1), own.reshape(-1)):
            raise LayoutError("rows of an expert are repeated, left out or put in another order")
        shapes.append(result.shape)
    shape = shape_of_all(shapes, [len(tokens) for tokens in value.tokens.samples], layout.tokens)
    if shape is None:
        raise LayoutError("rows of an expert are cut at places that depend on the routing")
    rows = moved(context, value.rows, lambda layout: reshape(layout, shape))
    assert isinstance(rows, ROWS)
    return replace(value, rows=rows)


def _at(value: Value, number: int) -> Array | None:
    """A constant, or a routed value on a sample."""
    return value.array if isinstance(value, Constant) else value.samples[number] if isinstance(value, Routed) else None


def _squeezed(node: ir.Node, shape: tuple[int, ...]) -> UnsupportedError | None:
    if node.op_type != "Squeeze":
        return None
    return UnsupportedError(
        f"it takes away a dimension of a tensor {list(shape)} that is not 1, which onnxruntime refuses too: PyTorch's "
        "`squeeze(dim)` does nothing there, and dynamo writes it all the same",
        "leave the squeeze out, or export with dynamo=False",
    )


def _baked_in(node: ir.Node, given: list[Value]) -> UnsupportedError | None:
    if node.op_type != "Reshape" or not isinstance(given[0], Constant):
        return None
    return UnsupportedError(
        "its shape holds the number of rows that an expert got of the example input, as TorchScript writes it where a mask "
        "chooses rows",
        "export with dynamo=True, add the rows with index_add, or run every expert on all tokens",
        ends=True,
    )


def weights_of_rows(value: Dispatched, routed: Routed) -> tuple[Array, ...] | None:
    """`[rows]` of each sample: what multiplies each row; None where it is not one number a row."""
    layout = value.rows.layout
    place = rows_dim(layout)
    if place is None or any(not axis.token for axis in layout.dims[place]):
        return None
    found: list[Array] = []
    for sample, tokens in zip(routed.samples, value.tokens.samples, strict=True):
        shape = rows_shape(layout, len(tokens))
        lead = sample.shape[: place + 1 - len(shape)] if len(shape) - place > 1 else sample.shape
        if sample.ndim > len(shape) or prod(sample.shape) != prod(lead) or prod(lead) not in (1, len(tokens)):
            return None
        if np.broadcast_shapes(shape, sample.shape) != shape:
            return None
        found.append(np.broadcast_to(sample.reshape(-1), (len(tokens),)))
    return tuple(found)


def zero_rows(value: Dispatched, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether tensors of these shapes, one a sample, can be added to the rows without changing their shape."""
    counts = [len(tokens) for tokens in value.tokens.samples]
    own = [rows_shape(value.rows.layout, count) for count in counts]
    return all(np.broadcast_shapes(a, b) == a for a, b in zip(own, shapes, strict=True))


def written_to_own(node: ir.Node, index: Routed, shape: tuple[int, ...], rows: Dispatched) -> bool:
    """Whether a ScatterND or ScatterElements into a tensor of `shape` writes every row at the token that it is of."""
    features = prod(shape) // rows.rows.layout.tokens
    if features != rows.rows.layout.features or prod(shape) % rows.rows.layout.tokens:
        return False
    for sample, tokens in zip(index.samples, rows.tokens.samples, strict=True):
        places = written_places(node, sample, shape, rows_shape(rows.rows.layout, len(tokens)))
        own = tokens[:, None] * features + np.arange(features)
        if places is None or not np.array_equal(places, own.reshape(-1)):
            return False
    return True


def written_places(node: ir.Node, index: Array, shape: tuple[int, ...], updates: tuple[int, ...]) -> Array | None:
    """Where each element of the updates is written in the flat tensor; None where the shapes do not fit."""
    if node.op_type == "ScatterElements":
        axis = attribute(node, "axis", 0) % len(shape)
        if index.shape != updates or len(updates) != len(shape):
            return None
        along = [index % shape[axis] if dim == axis else grid for dim, grid in enumerate(np.indices(updates))]
        return np.asarray(np.ravel_multi_index(tuple(along), shape).reshape(-1))
    depth = index.shape[-1]
    if updates != (*index.shape[:-1], *shape[depth:]):
        return None
    own = prod(shape[depth:])
    first = np.ravel_multi_index(tuple(np.moveaxis(index % np.array(shape[:depth]), -1, 0)), shape[:depth])
    return np.asarray((first.reshape(-1, 1) * own + np.arange(own)).reshape(-1))
