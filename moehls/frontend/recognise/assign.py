"""`total[mask] += …`: the rows of the running sum are gathered, an expert's are added, and the rows are written back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.layout import LayoutError
from moehls.frontend.recognise.dispatch import add_rows, same_rows
from moehls.frontend.recognise.sort import row_numbers
from moehls.frontend.values import Constant, Dispatched, Gathered, Mixture, Routed, Updated, Value


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows of the running sum."""
    total, index = inputs[0], inputs[1]
    if not isinstance(total, Mixture) or not isinstance(index, Routed) or index.source is not total.source:
        return None
    numbers = row_numbers(node, index)
    if numbers is None or total.layout.shape[0] != total.layout.tokens:
        return None
    return Dispatched(total, replace(index, samples=numbers))


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """An expert's weighed rows added to the same rows of the sum, or to rows of zeros."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Dispatched) or value.weight is None:
            continue
        if isinstance(other, Gathered) and not other.table.any():
            return Updated(None, value) if same_rows(Dispatched(value.rows, other.index), value) else None
        if isinstance(other, Dispatched) and isinstance(other.rows, Mixture) and same_rows(other, value):
            return Updated(other.rows, value)
    return None


def read_movement(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows laid out flat; an Expand or a Slice that keeps them all."""
    value = inputs[0]
    constants = [given for given in inputs[1:] if isinstance(given, (Constant, Routed))]
    if not isinstance(value, Updated) or len(constants) < len(inputs) - 1:
        return None
    width = value.rows.rows.layout.shape[1:]
    if len(width) != 1:
        return None
    results = []
    evaluate = NodeEvaluator(node, context.opset)
    for number, tokens in enumerate(value.rows.tokens.samples):
        own = np.arange(len(tokens) * width[0]).reshape(-1 if value.flat else (len(tokens), *width))
        given = [v.array if isinstance(v, Constant) else v.samples[number] for v in constants]
        (result,) = evaluate([own, *given])
        if result.ndim not in (1, 2) or not np.array_equal(result.reshape(-1), own.reshape(-1)):
            raise LayoutError("rows of a sum are moved before they are written back")
        results.append(result)
    return replace(value, flat=results[0].ndim == 1)


def read_scatter(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows written back to where they came from: one more term of the sum."""
    total, index, value = inputs
    if not isinstance(value, Updated) or not isinstance(index, Routed):
        return None
    zero = isinstance(total, Constant) and not total.array.any()
    if attribute(node, "reduction", "none") != "none" or not (total is value.total or (value.total is None and zero)):
        raise LayoutError("rows of a sum are written to another tensor than they were taken from")
    width = value.rows.rows.layout.shape[1]
    for sample, tokens in zip(index.samples, value.rows.tokens.samples, strict=True):
        rows = np.stack([np.repeat(tokens, width), np.tile(np.arange(width), len(tokens))], axis=1)
        expected = rows if value.flat else tokens[:, None]
        if not np.array_equal(sample, expected) or len(set(tokens.tolist())) != len(tokens):
            raise LayoutError("rows of a sum are written to other rows than they were taken from")
    return add_rows(total, value.rows)


RULES: Rules = (
    ("Gather GatherND", read_gather),
    ("Add", read_add),
    ("Reshape Expand Slice", read_movement),
    ("ScatterND", read_scatter),
)
