"""Affine maps of token matrices as arrays: plain rows, explicit weights, and weights with channels in tensor order."""

from __future__ import annotations

import dataclasses

import numpy as np

from moehls.frontend.layout import Array, Layout, LayoutError
from moehls.frontend.values import Affine, Base

LARGEST = 1 << 28
"""Elements an array may have; more is a damaged or hostile file."""


def identity_index(layout: Layout) -> Array:
    """`[*axes]`: the number of each feature element in tensor order."""
    sizes = [1 if axis.token else axis.size for axis in layout.axes]
    return np.arange(layout.features, dtype=np.int64).reshape(sizes)


def rows(base: Base, layout: Layout) -> Affine:
    """The plain rows of `base`, seen in `layout`."""
    ones = [1] * len(layout.axes)
    return Affine(layout, base, None, identity_index(layout), np.zeros([*ones, 1], np.float32))


def folded(value: Affine) -> Affine:
    """The same map with factor 1."""
    if value.factor == 1.0:
        return value
    dense = with_weight(value)
    assert dense.weight is not None
    weight, bias = dense.weight * np.float32(value.factor), dense.bias * np.float32(value.factor)
    return dataclasses.replace(dense, weight=weight, bias=bias, factor=1.0)


def with_weight(value: Affine) -> Affine:
    """The same map with an explicit weight array."""
    if value.weight is not None:
        return value
    assert value.index is not None
    if value.index.size * value.base.channels > LARGEST:
        raise LayoutError(f"a map of {value.base.channels} to {value.index.size} channels is larger than any layer")
    weight = np.zeros((*value.index.shape, 1, value.base.channels), np.float32)
    np.put_along_axis(weight, value.index[..., None, None], np.float32(1), axis=-1)
    return dataclasses.replace(value, weight=weight, index=None)


def is_rows(value: Affine) -> bool:
    """Whether the elements are exactly the base's channels in tensor order."""
    return (
        value.index is not None
        and value.factor == 1.0
        and not value.bias.any()
        and value.base.channels == value.layout.features
        and np.array_equal(value.index, identity_index(value.layout))
    )


def full_features(layout: Layout, array: Array) -> Array:
    """A component `[*axes, …]` that is the same for all tokens, as `[features, …]` in tensor order."""
    count = len(layout.axes)
    for position in layout.token_positions:
        if array.shape[position] != 1:
            raise LayoutError("a weight differs from token to token")
    sizes = [1 if axis.token else axis.size for axis in layout.axes]
    trailing = array.shape[count:]
    return np.broadcast_to(array, (*sizes, *trailing)).reshape(layout.features, *trailing)
