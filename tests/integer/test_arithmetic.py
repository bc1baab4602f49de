"""The integer arithmetic against its definition in unbounded Python integers, and its error against real functions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moehls.integer.arithmetic import (
    bit_length,
    exp2,
    exp2_at,
    gelu,
    halved,
    reciprocal,
    requantise,
    rs,
    rsqrt,
    sat,
    usat,
)
from moehls.integer.precision import PRECISIONS, W8A8, W16A16, Precision
from moehls.integer.tables import delta_table, exp2_table
from moehls.network.operations import ActivationForm

SHIFTS = st.integers(0, 63)


def scalar(value: int) -> np.ndarray:
    return np.array([value], dtype=np.int64)


@given(st.integers(-(2**63) + 1, 2**63 - 1), SHIFTS)
@example(-(2**63) + 1, 63)
@example(2**63 - 1, 63)
@example(-3, 1)
@example(3, 1)
def test_rs_is_floor_of_x_plus_half_in_the_whole_int64_range(x: int, n: int) -> None:
    expected = (x + (1 << (n - 1))) >> n if n else x
    assert rs(scalar(x), n).tolist() == [expected]
    assert expected == math.floor(Fraction(x, 2**n) + Fraction(1, 2)) or n == 0


@given(st.integers(-(2**47), 2**47 - 1), st.integers(0, 2**16 - 1), SHIFTS)
@example(-(2**47), 2**16 - 1, 63)
def test_requantise_holds_the_largest_accumulator(x: int, m: int, s: int) -> None:
    bias = x // 3
    exact = (x * m + ((1 << (s - 1)) if s else 0)) >> s
    y = requantise(scalar(x - bias), scalar(bias), scalar(m), scalar(s), W16A16)
    assert y.tolist() == [min(max(exact, -(2**23)), 2**23 - 1)]


@given(st.integers(-(2**40), 2**40), st.integers(1, 24))
def test_saturation_clamps(x: int, bits: int) -> None:
    assert sat(scalar(x), bits).tolist() == [min(max(x, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)]
    assert usat(scalar(x), bits).tolist() == [min(max(x, 0), 2**bits - 1)]


@given(st.integers(1, 2**62 - 1))
@example(2**53 - 1)
@example(2**61 + 1)
def test_bit_length(x: int) -> None:
    assert bit_length(scalar(x)).tolist() == [x.bit_length()]


def test_bit_length_at_every_power() -> None:
    powers = np.array([1 << n for n in range(62)], dtype=np.int64)
    assert bit_length(powers).tolist() == list(range(1, 63))
    assert bit_length(powers[1:] - 1).tolist() == list(range(1, 62))


def reciprocal_by_the_page(s: int) -> tuple[int, int]:
    length = s.bit_length()
    a = s << (18 - length) if length <= 18 else s >> (length - 18)
    assert 2**17 <= a < 2**18
    r0 = int(Fraction(2**24) / (Fraction((a >> 10) - 128) + Fraction(257, 2)) + Fraction(1, 2))
    d = (2 * 2**34 - a * r0 + 2**16) >> 17
    return min((r0 * d + 2**16) >> 17, 2**17 - 1), length


@given(st.integers(1, 2**40))
@example(1)
@example(2**18 - 1)
@example(2**18)
@example(2**17)
def test_reciprocal(s: int) -> None:
    r, length = (int(x[0]) for x in reciprocal(scalar(s)))
    assert (r, length) == reciprocal_by_the_page(s)
    assert 2**16 <= r < 2**17
    assert abs(Fraction(r * s, 2 ** (16 + length)) - 1) <= Fraction(22, 10**6)


def test_no_reciprocal_and_no_gate_needs_its_limit() -> None:
    """Of every normalised sum, and of every value that is the whole of its sum: less of it gives less."""
    assert reciprocal(np.arange(1 << 17, 1 << 18))[0].max() < 2**17 - 1
    sums = np.arange(1, 1 << 16)
    r, length = reciprocal(sums)
    assert rs(sums * r, length + 1).max() == 1 << 15


def rsqrt_by_the_page(v: int) -> tuple[int, int]:
    length = v.bit_length()
    e = length + length % 2
    a = v << (32 - e) if e <= 32 else v >> (e - 32)
    assert 2**30 <= a < 2**32
    four = Fraction(4 * 2**40) / (Fraction((a >> 24) - 64) + Fraction(129, 2))
    r0 = min((math.isqrt(math.floor(four)) + 1) // 2, 2**17 - 1)
    q = (r0 * r0 + 2**15) >> 16
    d = (3 * 2**34 - (a >> 14) * q + 2**16) >> 17
    return min((r0 * d + 2**17) >> 18, 2**17 - 1), e


@given(st.integers(1, 2**61))
@example(1)
@example(2)
@example(2**32 - 1)
@example(2**32)
@example(2**30)
def test_rsqrt(v: int) -> None:
    r, e = (int(x[0]) for x in rsqrt(scalar(v)))
    assert (r, e) == rsqrt_by_the_page(v)
    assert e % 2 == 0
    assert 2**16 <= r < 2**17
    assert abs(r * math.sqrt(v) * 2.0 ** -(16 + e // 2) - 1) < 2.7e-5


@given(st.integers(-(2**23), 2**23 - 1), st.sampled_from([(8, 255), (10, 65535)]))
def test_exp2_splits_a_power(t: int, table: tuple[int, int]) -> None:
    fraction, top = table
    value, c = (int(x[0]) for x in exp2(scalar(t), fraction, top))
    assert c == math.ceil(Fraction(t, 2**fraction))
    exact = top * 2.0 ** (t / 2**fraction - c)
    assert abs(value - exact) <= 0.5
    assert top // 2 <= value <= top


@given(st.lists(st.integers(-(2**11), 2**11), min_size=1, max_size=40))
def test_exp2_values_do_not_depend_on_order_or_blocking(scores: list[int]) -> None:
    """A running maximum with right-shift corrections of single values gives the values at the final maximum."""
    value, c = exp2(np.array(scores, np.int64), 8, 255)
    whole = exp2_at(value, c, np.full_like(c, c.max()))
    running: list[tuple[int, int]] = []
    for one in scores:
        v, e = (int(x[0]) for x in exp2(scalar(one), 8, 255))
        maximum = max([e, *(m for _, m in running)])
        running = [(p >> min(maximum - m, 31), maximum) for p, m in [*running, (v, e)]]
    assert [p for p, _ in running] == whole.tolist()


@given(st.integers(0, 65535), st.integers(0, 20), st.integers(0, 20))
def test_halvings_compose(value: int, first: int, second: int) -> None:
    once = halved(scalar(value), scalar(first + second))
    assert halved(halved(scalar(value), scalar(first)), scalar(second)) == once


@pytest.mark.parametrize("times", range(1, 7))
def test_halvings_have_no_bias(times: int) -> None:
    """Over the upper half of 8 bits, where the exponential's table lies, the mean error is 0 and none exceeds 1."""
    value = np.arange(128, 256)
    error = halved(value, np.full_like(value, times)) - value / 2**times
    assert abs(error.mean()) < 0.01
    assert np.abs(error).max() < 1


def test_halvings_end_at_zero() -> None:
    assert halved(scalar(255), scalar(9)) == 0
    assert halved(scalar(65535), scalar(17)) == 0


@pytest.mark.parametrize("form", ["exact", "tanh"])
@pytest.mark.parametrize(("precision", "stride"), [(W8A8, 1), (W16A16, 7)])
def test_gelu_is_relu_less_the_interpolated_table(precision: Precision, stride: int, form: ActivationForm) -> None:
    """Over the whole input range, both ends included."""
    limit = 1 << (precision.gelu_bits - 1)
    table = delta_table(form, precision.delta_fraction, precision.delta_step).tolist()
    step = precision.gelu_fraction - precision.delta_step
    inputs = sorted({*range(-limit, limit, stride), limit - 1})

    def expected(g: int) -> int:
        i, w = divmod(abs(g), 2**step)
        left, right = (table[j] if j < len(table) else 0 for j in (i, i + 1))
        delta = left + (((right - left) * w + 2 ** (step - 1)) >> step)
        return (max(g, 0) << (precision.delta_fraction - precision.gelu_fraction)) - int(delta)

    assert gelu(np.array(inputs), precision, form).tolist() == [expected(g) for g in inputs]


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_gelu_approximates_the_real_function(precision: Precision) -> None:
    x = np.linspace(-8, 8, 2001)
    g = np.rint(x * 2**precision.gelu_fraction).astype(np.int64)
    real = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in g / 2**precision.gelu_fraction])
    assert np.abs(gelu(g, precision, "exact") / 2**precision.delta_fraction - real).max() < 1.31e-4


def test_exp2_table_top_is_the_first_entry() -> None:
    assert exp2_table(8, 255)[0] == 255
    assert exp2_table(10, 65535)[0] == 65535
