"""Weights to integers: a step a row chosen by error, then error-compensated rounding.

In go real weights whose columns are already scaled to the integers they multiply, and the centred second moments of
those integers over the calibration data; out come integers. The rounding is the one of GPTQ (Frantar et al., 2023): the
error of a column is made up for by the columns not yet rounded, so that the error of the product, not that of the
weights, is small. The mean of the inputs does not count, as the bias makes up for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray, RealArray

_DAMPING = 0.01
_BLOCK = 64
_LEVELS, _PROBES, _ROUNDING = 127, 8, 1e-4
_CLIPS = np.arange(1.0, 0.45, -0.05)


def second_moments(integers: npt.NDArray[np.integer]) -> tuple[RealArray, RealArray]:
    """Mean `[channels]` and covariance `[channels, channels]` of integers `[rows, channels]`; sums are exact."""
    rows = max(len(integers), 1)
    x = integers.astype(np.float64)
    mean = x.sum(axis=0) / rows
    return mean, x.T @ x / rows - np.outer(mean, mean)


def weight_steps(weight: RealArray, variance: RealArray, limit: int) -> RealArray:
    """The step of each row `[out]` of `weight` `[out, in]` that loses least.

    Args:
        weight: real weights a unit of the integer input.
        variance: `[in]` variance of the input integers.
        limit: the largest weight integer.
    """
    best: RealArray = np.abs(weight).max(axis=1) / limit
    full, least = best, np.full(best.shape, np.inf)
    for clip in _CLIPS:
        step = full * clip
        safe = np.where(step > 0, step, 1.0)[:, None]
        error = (((np.clip(np.rint(weight / safe), -limit, limit) * safe - weight) ** 2) * variance).sum(axis=1)
        better = error < least * (1 - 1e-9)
        best, least = np.where(better, step, best), np.where(better, error, least)
    return best


def lattice_steps(weight: RealArray, limit: int) -> RealArray:
    """The step `[out]` of each row that holds integer multiples of one step, as weights do that were quantised before; else 0.

    Of several steps the largest, so that the integers are as small as can be. Only steps of at most 127 levels are looked for.
    """
    largest: RealArray = np.abs(weight).max(axis=1, initial=0.0)
    found: RealArray = np.zeros_like(largest)
    probes = min(_PROBES, weight.shape[1])
    columns = np.argpartition(-np.abs(weight), probes - 1, axis=1)[:, :probes]
    shares = np.take_along_axis(weight, columns, axis=1) / np.where(largest > 0, largest, 1.0)[:, None]
    for levels in range(1, min(limit, _LEVELS) + 1):
        rows = np.flatnonzero((found == 0) & (largest > 0) & _whole(shares * levels))
        rows = rows[_whole(weight[rows] / largest[rows, None] * levels)]
        found[rows] = largest[rows] / levels
    return found


def _whole(x: RealArray) -> npt.NDArray[np.bool_]:
    """Which rows are whole numbers, but for float32's rounding."""
    return np.asarray((np.abs(x - np.rint(x)) <= _ROUNDING).all(axis=1))


@dataclass(frozen=True)
class Compensation:
    """How the error of one column is made up for by others: for one covariance, whatever the weights and steps."""

    order: npt.NDArray[np.intp]
    """[in], the columns in the order of rounding: those of large variance first"""
    upper: RealArray
    """[in, in], the upper factor of the inverse of the damped covariance, in that order"""


def compensation(covariance: RealArray) -> Compensation:
    """Of inputs with this covariance `[in, in]`; takes a time that is cubic in their number."""
    order = np.argsort(-np.diag(covariance), kind="stable")
    return Compensation(order, _inverse_factor(covariance[np.ix_(order, order)]))


def round_weights(weight: RealArray, step: RealArray, inputs: Compensation, limit: int) -> IntArray:
    """`weight / step` as integers of at most `limit`, with the least error of the product that one pass finds.

    Args:
        weight: `[out, in]`.
        step: `[out]`, positive.
        inputs: of the integers that the weights multiply.
        limit: the largest weight integer.
    """
    columns, order, upper = weight.shape[1], inputs.order, inputs.upper
    rest = (weight / step[:, None]).T[order]
    result = np.empty_like(rest)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = np.empty_like(rest[start:stop])
        for i in range(start, stop):
            result[i] = np.clip(np.rint(rest[i]), -limit, limit)
            errors[i - start] = (rest[i] - result[i]) / upper[i, i]
            rest[i + 1 : stop] -= upper[i, i + 1 : stop, None] * errors[i - start]
        rest[stop:] -= upper[start:stop, stop:].T @ errors
    integers = np.empty_like(result)
    integers[order] = result
    return integers.T.astype(np.int64)


def _inverse_factor(covariance: RealArray) -> RealArray:
    """The upper factor U of the inverse of the damped covariance: `inverse = Uᵀ · U`, without the inverse itself.

    With both orders reversed the covariance is `L · Lᵀ`, L lower triangular, and U the inverse of L in the order given.
    """
    damping = _DAMPING * float(np.trace(covariance)) / len(covariance) + 1e-6
    damped = covariance[::-1, ::-1] + damping * np.eye(len(covariance))
    lower = np.asarray(np.linalg.cholesky(damped), np.float64)
    return np.ascontiguousarray(_inverse_of_lower(lower)[::-1, ::-1])


def _inverse_of_lower(lower: RealArray) -> RealArray:
    """The inverse of a lower triangular matrix, by halves: two products of half the size and the inverses of the halves."""
    size = len(lower)
    if size <= _BLOCK:
        return np.asarray(np.linalg.inv(lower), np.float64)
    half, result = size // 2, np.zeros_like(lower)
    result[:half, :half] = _inverse_of_lower(lower[:half, :half])
    result[half:, half:] = _inverse_of_lower(lower[half:, half:])
    result[half:, :half] = -result[half:, half:] @ (lower[half:, :half] @ result[:half, :half])
    return result
