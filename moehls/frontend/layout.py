"""Where the tokens and channels of a value lie in an ONNX tensor.

A tensor dimension is a product of axes; each axis runs over tokens or over channels ("features"). Dimensions of size
1 have no axis. Reshape and Transpose only split and regroup axes, so one description serves every order of reshapes
an exporter may write: patch grids, heads, fused q/k/v, stacked experts, tokens repeated once a chosen expert.

Component arrays (weights, biases, routing samples) carry one array axis for each layout axis, of the axis' size or of
size 1 where the array does not vary along it, then any trailing axes of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Move = Callable[[Array], Array]


class LayoutError(Exception):
    """A data movement that a token matrix cannot follow; the text is the reason shown to the user."""


@dataclass(frozen=True)
class Axis:
    """One axis, over tokens or over features; its size is at least 2."""

    size: int
    token: bool


@dataclass(frozen=True)
class Layout:
    """Axes of each tensor dimension, outer first. Token axes in order number the tokens, outer first."""

    dims: tuple[tuple[Axis, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(axis.size for axis in dim) for dim in self.dims)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(axis for dim in self.dims for axis in dim)

    @property
    def tokens(self) -> int:
        return prod(axis.size for axis in self.axes if axis.token)

    @property
    def features(self) -> int:
        return prod(axis.size for axis in self.axes if not axis.token)

    def positions(self, dim: int) -> range:
        """Array axes of tensor dimension `dim`."""
        start = sum(len(group) for group in self.dims[:dim])
        return range(start, start + len(self.dims[dim]))

    @property
    def token_positions(self) -> tuple[int, ...]:
        return tuple(i for i, axis in enumerate(self.axes) if axis.token)

    @property
    def feature_positions(self) -> tuple[int, ...]:
        return tuple(i for i, axis in enumerate(self.axes) if not axis.token)


def axes_of(size: int, token: bool) -> tuple[Axis, ...]:
    """The axes of a plain dimension: one, or none for size 1."""
    return (Axis(size, token),) if size != 1 else ()


def matrix_layout(shape: Sequence[int], token_dim: int | None) -> Layout:
    """The layout of a fresh tensor whose dimension `token_dim` runs over tokens and whose others are features."""
    return Layout(tuple(axes_of(size, i == token_dim) for i, size in enumerate(shape)))


def _split_factors(shape: Sequence[int], axes: Sequence[Axis]) -> list[list[int]]:
    """Factors of each axis such that every boundary of `shape` falls between factors."""
    targets: list[int] = []
    total = 1
    for size in shape:
        total *= size
        targets.append(total)
    factors: list[list[int]] = []
    before = 1
    for axis in axes:
        end = before * axis.size
        inner = sorted({target for target in targets if before < target < end})
        parts, last = [], before
        for point in [*inner, end]:
            if point % last:
                raise LayoutError(
                    f"a dimension of {axis.size} {'tokens' if axis.token else 'channels'} is cut unevenly"
                )
            parts.append(point // last)
            last = point
        factors.append(parts)
        before = end
    return factors


def reshape(layout: Layout, shape: Sequence[int]) -> tuple[Layout, Move]:
    """Reshape to `shape` (no -1, same number of elements); returns the new layout and the move of component arrays."""
    axes = layout.axes
    factors = _split_factors(shape, axes)
    flat = [Axis(part, axis.token) for axis, parts in zip(axes, factors, strict=True) for part in parts]
    dims: list[tuple[Axis, ...]] = []
    position = 0
    for size in shape:
        group: list[Axis] = []
        while prod(axis.size for axis in group) < size:
            group.append(flat[position])
            position += 1
        if prod(axis.size for axis in group) != size:
            raise LayoutError(f"reshape to {list(shape)} mixes tokens and channels")
        dims.append(tuple(group))

    def move(array: Array) -> Array:
        new: list[int] = []
        for extent, parts in zip(array.shape[: len(axes)], factors, strict=True):
            new += parts if extent != 1 else [1] * len(parts)
        return array.reshape(*new, *array.shape[len(axes) :])

    return Layout(tuple(dims)), move


def transpose(layout: Layout, order: Sequence[int]) -> tuple[Layout, Move]:
    """Permute tensor dimensions; token axes must keep their order."""
    positions = [p for dim in order for p in layout.positions(dim)]
    tokens = [p for p in positions if layout.axes[p].token]
    if tokens != sorted(tokens):
        raise LayoutError("the order of the tokens is changed")

    def move(array: Array) -> Array:
        return array.transpose(*positions, *range(len(positions), array.ndim))

    return Layout(tuple(layout.dims[dim] for dim in order)), move


def tile(layout: Layout, repeats: Sequence[int]) -> tuple[Layout, Move]:
    """Each dimension repeated as a whole; the repetitions are a feature axis before its own, along which arrays do not vary."""
    if len(repeats) != len(layout.dims) or min(repeats, default=1) < 1:
        raise LayoutError(f"cannot repeat {list(layout.shape)} {list(repeats)} times")
    dims: list[tuple[Axis, ...]] = []
    inserted: list[int] = []
    position = 0
    for group, count in zip(layout.dims, repeats, strict=True):
        if count != 1:
            inserted.append(position)
            group = (Axis(count, False), *group)
        dims.append(group)
        position += len(group)

    return Layout(tuple(dims)), _inserting(inserted)


def expand(layout: Layout, shape: Sequence[int]) -> tuple[Layout, Move]:
    """Broadcast to `shape` by NumPy's rules; new axes are features along which arrays do not vary."""
    lead = len(shape) - len(layout.dims)
    old_dims = ((),) * max(lead, 0) + layout.dims
    if lead < 0:
        shape = (1,) * -lead + tuple(shape)
    dims: list[tuple[Axis, ...]] = []
    inserted: list[int] = []
    position = 0
    for group, size in zip(old_dims, shape, strict=True):
        if not group and size != 1:
            inserted.append(position)
            group = (Axis(size, False),)
        elif group and size not in (1, prod(axis.size for axis in group)):
            raise LayoutError(f"cannot broadcast {list(layout.shape)} to {list(shape)}")
        dims.append(group)
        position += len(group)

    return Layout(tuple(dims)), _inserting(inserted)


def _inserting(axes: Sequence[int]) -> Move:
    """Puts axes of size 1 at these places, the lowest first."""

    def move(array: Array) -> Array:
        for at in axes:
            array = np.expand_dims(array, at)
        return array

    return move


def align(layout: Layout, array: Array) -> Array:
    """A tensor-shaped array, broadcastable to the layout's shape, as a component array."""
    shape = (1,) * (len(layout.dims) - array.ndim) + array.shape
    new: list[int] = []
    for group, size in zip(layout.dims, shape, strict=True):
        sizes = [axis.size for axis in group]
        if size == 1:
            new += [1] * len(sizes)
        elif size == prod(sizes):
            new += sizes
        else:
            raise LayoutError(f"{list(array.shape)} does not broadcast to {list(layout.shape)}")
    return array.reshape(new)


def component(layout: Layout, table: Array) -> Array:
    """`[variants, *tensor shape]` as a component array `[*axes, variants]`."""
    return np.stack([align(layout, entry) for entry in table], axis=-1)


def invariant(layout: Layout, table: Array) -> Array:
    """As `component`, for a table that is the same for all tokens.

    Raises:
        LayoutError: it differs from token to token.
    """
    array = component(layout, table)
    for position in layout.token_positions:
        head = np.take(array, [0], axis=position)
        if array.shape[position] != 1 and not np.array_equal(np.broadcast_to(head, array.shape), array):
            raise LayoutError("a constant that differs from token to token is combined with tokens")
        array = head
    return array


def take(layout: Layout, dim: int, indices: npt.NDArray[np.int64], keep: bool) -> tuple[Layout, Move]:
    """Entries `indices` of a feature dimension; without `keep` the dimension goes (one index)."""
    group = layout.dims[dim]
    if any(axis.token for axis in group):
        raise LayoutError("tokens are taken where channels were expected")
    merged, merge = merge_dim(layout, dim)
    position = merged.positions(dim).start
    new = axes_of(len(indices), False) if keep else ()
    dims = merged.dims[:dim] + ((new,) if keep else ()) + merged.dims[dim + 1 :]

    def move(array: Array) -> Array:
        array = merge(array)
        if not group:
            array = np.expand_dims(array, position)
        if array.shape[position] != 1:
            array = np.take(array, indices, axis=position)
        return array if new else np.take(array, 0, axis=position)

    return Layout(dims), move


def merge_dim(layout: Layout, dim: int) -> tuple[Layout, Move]:
    """Give dimension `dim` a single axis; its axes must all be tokens or all features."""
    group = layout.dims[dim]
    if len(group) < 2:
        return layout, lambda array: array
    if len({axis.token for axis in group}) != 1:
        raise LayoutError("a dimension holds tokens and channels together")
    positions = layout.positions(dim)
    sizes = [axis.size for axis in group]
    total = prod(sizes)
    dims = (*layout.dims[:dim], (Axis(total, group[0].token),), *layout.dims[dim + 1 :])

    def move(array: Array) -> Array:
        before, inner = array.shape[: positions.start], array.shape[positions.start : positions.stop]
        after = array.shape[positions.stop :]
        if all(extent == 1 for extent in inner):
            return array.reshape(*before, 1, *after)
        return np.broadcast_to(array, (*before, *sizes, *after)).reshape(*before, total, *after)

    return Layout(dims), move


def drop_dims(layout: Layout, dims: Sequence[int], keep_dims: bool) -> Layout:
    """Remove tensor dimensions `dims` (after a reduction); with `keep_dims` they stay with size 1."""
    return Layout(
        tuple(() if i in dims else group for i, group in enumerate(layout.dims) if keep_dims or i not in dims)
    )
