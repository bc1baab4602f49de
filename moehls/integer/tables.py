"""The integer tables of `docs/numbers.md`, section 1, rounded correctly on every machine.

In go the parameters of a table, out comes a read-only int64 array. The host's `libm` takes no part: rational and square
root entries are integer arithmetic, the others are `decimal` with 60 digits, and an entry so close to a tie that the
remaining error could turn it stops with an error instead of being guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from functools import cache

import numpy as np

from moehls.integer.operations import IntArray
from moehls.network.operations import ActivationForm

_CONTEXT = Context(prec=60)
_DOUBT = Decimal(10) ** -40
"""Far above the error of a 60-digit result below 2^20, far below the distance of any entry to a tie."""


@cache
def exp2_table(fraction: int, top: int) -> IntArray:
    """`[2^fraction]`: `round_half_up(top · 2^(-f / 2^fraction))`."""
    with localcontext(_CONTEXT):
        size = 1 << fraction
        return _frozen(_round_half_up(top * Decimal(2) ** (Decimal(-f) / size)) for f in range(size))


@cache
def delta_table(form: ActivationForm, delta_fraction: int, delta_step: int) -> IntArray:
    """`[n]`: `round_half_up(2^delta_fraction · δ(i · 2^-delta_step))`, δ = ReLU - activation; only the last entry after
    the maximum is zero."""
    with localcontext(_CONTEXT):
        delta = _DELTAS[form]
        entries = [0]
        while len(entries) == 1 or entries[-1] > 0:
            x = Decimal(len(entries)) / (1 << delta_step)
            entries.append(_round_half_up((1 << delta_fraction) * delta(x)))
        return _frozen(entries)


@cache
def sigmoid_table() -> IntArray:
    """`[273]`: `round_half_up(65535 / (1 + 2^(i/16)))`; only the last entry is zero."""
    with localcontext(_CONTEXT):
        rest = (_round_half_up(65535 / (1 + Decimal(2) ** (Decimal(i) / 16))) for i in range(1, 273))
        return _frozen([32768, *rest])  # the first is a tie


@cache
def reciprocal_table() -> IntArray:
    """`[128]`: `round_half_up(2^16 · 256 / (i + 128.5))`."""
    return _frozen(((2 << 25) + (2 * i + 257)) // (2 * (2 * i + 257)) for i in range(128))


@cache
def rsqrt_table() -> IntArray:
    """`[192]`: `min(round_half_up(2^16 · sqrt(256 / (i + 64.5))), 2^17 - 1)`."""
    twice = (math.isqrt((4 << 41) // (2 * i + 129)) for i in range(192))
    return _frozen(min((t + 1) // 2, (1 << 17) - 1) for t in twice)


def _frozen(entries: Iterable[int]) -> IntArray:
    table = np.array(list(entries), dtype=np.int64)
    table.setflags(write=False)
    return table


def _round_half_up(value: Decimal) -> int:
    half = Decimal("0.5")
    low, high = ((value + half + doubt).to_integral_value(ROUND_FLOOR) for doubt in (-_DOUBT, _DOUBT))
    if low != high and value != value.to_integral_value():
        raise ArithmeticError(f"{value} is too close to a tie to be rounded with {_CONTEXT.prec} digits")
    return int(high)


def _delta_exact(x: Decimal) -> Decimal:
    """`x · (1 - Φ(x))`; `Φ(x) = 1/2 + φ(x) · Σ x^(2n+1) / (1·3·5···(2n+1))` (Abramowitz and Stegun 26.2.11)."""
    term, total, odd = x, x, 1
    while term > total * Decimal(10) ** -58:
        odd += 2
        term = term * x * x / odd
        total += term
    density = (-x * x / 2).exp() / (2 * _pi()).sqrt()
    return x * (Decimal("0.5") - density * total)


def _delta_tanh(x: Decimal) -> Decimal:
    """`x · (1 - tanh(u)) / 2 = x / (1 + exp(2u))`, `u = sqrt(2/π) · (x + 0.044715 x³)`."""
    u = (2 / _pi()).sqrt() * (x + Decimal("0.044715") * x**3)
    return x / (1 + (2 * u).exp())


def _pi() -> Decimal:
    """Machin: `π = 16 arctan(1/5) - 4 arctan(1/239)`, in the current precision."""

    def arctan_inverse(n: int) -> Decimal:
        power, total, k = Decimal(1) / n, Decimal(0), 0
        while power > Decimal(10) ** -62:
            total += power / (2 * k + 1) * (-1) ** k
            power /= n * n
            k += 1
        return total

    return 16 * arctan_inverse(5) - 4 * arctan_inverse(239)


def _delta_sigmoid(x: Decimal, slope: Decimal) -> Decimal:
    """`x · (1 - sigmoid(slope · x)) = x / (1 + exp(slope · x))`."""
    return x / (1 + (slope * x).exp())


_DELTAS: dict[ActivationForm, Callable[[Decimal], Decimal]] = {
    "exact": _delta_exact,
    "tanh": _delta_tanh,
    "quick": lambda x: _delta_sigmoid(x, Decimal("1.702")),
    "silu": lambda x: _delta_sigmoid(x, Decimal(1)),
    "relu": lambda x: Decimal(0),
}
