"""`If` around an expert: where no token chose it, the branch that skips it is taken.

Both branches are read. On every sample of the logits the terms of the branch that the condition takes count, so the gate that
is recognised from them is what the graph computes, whichever branch runs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError
from moehls.frontend.gates import merged_terms
from moehls.frontend.layout import Array
from moehls.frontend.recognise.experts import as_mixture
from moehls.frontend.values import Constant, ExpertTerm, FeedForward, Mixture, Routed, Unknown, Value

_REMEDY = "let the condition ask whether a token chose the expert, and the other branch add nothing"


def read_if(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    condition = inputs[0]
    then, otherwise = (node.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    if isinstance(condition, Constant):
        return context.read_branch(then if condition.array.reshape(-1)[0] else otherwise)
    if not isinstance(condition, Routed):
        return None
    taken = np.array([bool(sample.reshape(-1)[0]) for sample in condition.samples])
    if taken.all() or not taken.any():
        raise UnsupportedError("a branch that no sampled routing takes, so that it cannot be proved", _REMEDY)
    pairs = zip(context.read_branch(then), context.read_branch(otherwise), strict=True)
    return [_chosen(condition, taken, *pair) for pair in pairs]


def _chosen(condition: Routed, taken: Array, then: Value, otherwise: Value) -> Value:
    """What an `If` writes whose condition is `taken` on each sample."""
    if isinstance(then, Unknown) or isinstance(otherwise, Unknown):
        return Unknown()
    for value, other, mask in ((then, otherwise, taken), (otherwise, then, ~taken)):
        if isinstance(other, Constant) and not other.array.any():
            if isinstance(value, Mixture):
                return replace(value, terms=_masked(value, mask))
            if isinstance(value, FeedForward):
                return _gated(value, condition, mask)
    left, right = as_mixture(then), as_mixture(otherwise)
    same = left is not None and right is not None and left.source is right.source is condition.source
    if left is None or right is None or not same or (left.layout, left.base) != (right.layout, right.base):
        raise UnsupportedError("a condition that chooses between other things than adding an expert or not", _REMEDY)
    return replace(left, terms=merged_terms(_masked(left, taken) + _masked(right, ~taken)))


def _masked(value: Mixture, mask: Array) -> tuple[ExpertTerm, ...]:
    rows = np.repeat(mask, value.layout.tokens)
    return tuple(replace(term, coefficient=term.coefficient * rows) for term in value.terms)


def _gated(value: FeedForward, condition: Routed, mask: Array) -> FeedForward:
    ones = np.ones([1] * len(value.layout.axes), np.float32)
    coefficient = value.coefficient or (ones,) * len(mask)
    gated = tuple(sample * np.float32(on) for sample, on in zip(coefficient, mask, strict=True))
    return replace(value, coefficient=gated, source=value.source or condition.source)


RULES: Rules = (("If", read_if),)
