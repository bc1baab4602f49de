"""Integer arithmetic of `docs/numbers.md`, section 1, on int64 arrays: rounding, saturation and the table functions.

Every function is element by element, takes and returns int64 and is exact wherever the true intermediate values fit the
64 bits, which the widths of the two precisions guarantee.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table, exp2_table, reciprocal_table, rsqrt_table, sigmoid_table
from moehls.network.operations import ActivationForm


def rs(x: IntArray, n: npt.ArrayLike) -> IntArray:
    """Round and shift: `(x + 2^(n-1)) >> n` for n ≥ 1, x for n = 0.

    Written as the floor plus the highest bit shifted out, which is the same number and cannot overflow.
    """
    shift = np.asarray(n, dtype=np.int64)
    return (x >> shift) + np.where(shift > 0, (x >> np.maximum(shift - 1, 0)) & 1, 0)


def sat(x: IntArray, bits: int) -> IntArray:
    """Saturate to `bits` bits, signed."""
    return np.clip(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def usat(x: IntArray, bits: int) -> IntArray:
    """Saturate to `bits` bits, unsigned."""
    return np.clip(x, 0, (1 << bits) - 1)


def requantise(
    accumulator: IntArray, bias: IntArray | int, multiplier: IntArray, shift: IntArray, precision: Precision
) -> IntArray:
    """`sat(rs((accumulator + bias) · multiplier, shift), requantised_bits)`, parameters over the last axis."""
    return sat(rs((accumulator + bias) * multiplier, shift), precision.requantised_bits)


def bit_length(x: IntArray) -> IntArray:
    """Number of bits of x, 0 < x < 2^62: binary search over shifts, as a float logarithm would round up."""
    length = np.ones_like(x)
    rest = x
    for step in (32, 16, 8, 4, 2, 1):
        high = rest >> step
        length = length + np.where(high > 0, step, 0)
        rest = np.where(high > 0, high, rest)
    return length


def reciprocal(s: IntArray) -> tuple[IntArray, IntArray]:
    """`(r, L)` with `1/s ≈ r · 2^-(16+L)`, s ≥ 1: table and one Newton step."""
    length = bit_length(s)
    a = (s << np.maximum(18 - length, 0)) >> np.maximum(length - 18, 0)
    r0 = reciprocal_table()[(a >> 10) - 128]
    d = rs((2 << 34) - a * r0, 17)
    return np.minimum(rs(r0 * d, 17), (1 << 17) - 1), length


def rsqrt(v: IntArray) -> tuple[IntArray, IntArray]:
    """`(r, E)` with `1/sqrt(v) ≈ r · 2^-(16 + E/2)`, v ≥ 1, E even: table and one Newton step."""
    length = bit_length(v)
    even = length + (length & 1)
    a = (v << np.maximum(32 - even, 0)) >> np.maximum(even - 32, 0)
    r0 = rsqrt_table()[(a >> 24) - 64]
    q = rs(r0 * r0, 16)
    d = rs((3 << 34) - (a >> 14) * q, 17)
    return np.minimum(rs(r0 * d, 18), (1 << 17) - 1), even


def exp2(t: IntArray, fraction: int, top: int) -> tuple[IntArray, IntArray]:
    """`(value, c)` with `top · 2^t = value · 2^c`, t with `fraction` fraction bits, c its ceiling."""
    c = -((-t) >> fraction)
    return exp2_table(fraction, top)[(c << fraction) - t], c


def exp2_at(value: IntArray, exponent: IntArray, maximum: IntArray) -> IntArray:
    """`value · 2^exponent` relative to `2^maximum`, floor. Values have at most 16 bits, so 31 shifts leave nothing."""
    shift: IntArray = np.minimum(maximum - exponent, 31)
    return value >> shift


def sigmoid(t: IntArray, fraction: int) -> IntArray:
    """`65535 / (1 + 2^-t)`, t with `fraction` fraction bits: a table at steps of 1/16, interpolated."""
    table, step, u = sigmoid_table(), fraction - 4, np.abs(t)
    i = np.minimum(u >> step, len(table) - 2)
    between = table[i] - rs((table[i] - table[i + 1]) * (u & ((1 << step) - 1)), step)
    tail = np.where(u >> step >= len(table) - 1, 0, between)
    return np.where(t < 0, tail, 65535 - tail)


def halved(value: IntArray, times: IntArray) -> IntArray:
    """`value` ≥ 0 of at most 16 bits halved `times` times, each half rounded to even; 17 halvings leave nothing."""
    result = value
    for done in range(min(int(times.max(initial=0)), 17)):
        result = np.where(times > done, (result + ((result >> 1) & 1)) >> 1, result)
    return result


def gelu(g: IntArray, precision: Precision, form: ActivationForm) -> IntArray:
    """The activation of g (gelu_fraction bits) as `ReLU(g) - δ(|g|)` with delta_fraction bits."""
    table = delta_table(form, precision.delta_fraction, precision.delta_step)
    step = precision.gelu_fraction - precision.delta_step
    u = np.abs(g)
    i = np.minimum(u >> step, len(table) - 2)
    within = u & ((1 << step) - 1)
    delta = np.where(u >> step >= len(table) - 1, 0, table[i] + rs((table[i + 1] - table[i]) * within, step))
    return (np.maximum(g, 0) << (precision.delta_fraction - precision.gelu_fraction)) - delta


def gelu_error(precision: Precision, form: ActivationForm) -> float:
    """Largest `|integer - exact activation|` over every representable input, in units of the real activation.

    Both signs have the same error, as ReLU is exact; so |g| is all there is to search.
    """
    g = -np.arange((1 << (precision.gelu_bits - 1)) + 1, dtype=np.int64)
    measured = gelu(g, precision, form) / float(1 << precision.delta_fraction)
    exact = (_gelu_real(float(x), form) for x in g / float(1 << precision.gelu_fraction))
    return max(abs(float(m) - e) for m, e in zip(measured, exact, strict=True))


def _gelu_real(x: float, form: ActivationForm) -> float:
    """The real activation at x in double precision, without cancellation for negative x."""
    match form:
        case "exact":
            return x * math.erfc(-x / math.sqrt(2)) / 2
        case "relu":
            return max(x, 0.0)
        case "tanh":
            exponent = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        case "quick":
            exponent = 1.702 * x
        case "silu":
            exponent = x
    return x / (1 + math.exp(-exponent)) if exponent > -600 else 0.0
