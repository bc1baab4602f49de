"""Real factors as integer multiplier and shift, and the grids that integers stand for.

A factor is chosen first and the scale behind it is then defined by `multiplier · 2^-shift` exactly, so a multiplier of
16 bits adds no error wherever one of the two scales is free. Scales that come from floating point sums are rounded to
24 significant bits first: they do not change with the order in which a BLAS adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray, RealArray

MAXIMUM_SHIFT = 63


@dataclass(frozen=True)
class Grid:
    """What integers mean, one entry a channel: `real = (q - offset) · scale`."""

    scale: RealArray
    offset: RealArray

    @property
    def base(self) -> RealArray:
        """The real value of the integer 0."""
        return -self.offset * self.scale

    def real(self, integers: npt.NDArray[np.integer]) -> RealArray:
        """Integers `[…, channels]` to the reals they stand for."""
        result: RealArray = (integers - self.offset) * self.scale
        return result


@dataclass(frozen=True)
class Factor:
    """`multiplier · 2^-shift`, elementwise."""

    multiplier: IntArray
    shift: IntArray

    @property
    def value(self) -> RealArray:
        return np.ldexp(self.multiplier.astype(np.float64), -self.shift)


def factor(target: npt.ArrayLike, bits: int, maximum_shift: int = MAXIMUM_SHIFT) -> Factor:
    """The factor nearest to `target` > 0 with a multiplier of `bits` bits, unsigned and as large as the shift allows."""
    real = np.asarray(target, dtype=np.float64)
    _, exponent = np.frexp(real)
    shift = np.clip(bits - exponent, 0, maximum_shift)
    multiplier = np.rint(np.ldexp(real, shift))
    halve = (multiplier >= 1 << bits) & (shift > 0)
    shift = shift - halve
    multiplier = np.where(halve, np.rint(np.ldexp(real, shift)), multiplier)
    return Factor(np.clip(multiplier, 1, (1 << bits) - 1).astype(np.int64), shift.astype(np.int64))


def significant(x: npt.ArrayLike) -> RealArray:
    """x rounded to 24 significant bits."""
    return np.asarray(x, dtype=np.float32).astype(np.float64)


def rounded(x: npt.ArrayLike) -> IntArray:
    """x rounded to the nearest integer, as int64."""
    return np.rint(np.asarray(x, dtype=np.float64)).astype(np.int64)
