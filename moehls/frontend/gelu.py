"""Which activation a scalar function is, decided by its values."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moehls.frontend.values import RealFunction
from moehls.network.operations import ActivationForm

Real = npt.NDArray[np.float64]
TOLERANCE = 5e-6
"""Largest difference on the grid; the two forms differ by up to 5e-4, float32 constants in a graph by under 2e-6."""

_erf = np.vectorize(math.erf, otypes=[np.float64])
_GRID: Real = np.concatenate([np.linspace(-12, 12, 1537), np.linspace(-0.01, 0.01, 41)])


def erf(x: Real) -> Real:
    return np.asarray(_erf(x), np.float64)


def gelu_exact(x: Real) -> Real:
    """`x · Φ(x)`."""
    return np.asarray(0.5 * x * (1 + erf(x / math.sqrt(2))))


def gelu_tanh(x: Real) -> Real:
    """The tanh approximation of Hendrycks and Gimpel, arXiv 1606.08415."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def match_gelu(function: RealFunction) -> ActivationForm | None:
    """The form of GELU that `function` equals on a fine grid, None if neither."""
    with np.errstate(all="ignore"):
        values = function(_GRID)
    if np.allclose(values, gelu_exact(_GRID), rtol=0, atol=TOLERANCE):
        return "exact"
    if np.allclose(values, gelu_tanh(_GRID), rtol=0, atol=TOLERANCE):
        return "tanh"
    return None
