"""A layout follows any sequence of reshapes and transposes exactly as the tensor does, or refuses."""

from __future__ import annotations

from itertools import permutations
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moehls.frontend.layout import (
    Axis,
    Layout,
    LayoutError,
    align,
    expand,
    invariant,
    matrix_layout,
    merge_dim,
    reshape,
    take,
    tile,
    transpose,
)

TOKENS, FEATURES = 6, 12


def divisions(total: int) -> list[tuple[int, ...]]:
    """Shapes of up to four dimensions with `total` elements."""
    found = [(total,)]
    for first in range(1, total + 1):
        if total % first == 0:
            found += [(first, total // first), (1, first, total // first)]
            found += [(first, second, total // first // second) for second in (2, 3) if total // first % second == 0]
    return found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_component_arrays_move_with_the_tensor(data: st.DataObject) -> None:
    """A full component array, read as a tensor, is always the tensor itself."""
    tensor = np.arange(TOKENS * FEATURES).reshape(1, TOKENS, FEATURES)
    layout = matrix_layout(tensor.shape, 1)
    array = align(layout, tensor)
    for _ in range(data.draw(st.integers(1, 5))):
        try:
            if data.draw(st.booleans()):
                shape = data.draw(st.sampled_from(divisions(tensor.size)))
                layout, move = reshape(layout, shape)
                tensor = tensor.reshape(shape)
            else:
                order = data.draw(st.sampled_from(list(permutations(range(tensor.ndim)))))
                layout, move = transpose(layout, order)
                tensor = tensor.transpose(order)
        except LayoutError:
            assume(False)
        array = move(array)
        assert layout.shape == tensor.shape
        assert layout.tokens == TOKENS
        assert layout.features == FEATURES
        np.testing.assert_array_equal(array.reshape(tensor.shape), tensor)


def test_heads_of_a_fused_qkv_keep_their_tokens() -> None:
    layout = matrix_layout((1, 5, 24), 1)
    split, _ = reshape(layout, (1, 5, 3, 2, 4))
    moved, _ = transpose(split, (2, 0, 3, 1, 4))
    assert moved.shape == (3, 1, 2, 5, 4)
    assert [axis.token for axis in moved.axes] == [False, False, True, False]


def test_a_grid_of_patches_is_numbered_row_by_row() -> None:
    grid = Layout(((), (Axis(4, False),), (Axis(2, True),), (Axis(3, True),)))
    flat, _ = reshape(grid, (1, 4, 6))
    assert flat.dims[2] == (Axis(2, True), Axis(3, True))
    with pytest.raises(LayoutError, match="order of the tokens"):
        transpose(grid, (0, 1, 3, 2))


@pytest.mark.parametrize("shape", [(1, 4, 18), (8, 9), (1, 72)])
def test_reshapes_that_cut_tokens_unevenly_are_refused_or_keep_both_kinds_apart(shape: tuple[int, ...]) -> None:
    layout = matrix_layout((1, TOKENS, FEATURES), 1)
    if shape in ((1, 4, 18), (8, 9)):
        with pytest.raises(LayoutError, match=r"unevenly|mixes"):
            reshape(layout, shape)
        return
    result, _ = reshape(layout, shape)
    assert result.shape == shape
    assert prod(axis.size for axis in result.axes if axis.token) == TOKENS


@pytest.mark.parametrize("repeats", [(1, 4, 1), (3, 1, 1), (1, 1, 2), (2, 3, 2)])
def test_tile_repeats_dimensions_as_wholes(repeats: tuple[int, ...]) -> None:
    array = np.arange(15).reshape(1, 5, 3)
    layout, move = tile(matrix_layout((1, 5, 3), 1), repeats)
    sizes = [axis.size for axis in layout.axes]
    moved = np.broadcast_to(move(array.reshape(5, 3)), sizes).reshape(layout.shape)
    np.testing.assert_array_equal(moved, np.tile(array, repeats))


def test_expand_adds_axes_along_which_nothing_varies() -> None:
    layout, move = expand(matrix_layout((1, 5, 3), 1), (4, 5, 3))
    assert layout.shape == (4, 5, 3)
    assert move(np.zeros((5, 3))).shape == (1, 5, 3)
    with pytest.raises(LayoutError, match="broadcast"):
        expand(matrix_layout((2, 5), 0), (3, 5))


def test_take_drops_or_keeps_a_dimension() -> None:
    layout = matrix_layout((3, 5, 4), 1)
    array = np.arange(12).reshape(3, 1, 4)
    dropped, move = take(layout, 0, np.array([2]), keep=False)
    assert dropped.shape == (5, 4)
    np.testing.assert_array_equal(move(array), array[2])
    kept, move = take(layout, 2, np.array([3, 1]), keep=True)
    assert kept.shape == (3, 5, 2)
    np.testing.assert_array_equal(move(array), array[:, :, [3, 1]])
    with pytest.raises(LayoutError, match="tokens"):
        take(layout, 1, np.array([0]), keep=False)


def test_merge_broadcasts_only_what_varies() -> None:
    layout, _ = reshape(matrix_layout((5, 12), 0), (5, 3, 4))
    joined, _ = reshape(layout, (5, 12))
    merged, move = merge_dim(joined, 1)
    assert merged.dims[1] == (Axis(12, False),)
    np.testing.assert_array_equal(move(np.arange(4).reshape(1, 1, 4))[0], np.tile(np.arange(4), 3))
    assert move(np.zeros((1, 1, 1))).shape == (1, 1)


def test_a_constant_that_differs_from_token_to_token_is_not_invariant() -> None:
    layout = matrix_layout((1, 5, 3), 1)
    assert invariant(layout, np.ones((2, 1, 5, 3))).shape == (1, 3, 2)
    with pytest.raises(LayoutError, match="token to token"):
        invariant(layout, np.arange(15.0).reshape(1, 1, 5, 3))
