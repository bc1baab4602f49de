"""Biases of attention scores: in go reals a head, query and key, out come entries of 16 bits and a shift a head.

What is free: a constant a query, as softmax does not see it. So each query's biases lie around the middle of their range. A
key whose bias lies so far below the query's largest that no score makes up for it is hidden.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import HIDDEN, RealArray, ScoreBias
from moehls.integer.precision import Precision
from moehls.network.operations import Attention, FloatArray

_UNSEEN = -1e9
"""float32 scores lose what is added to such a number: a query whose keys all have it sees them alike"""
_MARGIN = 2.0
"""times the largest score of the calibration that scores may be"""
_HEADROOM = 3
"""bits of an accumulator that a bias leaves"""


def _reach(attention: Attention, query: RealArray, key: RealArray) -> RealArray:
    """`[heads]`: what no score exceeds, of queries and keys `[tokens, channels]` (Cauchy and Schwarz)."""
    longest = [np.sqrt(np.square(x.reshape(len(x), attention.heads, -1)).sum(axis=2)).max(axis=0) for x in (query, key)]
    result: RealArray = longest[0] * longest[1] * abs(attention.scale)
    return result


def least_product(attention: Attention, query: RealArray, key: RealArray, precision: Precision) -> float:
    """The least product of the steps of queries and keys with which the biases fit the accumulators."""
    if attention.bias is None:
        return 0.0
    centred, _ = _centred(attention.bias, _reach(attention, query, key), precision)
    limit = 2.0 ** (precision.accumulator_bits - _HEADROOM)
    return float(np.abs(centred).max()) / (abs(attention.scale) * limit)


def convert_bias(
    attention: Attention, score: RealArray, query: RealArray, key: RealArray, precision: Precision
) -> ScoreBias | None:
    """The integer bias of an attention whose sums are worth `score` `[heads]` units of a score; None where it changes nothing."""
    if attention.bias is None:
        return None
    centred, hidden = _centred(attention.bias, _reach(attention, query, key), precision)
    sums = centred * (math.log2(math.e) * 2**precision.score_fraction / score[:, None, None])
    if not hidden.any() and not sums.any():
        return None
    _, exponent = np.frexp(np.abs(sums).max(axis=(1, 2)) / (-HIDDEN - 1))
    shift = np.maximum(exponent, 0).astype(np.int64)
    entries = np.where(hidden, HIDDEN, np.rint(np.ldexp(sums, -shift[:, None, None])))
    return ScoreBias(entries.astype(np.int16), shift)


def _centred(bias: FloatArray, reached: RealArray, precision: Precision) -> tuple[RealArray, npt.NDArray[np.bool_]]:
    """`[heads, queries, keys]`: biases around the middle of their query's, 0 of hidden keys; which keys are hidden."""
    real = np.broadcast_to(bias.astype(np.float64), (len(reached), *bias.shape[1:]))
    highest = np.maximum(real.max(axis=2, keepdims=True), _UNSEEN)
    nothing = (precision.activation_bits + 1) * math.log(2)  # so much lower, a probability is 0
    hidden = (real - highest < -(2 * _MARGIN * reached + nothing)[:, None, None]) | (highest == _UNSEEN)
    below = np.where(hidden, 0.0, real - highest)
    centred = np.where(hidden, 0.0, below - below.min(axis=2, keepdims=True) / 2)
    return centred, hidden
