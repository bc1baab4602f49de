"""Pool: the sum of some rows, requantised."""

from __future__ import annotations

from moehls.integer.arithmetic import requantise, sat
from moehls.integer.operations import IntArray, IntegerPool
from moehls.integer.precision import Precision


def pool(operation: IntegerPool, x: IntArray, precision: Precision) -> IntArray:
    """Residual `[tokens, channels]` to a residual `[1, channels]`, or fine values to an operand."""
    bits = precision.activation_bits if operation.of_fine else precision.residual_bits
    total = x[operation.start : operation.stop].sum(axis=0, keepdims=True)
    scaling = operation.scaling
    return sat(requantise(total, scaling.bias, scaling.multiplier, scaling.shift, precision), bits)
