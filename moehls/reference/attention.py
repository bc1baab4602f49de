"""Attention: base-2 softmax over integer scores, one reciprocal a row."""

from __future__ import annotations

from moehls.integer.arithmetic import exp2, halved, reciprocal, requantise, rs, sat
from moehls.integer.operations import IntArray, IntegerAttention
from moehls.integer.precision import Precision
from moehls.reference.product import product


def attention(
    operation: IntegerAttention, query: IntArray, key: IntArray, value: IntArray, precision: Precision
) -> IntArray:
    """Operands `[tokens, channels]` to the context operand `[tokens, channels]`."""
    q, k, v = (_split(x, operation.heads) for x in (query, key, value))
    per_head = (operation.score_multiplier[:, None, None], operation.score_shift[:, None, None])
    t = sat(requantise(product(q, k), 0, *per_head, precision), precision.score_bits)
    p, c = exp2(t, precision.score_fraction, (1 << precision.activation_bits) - 1)
    p = halved(p, c.max(axis=2, keepdims=True) - c)
    r, length = reciprocal(p.sum(axis=2, keepdims=True))
    context = product(p, v.swapaxes(1, 2))
    z = sat(rs(context * r, length + 16 - precision.context_fraction), precision.requantised_bits)
    joined = z.swapaxes(0, 1).reshape(query.shape)
    scaling = operation.scaling
    y = requantise(joined, scaling.bias, scaling.multiplier, scaling.shift, precision)
    return sat(y, precision.activation_bits)


def _split(x: IntArray, heads: int) -> IntArray:
    """`[tokens, heads · d]` to `[heads, tokens, d]`."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1)
