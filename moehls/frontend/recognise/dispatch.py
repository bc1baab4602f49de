"""Experts that run on their own tokens only: gather the rows, run the expert, weigh, add the rows back (`where + index_add`).

How many tokens an expert gets depends on the routing; the row numbers are sampled like everything else that comes from the
logits (see `routing.py`). Between gather and add every node works row by row, so it is read as if it had all tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute, integers
from moehls.frontend.layout import Array, LayoutError
from moehls.frontend.recognise.experts import sum_dims
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.recognise.sort import row_numbers
from moehls.frontend.values import (
    Affine,
    Constant,
    Dispatched,
    FeedForward,
    Hidden,
    Mixture,
    Pointwise,
    Routed,
    Value,
)

_ROWWISE = "MatMul Gemm Add Sub Mul Div Pow Erf Tanh Sigmoid Gelu Relu Identity Dropout Cast"


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows of the tokens that chose an expert."""
    index = inputs[1]
    if not isinstance(index, Routed) or isinstance(inputs[0], (Constant, Routed)):
        return None
    rows = as_affine(context, inputs[0])
    if rows is None:
        return None
    samples = row_numbers(node, index)
    if samples is None:
        return None
    if not all(axis.token for axis in rows.layout.dims[0]) or rows.layout.shape[0] != rows.layout.tokens:
        raise LayoutError("rows are gathered along something else than the tokens")
    return Dispatched(rows, replace(index, samples=samples))


def same_rows(left: Dispatched, right: Dispatched) -> bool:
    """Whether both hold the rows of the same tokens in the same order."""
    return left.tokens.source is right.tokens.source and all(
        np.array_equal(a, b) for a, b in zip(left.tokens.samples, right.tokens.samples, strict=True)
    )


def read_rowwise(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A node that works on each row alone, read on all tokens."""
    rows = [value for value in inputs if isinstance(value, Dispatched)]
    if not rows or any(value.weight is not None or not same_rows(value, rows[0]) for value in rows):
        return None
    if not all(isinstance(value, (Dispatched, Constant)) for value in inputs):
        return None
    if any(isinstance(value, Constant) and value.array.ndim > 1 and _varies(node, value.array) for value in inputs):
        raise LayoutError("a constant that differs from row to row meets the tokens of an expert")
    result = context.read(node, [value.rows if isinstance(value, Dispatched) else value for value in inputs])
    if isinstance(result, (Affine, Pointwise, Hidden, FeedForward)):
        return Dispatched(result, rows[0].tokens)
    return None


def _varies(node: ir.Node, array: Array) -> bool:
    """Whether an elementwise constant has an entry a row."""
    return node.op_type not in ("MatMul", "Gemm") and any(size != 1 for size in array.shape[:-1])


def read_weigh(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The gate weight of each row."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Dispatched) or not isinstance(other, Routed) or value.weight is not None:
            continue
        fits = all(
            sample.shape == (len(token), 1) for sample, token in zip(other.samples, value.tokens.samples, strict=True)
        )
        return replace(value, weight=tuple(sample[:, 0] for sample in other.samples)) if fits else None
    return None


def read_shape(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The shape of dispatched rows differs from sample to sample."""
    value = inputs[0]
    if not isinstance(value, Dispatched):
        return None
    inner = value.rows.layout.shape[1:]
    start, stop = attribute(node, "start", 0), attribute(node, "end", None)
    shapes = tuple(np.array([len(token), *inner], np.int64)[start:stop] for token in value.tokens.samples)
    return Routed(value.tokens.source, shapes)


def read_expand(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """An Expand that changes no shape, as TorchScript writes before a scatter."""
    value, shape = inputs[0], inputs[1]
    if not isinstance(value, Dispatched) or not isinstance(shape, (Constant, Routed)):
        return None
    inner = value.rows.layout.shape[1:]
    for number, token in enumerate(value.tokens.samples):
        wanted = shape.array if isinstance(shape, Constant) else shape.samples[number]
        own = (len(token), *inner)
        if len(wanted) > len(own) or np.broadcast_shapes(own, tuple(int(size) for size in wanted)) != own:
            raise LayoutError("rows of an expert are repeated")
    return value


def read_reshape(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A Reshape to as many rows of the same channels."""
    value, shape = inputs[0], integers(inputs[1])
    if not isinstance(value, Dispatched) or shape is None:
        return None
    return value if shape == (-1, *value.rows.layout.shape[1:]) else None


def read_scatter(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows added back to their tokens: one more term of the sum. Written into zeros, once a token, is the same."""
    total, index, rows = inputs
    if not isinstance(rows, Dispatched) or not isinstance(index, Routed) or rows.weight is None:
        return None
    empty = isinstance(total, Constant) and not total.array.any()
    once = all(len(set(token.tolist())) == len(token) for token in rows.tokens.samples)
    reduction = attribute(node, "reduction", "none")
    if attribute(node, "axis", 0) != 0 or not (reduction == "add" or (reduction == "none" and empty and once)):
        raise LayoutError("the outputs of an expert are put back otherwise than by adding")
    for sample, token in zip(index.samples, rows.tokens.samples, strict=True):
        if sample.shape[:1] != token.shape or not np.array_equal(sample, np.broadcast_to(token[:, None], sample.shape)):
            raise LayoutError("the outputs of an expert are added to other tokens than it got")
    return add_rows(total, rows)


def add_rows(total: Value, rows: Dispatched) -> Mixture | None:
    """The sum `total`, or zeros, with weighed rows added at their tokens."""
    if not isinstance(rows.rows, FeedForward) or rows.weight is None:
        raise LayoutError("what is added back is not the output of a two-layer expert")
    term = _term(rows.rows, rows, rows.weight)
    empty = isinstance(total, Constant) and not total.array.any()
    if isinstance(total, Constant) and empty and total.array.shape == term.layout.shape:
        return term
    if isinstance(total, Mixture) and (total.layout, total.base, total.form) == (term.layout, term.base, term.form):
        return replace(total, terms=total.terms + term.terms) if total.source is term.source else None
    return None


def _term(value: FeedForward, rows: Dispatched, weight: tuple[Array, ...]) -> Mixture:
    """The expert as a term whose coefficient for a token is the sum of the weights of its rows."""
    count = value.layout.tokens
    coefficient: list[Array] = []
    for token, share in zip(rows.tokens.samples, weight, strict=True):
        column = np.zeros(count, np.float32)
        np.add.at(column, token, share)
        sizes = [axis.size if axis.token else 1 for axis in value.layout.axes]
        coefficient.append(column.reshape(sizes))
    weighed = replace(value, coefficient=tuple(coefficient), source=rows.tokens.source)
    return sum_dims(weighed, [], False)


RULES: Rules = (
    ("Gather GatherND", read_gather),
    (_ROWWISE, read_rowwise),
    ("Mul", read_weigh),
    ("Shape", read_shape),
    ("Expand", read_expand),
    ("Reshape", read_reshape),
    ("ScatterND ScatterElements", read_scatter),
)
