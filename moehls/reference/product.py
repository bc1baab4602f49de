"""Exact integer matrix products at the speed of the float64 BLAS."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray

_EXACT_TERMS = 1 << 21


def product(left: npt.NDArray[np.integer], right: npt.NDArray[np.integer]) -> IntArray:
    """`left · rightᵀ` over the last axis of both: `[…, n, k]` and `[…, m, k]` to `[…, n, m]`.

    NumPy has no fast int64 product. Operands have at most 16 bits, so a product is below 2^32 in magnitude and every
    partial sum of fewer than 2^21 of them below 2^53, in any order: float64 holds each exactly.
    """
    assert left.shape[-1] < _EXACT_TERMS, "partial sums could exceed 2^53"
    return (left.astype(np.float64) @ np.swapaxes(right, -1, -2).astype(np.float64)).astype(np.int64)
