"""A network of all tokens beside routed experts, weighed by a sigmoid of the tokens (Qwen2-MoE's shared expert)."""

from __future__ import annotations

import onnx_ir as ir

from moehls.frontend.activations import is_sigmoid
from moehls.frontend.context import Context, Result, Rules, UnsupportedError
from moehls.frontend.values import FeedForward, Pointwise, Shared, Value

_REMEDY = "weigh a shared expert with sigmoid(gate(x)), one number a token"


def read_weigh(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """`sigmoid(gate · token) · network(token)`."""
    for weight, value in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(weight, Pointwise) or not isinstance(value, FeedForward):
            continue
        *tokens, last = weight.layout.dims
        if last or tuple(tokens) != value.layout.dims[:-1]:
            raise UnsupportedError("the output of a network is weighed by more than one number a token", _REMEDY)
        if not is_sigmoid(weight.function) or weight.operand.base != value.base:
            raise UnsupportedError("the output of a network is weighed by another function than a sigmoid", _REMEDY)
        if value.coefficient is not None or value.selector is not None:
            raise UnsupportedError("the output of a routed expert is weighed by a sigmoid", _REMEDY)
        return Shared(value.layout, value, weight.operand)
    return None


RULES: Rules = (("Mul", read_weigh),)
