"""Selection of tokens (the class token before a head): it moves before the layer normalisation and the maps it can
pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute
from moehls.frontend.layout import Array, Axis, Layout, LayoutError, merge_dim
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.structure import TOKENS, chosen_indices
from moehls.frontend.values import Affine, Constant, Hidden, Normalised, Pointwise, Tokens, Value


def select(context: Context, value: Tokens, dim: int, start: int, stop: int, keep: bool) -> Tokens:
    """Tokens `start … stop-1` along dimension `dim`, which holds all tokens and nothing else."""
    if any(axis.token for i, group in enumerate(value.layout.dims) if i != dim for axis in group):
        raise LayoutError("tokens are selected along one of several token dimensions")
    if isinstance(value, Normalised):
        layout = _selected(value.layout, dim, stop - start, keep)
        return replace(value, layout=layout, base=context.builder.select(value.base, start, stop))
    if isinstance(value, (Pointwise, Hidden)) or not isinstance(value, Affine):
        value = context.builder.materialise(value)
    merged = restructure(value, *merge_dim(value.layout, dim))
    position = merged.layout.positions(dim).start
    layout = _selected(merged.layout, dim, stop - start, keep)
    base = context.builder.select(merged.base, start, stop)
    if merged.selector is not None and merged.selector.samples:
        raise LayoutError("tokens are selected from the outputs of chosen experts")

    def move(array: Array) -> Array:
        return (
            array if layout.dims[dim : dim + 1] == ((Axis(stop - start, True),),) else np.take(array, 0, axis=position)
        )

    return replace(restructure(merged, layout, move), base=base)


def _selected(layout: Layout, dim: int, count: int, keep: bool) -> Layout:
    group = ((Axis(count, True),) if count != 1 else (),) if keep else ()
    return Layout(layout.dims[:dim] + group + layout.dims[dim + 1 :])


def _token_dims(value: Tokens) -> list[int]:
    return [i for i, group in enumerate(value.layout.dims) if any(axis.token for axis in group)]


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value, indices = inputs[0], inputs[1]
    if not isinstance(value, TOKENS) or not isinstance(indices, Constant) or indices.array.ndim > 1:
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    if dim not in _token_dims(value):
        return None
    size = value.layout.shape[dim]
    places = indices.array.reshape(-1).astype(np.int64) % size
    return select(context, value, dim, *_range(places), keep=indices.array.ndim == 1)


def _range(places: Array) -> tuple[int, int]:
    start, stop = int(places[0]), int(places[-1]) + 1
    if not np.array_equal(places, np.arange(start, stop)):
        raise LayoutError("tokens are selected that do not follow one another")
    return start, stop


def read_slice(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, TOKENS) or not all(isinstance(item, Constant) for item in inputs[1:]):
        return None
    for dim in _token_dims(value):
        size = value.layout.shape[dim]
        places = chosen_indices(node, inputs, dim, size, context.opset)
        if len(places) != size or not np.array_equal(places, np.arange(size)):
            return select(context, value, dim, *_range(places), keep=True)
    return None


RULES: Rules = (
    ("Gather", read_gather),
    ("Slice", read_slice),
)
