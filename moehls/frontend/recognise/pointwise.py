"""Convolutions of tokens with a kernel of one element are linear layers; with groups, one a group of channels.

So are products of three tensors and more: they are read two at a time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, apply, attribute
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Constant, Value, shape_of

_PLACES = "xyzuvw"


def read_conv(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """`[1, C, …]` to `[1, O, …]`."""
    value, weight = inputs[0], inputs[1]
    if not isinstance(value, TOKENS) or not isinstance(weight, Constant):
        return None
    shape, groups = value.layout.shape, int(attribute(node, "group", 1))
    rank = len(shape)
    plain = all(step == 1 for step in attribute(node, "strides", ())) and not any(attribute(node, "pads", ()))
    auto = str(attribute(node, "auto_pad", "NOTSET")) in ("NOTSET", "VALID")
    kernel = weight.array.shape[2:]
    if (
        not plain
        or not auto
        or weight.array.ndim != rank
        or any(size != 1 for size in kernel)
        or rank - 2 > len(_PLACES)
    ):
        return None
    outputs, channels = weight.array.shape[:2]
    if shape[1] != groups * channels or outputs % groups or any(axis.token for axis in value.layout.dims[1]):
        return None
    places = _PLACES[: rank - 2]
    matrix = weight.array.reshape(groups, outputs // groups, channels)
    if groups == 1:
        (result,) = apply(context, "Einsum", [value, Constant(matrix[0])], equation=f"bc{places},oc->bo{places}")
    else:
        (split,) = apply(context, "Reshape", [value, _shape(shape[0], groups, channels, *shape[2:])])
        equation = f"bgc{places},goc->bgo{places}"
        (result,) = apply(context, "Einsum", [split, Constant(matrix)], equation=equation)
    if len(inputs) > 2 and isinstance(inputs[2], Constant):
        bias = inputs[2].array.reshape(*((1, outputs) if groups == 1 else (1, groups, outputs // groups)), *kernel)
        (result,) = apply(context, "Add", [result, Constant(bias)])
    return result if groups == 1 else apply(context, "Reshape", [result, _shape(shape[0], outputs, *shape[2:])])


def _shape(*sizes: int) -> Constant:
    return Constant(np.array(sizes, np.int64))


def read_einsum(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A product of three tensors and more: the first two, with what the others still need, then the rest."""
    terms, arrow, out = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    operands = terms.split(",")
    if len(inputs) < 3 or not arrow or len(operands) != len(inputs) or any(shape_of(value) is None for value in inputs):
        return None
    needed = "".join((out, *operands[2:]))
    between = "".join(label for label in dict.fromkeys(operands[0] + operands[1]) if label in needed)
    (first,) = apply(context, "Einsum", inputs[:2], equation=f"{operands[0]},{operands[1]}->{between}")
    rest = ",".join((between, *operands[2:]))
    return apply(context, "Einsum", [first, *inputs[2:]], equation=f"{rest}->{out}")


RULES: Rules = (
    ("Conv", read_conv),
    ("Einsum", read_einsum),
)
