"""Ranges and steps of activations, chosen by error rather than by extremes.

In go real activations over the calibration data, out come the range of each channel and the step at which it is best
quantised, given the matrices that read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moehls.integer.operations import RealArray

_BINS = 512
_ENDS = np.arange(0.04, 1.001, 0.01)
"""candidates for an end of a range, as shares of the largest value"""
_CLIPPING = np.maximum(np.arange(_BINS + 1) / _BINS - _ENDS[:, None], 0) ** 2
_ROUNDING_GAIN = 0.08
"""share of the error of plainly rounded weights that error-compensated rounding leaves"""
_SMALLEST_STEP = 1e-3
"""of a channel, as a share of the largest of its tensor"""


@dataclass(frozen=True)
class Unseen:
    """What is expected of data beyond the calibration: the same values, stretched from the mean of each channel.

    Found with images held back; the last, unlikely factor only counts where steps are cheap (16 bits).
    """

    stretches: tuple[float, ...]
    shares: tuple[float, ...]

    def of(self, x: RealArray) -> list[RealArray]:
        """Data `[rows, channels]` stretched by each factor."""
        centre = x.mean(axis=0)
        return [centre + stretch * (x - centre) for stretch in self.stretches]


NORMALISED = Unseen((1.0, 1.2, 1.5, 3.0), (0.6, 0.3, 0.1, 1e-6))
"""layer norms"""
PROJECTED = Unseen((1.0, 1.15, 1.4, 3.0), (0.7, 0.25, 0.05, 1e-6))
"""queries, keys and values"""
ACTIVATED = Unseen((1.0, 1.2, 1.5, 2.0, 3.0), (0.6, 0.3, 0.095, 0.005, 1e-6))
"""inputs of a GELU"""
CONTEXT = Unseen((1.0, 1.5), (0.7, 0.3))
"""what attention gathers; it differs most from image to image"""
GATHERED = Unseen((1.0, 2.0), (0.01, 1e-6))
"""values: where attention sees one key only, the context is that key's value"""


def clipped_range(futures: Sequence[RealArray], shares: Sequence[float], levels: int) -> tuple[RealArray, RealArray]:
    """The range `low, high` `[channels]` with the least mean squared error of rounding and clipping.

    Args:
        futures: `[rows, channels]` each, the data as it may come.
        shares: how likely each is.
        levels: number of steps the range is divided into.
    """
    centre = futures[0].mean(axis=0)
    up, down = _Tail([x - centre for x in futures], shares), _Tail([centre - x for x in futures], shares)
    high, low = up.largest, down.largest
    for _ in range(3):
        high = up.best_end(low, levels)
        low = down.best_end(high, levels)
    return centre - low, centre + high


class _Tail:
    """The positive values of each channel, as a histogram up to the largest, and what clipping them costs."""

    def __init__(self, futures: list[RealArray], shares: Sequence[float]) -> None:
        self.largest = np.maximum(np.max([x.max(axis=0) for x in futures], axis=0), 0)
        inverse = np.where(self.largest > 0, _BINS / np.where(self.largest > 0, self.largest, 1), 0)
        channels = len(self.largest)
        share = np.zeros((channels, _BINS + 1))
        for x, weight in zip(futures, shares, strict=True):
            bins = np.clip(np.ceil(x * inverse), 0, _BINS).astype(np.int64) + (_BINS + 1) * np.arange(channels)
            count = np.bincount(bins.reshape(-1), minlength=share.size).reshape(share.shape)
            share += weight / len(x) * count
        self.clipping = share @ _CLIPPING.T * self.largest[:, None] ** 2
        """[channels, ends]: mean squared error of clipping at each of `_ENDS`"""

    def best_end(self, other: RealArray, levels: int) -> RealArray:
        """The end `[channels]` of least error, the range having the end `other` on the other side."""
        ends = _ENDS * self.largest[:, None]
        rounding = ((ends + other[:, None]) / levels) ** 2 / 12
        best = np.argmin(rounding + self.clipping, axis=1)
        return np.take_along_axis(ends, best[:, None], axis=1)[:, 0]


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
