"""The error of the integer activation: in go a precision and a form, out come the largest error and a curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moehls.integer.arithmetic import gelu
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table
from moehls.network.operations import ActivationForm

_EXAMINED = 1 << 16
_DRAWN = 480
_SPAN = 6.0


def worst_activation(precision: Precision, forms: Sequence[ActivationForm]) -> dict[str, Any]:
    """`gelu_error` of the form with the largest."""
    return max((gelu_error(precision, form) for form in forms), key=lambda found: float(found["largest_error"]))


def gelu_error(precision: Precision, form: ActivationForm) -> dict[str, Any]:
    """Largest error over the whole input range (at most 2^16 inputs, evenly spaced) and the error over -6 … 6.

    The error is the integer result without its output scale against the activation of the same input, in real units.
    """
    limit = 1 << (precision.gelu_bits - 1)
    step = max(2 * limit // _EXAMINED, 1)
    inputs = np.arange(-limit, limit, step, dtype=np.int64)
    x = inputs / 2.0**precision.gelu_fraction
    error = gelu(inputs, precision, form) / 2.0**precision.delta_fraction - _exact(x, form)
    worst = int(np.abs(error).argmax())
    shown = np.flatnonzero(np.abs(x) <= _SPAN)
    shown = shown[np.linspace(0, len(shown) - 1, min(_DRAWN, len(shown))).astype(np.int64)]
    return {
        "form": form,
        "entries": len(delta_table(form, precision.delta_fraction, precision.delta_step)),
        "largest_error": float(abs(error[worst])),
        "at": float(x[worst]),
        "curve": [[round(float(x[i]), 4), float(f"{error[i]:.3e}")] for i in shown],
    }


def _exact(x: np.ndarray[Any, np.dtype[np.float64]], form: ActivationForm) -> np.ndarray[Any, np.dtype[np.float64]]:
    match form:
        case "exact":
            return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])
        case "tanh":
            return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
        case "quick":
            return np.asarray(0.5 * x * (1 + np.tanh(0.851 * x)))
        case "silu":
            return np.asarray(0.5 * x * (1 + np.tanh(0.5 * x)))
        case "relu":
            return np.asarray(np.maximum(x, 0))
