"""`total[mask] += …`: the rows of the running sum are gathered, an expert's are added, and the rows are written back."""

from __future__ import annotations

import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, attribute
from moehls.frontend.layout import LayoutError, reshape
from moehls.frontend.recognise.dispatch import add_rows, same_rows
from moehls.frontend.recognise.rows import gathered_rows, moved_rows, written_to_own
from moehls.frontend.recognise.structure import moved
from moehls.frontend.values import Dispatched, Mixture, Routed, Updated, Value, shape_of


def read_gather(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Rows of the running sum."""
    total, index = inputs[0], inputs[1]
    if not isinstance(total, Mixture) or not isinstance(index, Routed) or index.source is not total.source:
        return None
    found = gathered_rows(node, total.layout, index)
    if found is None:
        return None
    tokens, shape = found
    rows = moved(context, total, lambda layout: reshape(layout, shape))
    assert isinstance(rows, Mixture)
    return Dispatched(rows, tokens, of=total)


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """An expert's weighed rows added to the same rows of the sum."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Dispatched) or not isinstance(other, Dispatched) or other.of is None:
            continue
        same = value.rows.layout.shape == other.rows.layout.shape and same_rows(other, value)
        return Updated(other.of, value) if same and value.of is None else None
    return None


def read_movement(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows laid out flat; an Expand or a Slice that keeps them all."""
    value = inputs[0]
    if not isinstance(value, Updated):
        return None
    rows = moved_rows(context, node, [value.rows, *inputs[1:]])
    return None if rows is None else Updated(value.total, rows)


def read_scatter(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The rows written back to where they came from: one more term of the sum."""
    total, index, value = inputs
    if not isinstance(value, Updated) or not isinstance(index, Routed):
        return None
    if attribute(node, "reduction", "none") != "none" or total is not value.total:
        raise LayoutError("rows of a sum are written to another tensor than they were taken from")
    shape, samples = shape_of(total), value.rows.tokens.samples
    once = all(len(set(tokens.tolist())) == len(tokens) for tokens in samples)
    if shape is None or not once or not written_to_own(node, index, shape, value.rows):
        raise LayoutError("rows of a sum are written to other rows than they were taken from")
    return add_rows(total, value.rows)


RULES: Rules = (
    ("Gather GatherND", read_gather),
    ("Add", read_add),
    ("Reshape Flatten Squeeze Unsqueeze Transpose Expand Slice", read_movement),
    ("ScatterND", read_scatter),
)
