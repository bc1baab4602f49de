"""Attention: base-2 softmax over integer scores, one reciprocal a row."""

from __future__ import annotations

import numpy as np

from moehls.integer.arithmetic import exp2, halved, reciprocal, requantise, rs, sat
from moehls.integer.operations import HIDDEN, IntArray, IntegerAttention
from moehls.integer.precision import Precision
from moehls.reference.product import product


def attention(
    operation: IntegerAttention, query: IntArray, key: IntArray, value: IntArray, precision: Precision
) -> IntArray:
    """Operands `[tokens, channels]` to the context operand `[tokens, channels]`."""
    q, k, v = (_split(x, operation.heads) for x in (query, key, value))
    per_head = (operation.score_multiplier[:, None, None], operation.score_shift[:, None, None])
    bias, hidden = _bias(operation)
    t = sat(requantise(product(q, k), bias, *per_head, precision), precision.score_bits)
    whole = precision.score_bits - precision.score_fraction
    t = np.where(hidden, -((1 << whole) - 1) << precision.score_fraction, t)
    p, c = exp2(t, precision.score_fraction, (1 << precision.activation_bits) - 1)
    p = halved(p, c.max(axis=2, keepdims=True) - c)
    r, length = reciprocal(p.sum(axis=2, keepdims=True))
    context = product(p, v.swapaxes(1, 2))
    z = sat(rs(context * r, length + 16 - precision.context_fraction), precision.requantised_bits)
    joined = z.swapaxes(0, 1).reshape(query.shape)
    scaling = operation.scaling
    y = requantise(joined, scaling.bias, scaling.multiplier, scaling.shift, precision)
    return sat(y, precision.activation_bits)


def _bias(operation: IntegerAttention) -> tuple[IntArray, IntArray]:
    """What is added to the sums and which keys are hidden, `[heads, queries, keys]`, or zeros that broadcast to it."""
    if operation.bias is None:
        return np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int64)
    entries = operation.bias.entries.astype(np.int64)
    return entries << operation.bias.shift[:, None, None], (entries == HIDDEN).astype(np.int64)


def _split(x: IntArray, heads: int) -> IntArray:
    """`[tokens, heads · d]` to `[heads, tokens, d]`."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)
