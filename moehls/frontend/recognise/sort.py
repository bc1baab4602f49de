"""Tokens sorted by expert: a row for each token and chosen expert, in an order that routing decides.

The rows are read in the order of the tokens: whatever meets them row by row (weights gathered by expert, gate weights) is put
back into that order, and the order vanishes where the rows are added to their tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.layout import Array, LayoutError, expand, reshape
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.experts import sum_dims
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.values import (
    Affine,
    Constant,
    FeedForward,
    Gathered,
    Hidden,
    Permuted,
    Pointwise,
    Routed,
    Value,
    shape_of,
)

_ROWWISE = (
    "MatMul Gemm Einsum Add Sub Mul Div Pow Erf Tanh Sigmoid Gelu Relu Identity Dropout Cast "
    "Reshape Squeeze Unsqueeze Transpose"
)


def row_numbers(node: ir.Node, index: Routed) -> tuple[Array, ...] | None:
    """The rows that a Gather along dimension 0, or a GatherND with one index, takes on each sample."""
    if node.op_type == "GatherND":
        plain = not attribute(node, "batch_dims", 0) and all(s.ndim == 2 and s.shape[1] == 1 for s in index.samples)
        return tuple(sample[:, 0] for sample in index.samples) if plain else None
    plain = attribute(node, "axis", 0) == 0 and all(sample.ndim == 1 for sample in index.samples)
    return index.samples if plain else None


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Every token as often as experts are chosen for it."""
    value, index = inputs[0], inputs[1]
    if not isinstance(index, Routed) or isinstance(value, (Constant, Routed)):
        return None
    numbers, rows = row_numbers(node, index), as_affine(context, value)
    if numbers is None or rows is None or rows.layout.shape[0] != rows.layout.tokens:
        return None
    tokens = rows.layout.tokens
    slots = len(numbers[0]) // tokens
    if slots < 2 or any(not np.array_equal(np.sort(row), np.repeat(np.arange(tokens), slots)) for row in numbers):
        return None
    shape = rows.layout.shape
    rows = restructure(rows, *reshape(rows.layout, (tokens, 1, *shape[1:])))
    rows = restructure(rows, *expand(rows.layout, (tokens, slots, *shape[1:])))
    rows = restructure(rows, *reshape(rows.layout, (tokens * slots, *shape[1:])))
    return Permuted(rows, replace(index, samples=tuple(_places(row) for row in numbers)))


def _places(row: Array) -> Array:
    """For each row its place in the order of the tokens."""
    places = np.empty_like(row)
    places[np.argsort(row, kind="stable")] = np.arange(len(row))
    return places


def read_rowwise(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A node that works on each row alone, read in the order of the tokens."""
    first = next((value for value in inputs if isinstance(value, Permuted)), None)
    if first is None:
        return None
    given = [_in_order(node, value, first) for value in inputs]
    if any(value is None for value in given):
        return None
    result = context.read(node, [value for value in given if value is not None])
    lead = first.rows.layout.dims[0]
    if isinstance(result, (Affine, Pointwise, Hidden, FeedForward)) and result.layout.dims[0] == lead:
        return Permuted(result, first.places)
    return None


def _row_by_row(node: ir.Node, rank: int, other: int) -> bool:
    """Whether the first dimensions of two operands of these ranks meet each other."""
    if node.op_type != "Einsum":
        return rank == other
    terms = str(attribute(node, "equation", "")).replace(" ", "").partition("->")[0].split(",")
    return len({term[:1] for term in terms}) == 1


def _in_order(node: ir.Node, value: Value, first: Permuted) -> Value | None:
    """An operand with its rows in the order of the tokens; None where it has other rows."""
    places, rank = first.places, len(first.rows.layout.dims)
    if isinstance(value, Permuted):
        same = all(np.array_equal(a, b) for a, b in zip(value.places.samples, places.samples, strict=True))
        return value.rows if same else None
    if isinstance(value, Constant):
        return value if value.array.ndim < rank or value.array.shape[0] == 1 or rank == 1 else None
    shape = shape_of(value)
    if not isinstance(value, (Routed, Gathered)) or shape is None or not _row_by_row(node, rank, len(shape)):
        return None
    index = value if isinstance(value, Routed) else value.index
    if index.source is not places.source or shape[0] != first.rows.layout.shape[0]:
        return None
    order = [np.argsort(place) for place in places.samples]
    sorted_back = replace(index, samples=tuple(s[o] for s, o in zip(index.samples, order, strict=True)))
    return sorted_back if isinstance(value, Routed) else Gathered(value.table, sorted_back)


def read_cut(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows of one expert after another, cut where the example input had them."""
    if not isinstance(inputs[0], Permuted):
        return None
    raise UnsupportedError(
        "the rows sorted by expert are cut into one piece an expert"
        + (": the lengths are those of the example input" if all(isinstance(v, Constant) for v in inputs[1:]) else ""),
        "take the rows of each expert by their numbers (rows = (index == e).nonzero()), or gather the experts' weights by row",
        ends=True,
    )


def read_scatter(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows added to their tokens: a sum over the chosen experts."""
    total, index, value = inputs
    if not isinstance(value, Permuted) or not isinstance(index, Routed):
        return None
    rows = value.rows
    if not isinstance(rows, FeedForward) or attribute(node, "reduction", "none") != "add":
        raise LayoutError("rows sorted by expert are put back otherwise than by adding experts' outputs")
    shape, tokens = rows.layout.shape, rows.layout.tokens
    slots = shape[0] // tokens
    for sample, places in zip(index.samples, value.places.samples, strict=True):
        own = (places // slots)[:, None]
        if sample.shape[:1] != places.shape or not np.array_equal(sample, np.broadcast_to(own, sample.shape)):
            raise LayoutError("the outputs of experts are added to other tokens than they got")
    if not isinstance(total, Constant) or total.array.any() or total.array.shape != (tokens, *shape[1:]):
        return None
    split = restructure(rows, *reshape(rows.layout, (tokens, slots, *shape[1:])))
    return sum_dims(split, [1], False)


RULES: Rules = (
    ("Gather GatherND", read_gather),
    (_ROWWISE, read_rowwise),
    ("Split Slice", read_cut),
    ("ScatterND ScatterElements", read_scatter),
)
