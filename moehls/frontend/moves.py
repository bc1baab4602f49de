"""Data movements of lazy values: the same movement of every component array."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from moehls.frontend.layout import Layout, Move
from moehls.frontend.values import Affine, FeedForward, Grid, Hidden, Patches, Pointwise

Lazy = TypeVar("Lazy", bound=Affine | FeedForward | Patches | Pointwise | Hidden)

_COMPONENTS: dict[type, tuple[str, ...]] = {
    Affine: ("weight", "index", "bias"),
    FeedForward: ("first", "first_bias", "second", "second_bias", "up", "up_bias"),
    Patches: ("weight", "bias", "prefix", "position"),
}


def restructure(value: Lazy, layout: Layout, move: Move) -> Lazy:
    """`value` after a data movement: `move` applied to every component array."""
    changes: dict[str, Any] = {}
    if isinstance(value, Pointwise):
        changes["operand"] = restructure(value.operand, layout, move)
        return replace(value, **changes)
    if isinstance(value, Hidden):
        changes["pre"] = restructure(value.pre, layout, move)
        changes["up"] = None if value.up is None else restructure(value.up, layout, move)
        return replace(value, grid=_moved(value.grid, move), **changes)
    changes["layout"] = layout
    changes |= {
        name: move(getattr(value, name)) for name in _COMPONENTS[type(value)] if getattr(value, name) is not None
    }
    if isinstance(value, Affine):
        changes["grid"] = _moved(value.grid, move)
    if isinstance(value, (Affine, FeedForward)) and value.selector is not None:
        moved = tuple(move(sample) for sample in value.selector.samples)
        changes["selector"] = replace(value.selector, samples=moved)
    if isinstance(value, (Affine, FeedForward)) and value.weighing is not None:
        moved = tuple(move(sample) for sample in value.weighing.samples)
        changes["weighing"] = replace(value.weighing, samples=moved)
    if isinstance(value, FeedForward) and value.coefficient is not None:
        changes["coefficient"] = tuple(move(sample) for sample in value.coefficient)
    return replace(value, **changes)


def _moved(grid: Grid | None, move: Move) -> Grid | None:
    return None if grid is None else replace(grid, scale=move(grid.scale), zero=move(grid.zero))
