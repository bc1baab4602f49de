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


def sigmoid(x: Real) -> Real:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


_FORMS: dict[ActivationForm, RealFunction] = {
    "exact": gelu_exact,
    "tanh": gelu_tanh,
    "quick": lambda x: x * sigmoid(1.702 * x),
    "silu": lambda x: x * sigmoid(x),
    "relu": lambda x: np.maximum(x, 0),
}


def is_sigmoid(function: RealFunction) -> bool:
    """Whether `function` is the logistic function on a fine grid."""
    return _same(function, sigmoid)


def match_activation(function: RealFunction) -> ActivationForm | None:
    """The activation that `function` equals on a fine grid, None if none does."""
    return next((form for form, known in _FORMS.items() if _same(function, known)), None)


def _same(function: RealFunction, known: RealFunction) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.allclose(function(_GRID), known(_GRID), rtol=0, atol=TOLERANCE))
