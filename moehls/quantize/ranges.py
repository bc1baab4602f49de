"""Ranges and steps of activations, chosen by error rather than by extremes.

In go real activations over the calibration data, out come the range of each channel and the step at which it is best
quantised, given the matrices that read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moehls.integer.operations import RealArray

_SHRINK = np.arange(1.0, 0.25, -0.05)
_ROUNDING_GAIN = 0.3
"""share of the error of plainly rounded weights that error-compensated rounding leaves"""
_SMALLEST_STEP = 1e-3
"""of a channel, as a share of the largest of its tensor"""


def clipped_range(x: RealArray, levels: int, headroom: float) -> tuple[RealArray, RealArray]:
    """The range `low, high` `[channels]` with the least mean squared error of rounding and clipping.

    Args:
        x: `[rows, channels]`.
        levels: number of steps the range is divided into.
        headroom: factor on both sides (from the mean) for values beyond the calibration data.
    """
    centre = x.mean(axis=0)
    spread = x - centre
    high, low = np.maximum(spread.max(axis=0), 0), np.maximum(-spread.min(axis=0), 0)
    for _ in range(2):
        high = _best_end(spread, high, low, levels)
        low = _best_end(-spread, low, high, levels)
    return centre - headroom * low, centre + headroom * high


def _best_end(x: RealArray, end: RealArray, other: RealArray, levels: int) -> RealArray:
    """The upper end, at most `end`, of least error with the lower end `-other`."""
    best, least = end, np.full(end.shape, np.inf)
    for shrink in _SHRINK:
        candidate = end * shrink
        clipped = (np.maximum(x - candidate, 0) ** 2).mean(axis=0)
        error = ((candidate + other) / levels) ** 2 / 12 + clipped
        better = error < least * (1 - 1e-9)
        best, least = np.where(better, candidate, best), np.where(better, error, least)
    return best


def balanced_steps(least: RealArray, deviation: RealArray, matrices: Sequence[RealArray], limit: int) -> RealArray:
    """Steps `[channels]`, none finer than `least`, with the least error of the products with `matrices`.

    A fine step costs nothing by itself, but its channel then holds large integers, and these multiply the rounding
    error of the weights. With A the squared column norms of the matrices and B the rounding error of their rows, the
    error is `Σ step²·A/12 + B·deviation²/step²` summed over channels, least at `step⁴ = 12·B·deviation²/A`; B follows
    from the steps, so a few rounds are made and the best is kept.

    Args:
        least: step at which a channel covers its range.
        deviation: standard deviation of each channel.
        matrices: `[out, channels]`, each weighted as one output.
        limit: largest weight integer.
    """
    floor = np.maximum(least, max(float(least.max()) * _SMALLEST_STEP, 1e-12))
    scaled = [m / np.sqrt(max(float(((m * deviation) ** 2).sum(axis=1).mean()), 1e-30)) for m in matrices]
    if not scaled:
        return floor
    noise = np.maximum(sum((m**2).sum(axis=0) for m in scaled), 1e-30)
    best, lowest, step = floor, np.inf, floor
    for _ in range(12):
        rows = sum(float(((np.abs(m) * step).max(axis=1) ** 2).sum()) for m in scaled)
        b = _ROUNDING_GAIN * rows / limit**2 / 12
        error = float((step**2 * noise / 12 + b * deviation**2 / step**2).sum())
        if error < lowest:
            best, lowest = step, error
        ideal = (12 * b * deviation**2 / noise) ** 0.25
        step = np.sqrt(step * np.maximum(floor, ideal))
    return best
