"""Norm: LayerNorm, or RMSNorm (without the mean): exact sums, a reciprocal root by table, gain and bias a channel."""

from __future__ import annotations

import numpy as np

from moehls.integer.arithmetic import rs, rsqrt, sat
from moehls.integer.operations import IntArray, IntegerNorm
from moehls.integer.precision import Precision


def norm(operation: IntegerNorm, residual: IntArray, precision: Precision) -> tuple[IntArray, IntArray]:
    """Residual `[tokens, channels]` to (fine, operand), both `[stop - start, channels]`."""
    rows = residual[operation.start : operation.stop]
    x = rows.reshape(len(rows) * operation.heads, -1)
    channels = x.shape[1]
    s1 = x.sum(axis=1, keepdims=True) if operation.centred else np.zeros((len(x), 1), np.int64)
    s2 = (x * x).sum(axis=1, keepdims=True)
    r, e = rsqrt(np.maximum(channels * s2 - s1 * s1 + operation.epsilon, 1))
    n = sat(rs((channels * x - s1) * r, e // 2 + 16 - precision.norm_fraction), precision.norm_bits)
    if operation.plain:
        n = x
    scaling = operation.scaling
    fine = sat(rs(n * scaling.multiplier + scaling.bias, scaling.shift), precision.fine_bits).reshape(rows.shape)
    return fine, sat(rs(fine, precision.fine_shift), precision.activation_bits)
