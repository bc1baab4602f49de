"""Experts that run on their own tokens only: gather the rows, run the expert, weigh, add the rows back (`where + index_add`).

How many tokens an expert gets depends on the routing; the row numbers are sampled like everything else that comes from the
logits (see `routing.py`). Between gather and add every node works row by row, so it is read as if it had all tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.layout import Array, LayoutError, reshape
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.experts import sum_dims, weigh_inputs
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.recognise.place import place_rows, rows_of_slots
from moehls.frontend.recognise.rows import (
    gathered_rows,
    moved_rows,
    rows_dim,
    rows_shape,
    weights_of_rows,
    written_to_own,
    zero_rows,
)
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import (
    Affine,
    Constant,
    Dispatched,
    FeedForward,
    Gathered,
    Hidden,
    Mixture,
    Normalised,
    Pointwise,
    Routed,
    Sum,
    Value,
    shape_of,
)

_ROWWISE = (
    "MatMul Gemm Add Sub Mul Div Pow Erf Tanh Sigmoid Gelu Relu Identity Dropout Cast "
    "HardSwish Elu Selu LeakyRelu Mish HardSigmoid"
)


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows of the tokens that chose an expert."""
    index = inputs[1]
    if not isinstance(index, Routed) or isinstance(inputs[0], (Constant, Routed)):
        return None
    rows = as_affine(context, inputs[0])
    if rows is None:
        return None
    found = gathered_rows(node, rows.layout, index)
    if found is None and (of_slots := rows_of_slots(node, rows, index)) is not None:
        return of_slots
    if found is None:
        raise LayoutError("rows are gathered along something else than the tokens")
    tokens, shape = found
    return Dispatched(restructure(rows, *reshape(rows.layout, shape)), tokens)


def same_rows(left: Dispatched, right: Dispatched) -> bool:
    """Whether both hold the rows of the same tokens in the same order."""
    pairs = [(left.tokens.samples, right.tokens.samples)]
    if left.slots is not None and right.slots is not None:
        pairs.append((left.slots.rows, right.slots.rows))
    return (
        left.tokens.source is right.tokens.source
        and (left.slots is None) == (right.slots is None)
        and all(np.array_equal(a, b) for own, other in pairs for a, b in zip(own, other, strict=True))
    )


def read_rowwise(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A node that works on each row alone, read on all tokens."""
    rows = [value for value in inputs if isinstance(value, Dispatched)]
    if not rows or any(value.weight is not None or not same_rows(value, rows[0]) for value in rows):
        return None
    if not all(isinstance(value, (Dispatched, Constant)) for value in inputs):
        return None
    if any(_varies(node, place, value, rows[0]) for place, value in enumerate(inputs)):
        raise LayoutError("a constant that differs from row to row meets the tokens of an expert")
    result = context.read(node, [value.rows if isinstance(value, Dispatched) else value for value in inputs])
    if isinstance(result, (Affine, Pointwise, Hidden, FeedForward)) and rows_dim(result.layout) is not None:
        return replace(rows[0], rows=result)
    return None


def _varies(node: ir.Node, place: int, value: Value, rows: Dispatched) -> bool:
    """Whether a constant operand has an entry a row."""
    along = rows_dim(rows.rows.layout)
    product = node.op_type == "MatMul" or (node.op_type == "Gemm" and place < 2)
    if not isinstance(value, Constant) or product or along is None:
        return False
    behind = len(rows.rows.layout.dims) - along
    return value.array.ndim >= behind and value.array.shape[-behind] != 1


def read_weigh(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The gate weight of each row: of an expert's output, or of the tokens that it reads (Llama 4)."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Dispatched) or not isinstance(other, Routed) or isinstance(value.rows, Mixture):
            continue
        if other.source is not value.tokens.source or (weight := weights_of_rows(value, other)) is None:
            return None
        if isinstance(value.rows, Affine) and not value.rows.bias.any():
            rows = weigh_inputs(value.rows, Routed(other.source, _of_tokens(value, weight)))
            return None if rows is None else replace(value, rows=rows)
        if value.weight is not None:
            weight = tuple(own * more for own, more in zip(value.weight, weight, strict=True))
        return replace(value, weight=weight)
    return None


def _of_tokens(value: Dispatched, weight: tuple[Array, ...]) -> tuple[Array, ...]:
    """Weights of rows as tensors that multiply all tokens: zero for the tokens without a row.

    Raises:
        LayoutError: a token has several rows.
    """
    layout = value.rows.layout
    shape = [size if dim == rows_dim(layout) else 1 for dim, size in enumerate(layout.shape)]
    found: list[Array] = []
    for tokens, share in zip(value.tokens.samples, weight, strict=True):
        if len(set(tokens.tolist())) < len(tokens):
            raise LayoutError("one expert reads a token several times, weighed differently")
        column = np.zeros(layout.tokens, np.float32)
        column[tokens] = share
        found.append(column.reshape(shape))
    return tuple(found)


def read_shape(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The shape of dispatched rows differs from sample to sample."""
    value = inputs[0]
    if not isinstance(value, Dispatched):
        return None
    start, stop = attribute(node, "start", 0), attribute(node, "end", None)
    shapes = [rows_shape(value.rows.layout, len(tokens)) for tokens in value.tokens.samples]
    return Routed(value.tokens.source, tuple(np.array(shape, np.int64)[start:stop] for shape in shapes))


def read_pass(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A Cast to float32 or an Identity of weighed rows."""
    value = inputs[0]
    passes = node.op_type == "Identity" or (node.op_type == "Cast" and attribute(node, "to", 0) == 1)
    return value if isinstance(value, Dispatched) and passes else None


def read_movement(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Dimensions of size 1 about the rows, the rows laid out flat, an Expand or a Slice that keeps them all."""
    return moved_rows(context, node, inputs)


def read_zero(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The same rows of a sum that is still zero, added."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Dispatched):
            continue
        if isinstance(other, Gathered) and not other.table.any():
            shapes = [(*sample.shape, *other.table.shape[1:]) for sample in other.index.samples]
        elif isinstance(other, Routed) and not any(sample.any() for sample in other.samples):
            shapes = [sample.shape for sample in other.samples]
        else:
            continue
        return value if zero_rows(value, shapes) else None
    return None


def read_scatter(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows added back to their tokens, or written there: one more term of the sum."""
    total, index, rows = inputs
    if isinstance(total, Constant) and isinstance(index, Routed) and isinstance(rows, (Affine, Normalised, Sum)):
        raise UnsupportedError(
            "tokens are written to places that routing gives them, as slots of experts are filled by their locations",
            "fill the slots by a product with a 0/1 tensor (GShard's dispatch), or give each expert the rows of its own tokens",
        )
    if not isinstance(rows, Dispatched) or not isinstance(index, Routed):
        return None
    if isinstance(total, Affine) and total.base.stand_in:
        return None
    if isinstance(total, TOKENS) and not isinstance(total, Mixture):
        raise UnsupportedError(
            "the outputs of an expert are written over the tokens themselves, so that tokens of no expert keep their value",
            "begin the sum with zeros (torch.zeros_like)",
        )
    reduction = attribute(node, "reduction", "none")
    if rows.slots is not None:
        return place_rows(node, total, index, rows)
    once = all(len(set(token.tolist())) == len(token) for token in rows.tokens.samples)
    if reduction != "add" and not (reduction == "none" and once):
        raise LayoutError("the outputs of an expert are put back otherwise than by adding")
    shape = shape_of(total)
    if shape is None or not written_to_own(node, index, shape, rows):
        raise LayoutError("the outputs of an expert are added to other tokens than it got")
    return add_rows(total, rows, replaced=reduction == "none")


def add_rows(total: Value, rows: Dispatched, replaced: bool = False) -> Mixture | None:
    """The sum `total`, or zeros, with weighed rows added at their tokens, or written there over what must be zero."""
    if not isinstance(rows.rows, FeedForward):
        raise LayoutError("what is added back is not the output of a two-layer expert")
    term = _term(rows.rows, rows)
    if isinstance(total, Constant) and not total.array.any():
        return replace(term, layout=reshape(term.layout, total.array.shape)[0])
    if not isinstance(total, Mixture) or total.source is not term.source:
        return None
    term = replace(term, layout=reshape(term.layout, total.layout.shape)[0])
    if (total.layout, total.base, total.form) != (term.layout, term.base, term.form):
        return None
    count = total.layout.tokens
    taken = np.concatenate([np.isin(np.arange(count), token) for token in rows.tokens.samples])
    if replaced and any(own.coefficient[taken].any() for own in total.terms):
        raise LayoutError(
            "the outputs of an expert are put back otherwise than by adding: they replace those of other experts"
        )
    return replace(total, terms=total.terms + term.terms)


def _term(value: FeedForward, rows: Dispatched) -> Mixture:
    """The expert as a term whose coefficient for a token is the sum of the weights of its rows."""
    count = value.layout.tokens
    weight = rows.weight or tuple(np.ones(len(token), np.float32) for token in rows.tokens.samples)
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
    ("Identity Cast", read_pass),
    ("Mul", read_weigh),
    ("Add", read_zero),
    ("Shape", read_shape),
    ("Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice", read_movement),
    ("ScatterND ScatterElements", read_scatter),
)
