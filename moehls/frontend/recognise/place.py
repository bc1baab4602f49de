"""Rows of all slots of the tokens, written expert by expert (`y[choice == e] = expert(x.repeat_interleave(k)[choice == e])`).

Once every row is written the tensor is that of networks which each slot selects, whatever it held before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import attribute
from moehls.frontend.layout import Array, Axis, Layout, LayoutError
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.rows import rows_shape, written_places
from moehls.frontend.recognise.sort import row_numbers
from moehls.frontend.values import Affine, Constant, Dispatched, FeedForward, Placed, Routed, Selector, Slotted, Value

_ARRAYS = ("first", "first_bias", "second", "second_bias", "up", "up_bias")


def rows_of_slots(node: ir.Node, value: Affine, index: Routed) -> Dispatched | None:
    """Rows of a matrix `[tokens · slots, channels]` that holds every token once a slot."""
    first, *rest = value.layout.dims
    tokens = [axis for axis in first if axis.token]
    numbers = row_numbers(node, index)
    if numbers is None or len(first) != 2 or tokens != [first[0]] or any(axis.token for dim in rest for axis in dim):
        return None
    arrays = [array for array in (value.weight, value.index, value.bias) if array is not None]
    if any(array.shape[1] != 1 for array in arrays) or value.selector is not None or value.weighing is not None:
        return None
    one = restructure(replace(value, grid=None), Layout(((first[0],), *rest)), lambda array: np.squeeze(array, 1))
    count = first[1].size
    return Dispatched(one, replace(index, samples=tuple(n // count for n in numbers)), slots=Slotted(count, numbers))


def place_rows(node: ir.Node, total: Value, index: Routed, rows: Dispatched) -> Placed | FeedForward:
    """The matrix `total` with an expert's rows written: networks by slot once no row is left.

    Raises:
        LayoutError: a row is written elsewhere than it was taken from, or twice, or another kind of network into the matrix.
    """
    parts = total.parts if isinstance(total, Placed) else ()
    shape = total.shape if isinstance(total, Placed) else total.array.shape if isinstance(total, Constant) else None
    assert rows.slots is not None
    value, layout = rows.rows, rows.rows.layout
    if shape != (layout.tokens * rows.slots.count, layout.features) or not isinstance(value, FeedForward):
        raise LayoutError("rows of experts are written into a tensor that holds something else")
    if attribute(node, "reduction", "none") != "none" or value.selector is not None:
        raise LayoutError("rows of experts are added into a matrix of all slots")
    for sample, numbers in zip(index.samples, rows.slots.rows, strict=True):
        places = written_places(node, sample, shape, rows_shape(layout, len(numbers)))
        own = numbers[:, None] * layout.features + np.arange(layout.features)
        if places is None or not np.array_equal(places, own.reshape(-1)):
            raise LayoutError("the outputs of an expert are added to other tokens than it got")
    layout = Layout(tuple(tuple(axis for axis in layout.axes if axis.token == token) for token in (True, False)))
    count, parts = rows.slots.count, (*parts, replace(rows, rows=restructure(value, layout, lambda array: array)))
    kinds = [
        (p.rows.layout, p.rows.base, p.rows.form, p.rows.up is None) for p in parts if isinstance(p.rows, FeedForward)
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise LayoutError("experts of different kinds are written into one tensor")
    chosen = [_chosen(parts, sample, shape[0]) for sample in range(len(rows.tokens.samples))]
    if any((each < 0).any() for each in chosen):
        return Placed(shape, parts)
    return _selected(parts, chosen, count)


def _chosen(parts: tuple[Dispatched, ...], sample: int, count: int) -> Array:
    """For each of `count` rows the expert that writes it, -1 where none does."""
    found = np.full(count, -1, np.int64)
    for number, part in enumerate(parts):
        assert part.slots is not None
        rows = part.slots.rows[sample]
        if (found[rows] >= 0).any():
            raise LayoutError("a row is written by two experts")
        found[rows] = number
    return found


def _selected(parts: tuple[Dispatched, ...], chosen: list[Array], count: int) -> FeedForward:
    """Networks by slot; `chosen` are the numbers of each sample's networks, `[tokens · slots]`."""
    networks = [part.rows for part in parts if isinstance(part.rows, FeedForward)]
    source, (tokens, channels) = parts[0].tokens.source, networks[0].layout.dims
    layout = Layout(((*tokens, Axis(count, False)), channels))
    place = len(tokens)
    wide = [restructure(network, layout, lambda array: np.expand_dims(array, place)) for network in networks]
    sizes = [axis.size for axis in tokens] + [count] + [1] * len(channels)
    arrays: dict[str, Any] = {}
    for name in _ARRAYS:
        own = [array for network in wide if (array := getattr(network, name)) is not None]
        if own:
            shape = np.broadcast_shapes(*(array.shape for array in own))
            arrays[name] = np.concatenate([np.broadcast_to(array, shape) for array in own], axis=len(layout.axes))
    coefficient: list[Array] = []
    for number, each in enumerate(chosen):
        weight = np.ones(len(each), np.float32)
        for part in parts:
            if part.weight is not None and part.slots is not None:
                weight[part.slots.rows[number]] = part.weight[number]
        coefficient.append(weight.reshape(sizes))
    if any(network.weighing is not None for network in networks):
        raise LayoutError("the inputs of experts are weighed a slot at a time")
    return replace(
        wide[0],
        **arrays,
        selector=Selector(source, tuple(each.reshape(sizes) for each in chosen)),
        coefficient=tuple(coefficient),
        source=source,
        grid=None,
        up_grid=None,
    )
