"""Activations in every form: an operator, or any composition of scalar functions that has its values; gated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from moehls.frontend.activations import erf, match_activation
from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.contraction import joint_selector
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.values import Affine, Constant, Hidden, Pointwise, RealFunction, Value, Weighing

Real = npt.NDArray[np.float64]

_UNARY: dict[str, RealFunction] = {
    "Erf": erf,
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Exp": np.exp,
    "Neg": np.negative,
    "Softplus": lambda x: np.log1p(np.exp(x)),
}
_BINARY: dict[str, Callable[[Real, Real], Real]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
}


def read_gelu(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = as_affine(context, inputs[0])
    if value is None:
        return None
    return Hidden(value, "tanh" if attribute(node, "approximate", "none") == "tanh" else "exact")


def as_pointwise(value: Value) -> Pointwise | None:
    """A pointwise function, or an affine map as the function `factor · x` of its part without factor."""
    if isinstance(value, Pointwise):
        return value
    if not isinstance(value, Affine):
        return None
    factor = value.factor
    return Pointwise(replace(value, factor=1.0), lambda x: factor * x)


def same_operand(left: Affine, right: Affine) -> bool:
    """Whether two maps are the same apart from their factors."""
    names = ("weight", "index", "bias", "selector", "layout", "weighing")
    return left.base == right.base and all(getattr(left, name) is getattr(right, name) for name in names)


def same_weighing(first: Weighing | None, second: Weighing | None) -> bool:
    """Whether two maps are of tokens that the same gate weights multiply."""
    if first is None or second is None:
        return first is second
    pairs = zip(first.samples, second.samples, strict=True)
    return first.source is second.source and all(np.array_equal(a, b) for a, b in pairs)


def read_gated(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The product of an activation and a linear map of the same tokens, as in SwiGLU, GEGLU and ReGLU."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, (Pointwise, Hidden)) or not isinstance(other, Affine):
            continue
        if isinstance(value, Pointwise):
            if same_operand(value.operand, other) or match_activation(value.function) is None:
                continue
            value = context.builder.activation(value)
        same = value.pre.layout == other.layout and value.pre.base == other.base
        if value.up is not None or not same or not same_weighing(value.pre.weighing, other.weighing):
            raise UnsupportedError(
                "an activation is multiplied with something else than a linear map of the same tokens",
                "write a gated MLP as activation(gate(x)) * up(x)",
            )
        joint_selector(value.pre.selector, other.selector)
        return replace(value, up=other, grid=None)
    return None


def read_unary(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    operand = as_pointwise(value) or as_pointwise(as_affine(context, value) or value)
    if operand is None:
        return None
    inner, outer = operand.function, _UNARY[node.op_type]
    return replace(operand, function=lambda x: outer(inner(x)))


def read_binary(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Arithmetic of two functions of one operand, or of one and a scalar constant."""
    combine = _BINARY[node.op_type]
    scalars = [_scalar(value) for value in inputs[:2]]
    operands = [as_pointwise(value) for value in inputs[:2]]
    left, right = operands
    if left is not None and right is not None:
        pointwise = any(isinstance(value, Pointwise) for value in inputs) or node.op_type in ("Mul", "Div", "Pow")
        if not pointwise:
            return None
        if not same_operand(left.operand, right.operand):
            if node.op_type != "Mul" or left.operand.base.stand_in or right.operand.base.stand_in:
                return None
            raise UnsupportedError(
                "two functions of tokens are multiplied that are not an activation and a linear map",
                "gate with GELU, SiLU or ReLU: activation(gate(x)) * up(x)",
            )
        first, second = left.function, right.function
        return replace(left, function=lambda x: combine(first(x), second(x)))
    operand, constant = (left, scalars[1]) if left is not None else (right, scalars[0])
    lazy = node.op_type != "Pow" and any(isinstance(value, Affine) for value in inputs)
    if operand is None or constant is None or lazy:
        return None
    function = operand.function
    if left is not None:
        return replace(operand, function=lambda x: combine(function(x), np.full_like(x, constant)))
    return replace(operand, function=lambda x: combine(np.full_like(x, constant), function(x)))


def _scalar(value: Value) -> float | None:
    return float(value.array.reshape(-1)[0]) if isinstance(value, Constant) and value.array.size == 1 else None


RULES: Rules = (
    ("Gelu", read_gelu),
    ("Mul", read_gated),
    (" ".join(_UNARY), read_unary),
    (" ".join(_BINARY), read_binary),
)
