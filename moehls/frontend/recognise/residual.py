"""Residual adds; a scalar factor on a sum goes to its parts, so that averaged heads stay linear."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules
from moehls.frontend.layout import LayoutError
from moehls.frontend.recognise.experts import as_mixture
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Affine, Constant, Sum, Value


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    left, right = (_summed(context, value) for value in inputs[:2])
    if not isinstance(left, TOKENS) or not isinstance(right, TOKENS):
        return None
    if left.layout != right.layout:
        raise LayoutError(f"tokens of layouts {list(left.layout.shape)} and {list(right.layout.shape)} are added")
    return Sum(left, right)


def _summed(context: Context, value: Value) -> Value:
    """A weighed network of weights that were gathered by the one expert of a token is the sum over the experts."""
    mixture = as_mixture(value)
    if mixture is None:
        return value
    if id(value) in context.written_by:
        context.written_by[id(mixture)] = context.written_by[id(value)]
    return mixture


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Sum) or not isinstance(other, Constant) or other.array.size != 1:
            continue
        parts = value.left, value.right
        if node.op_type == "Div" and other is inputs[0]:
            return None
        factor = float(other.array.reshape(-1)[0])
        factor = 1 / factor if node.op_type == "Div" else factor
        scaled = [replace(part, factor=part.factor * factor, grid=None) for part in parts if isinstance(part, Affine)]
        return Sum(*scaled) if len(scaled) == 2 else None
    return None


RULES: Rules = (
    ("Add", read_add),
    ("Mul Div", read_scale),
)
