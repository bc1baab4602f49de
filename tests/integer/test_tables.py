"""Every table entry is the correctly rounded value of its formula."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from moehls.integer.arithmetic import gelu_error
from moehls.integer.precision import PRECISIONS, Precision
from moehls.integer.tables import delta_table, exp2_table, reciprocal_table, rsqrt_table
from moehls.network.operations import ActivationForm

FORMS: tuple[ActivationForm, ...] = ("exact", "tanh")
EXP2 = ((8, 255), (10, 65535), (10, 255))


@pytest.mark.parametrize(("fraction", "top"), EXP2)
def test_exp2_entries_by_integer_powers(fraction: int, top: int) -> None:
    """`v - 1/2 ≤ top · 2^(-f/K) < v + 1/2`, raised to the power K = 2^fraction, holds in integers."""
    table, size = exp2_table(fraction, top), 1 << fraction
    assert len(table) == size
    for f, v in enumerate(table.tolist()):
        assert (2 * v - 1) ** size << f <= (2 * top) ** size < (2 * v + 1) ** size << f


def test_reciprocal_entries() -> None:
    table = reciprocal_table()
    assert len(table) == 128
    for i, v in enumerate(table.tolist()):
        assert Fraction(2 * v - 1, 2) <= Fraction(2**24) / (i + Fraction(257, 2)) < Fraction(2 * v + 1, 2)


def test_rsqrt_entries() -> None:
    table = rsqrt_table()
    assert len(table) == 192
    for i, v in enumerate(table.tolist()):
        square = Fraction(2**40) / (i + Fraction(129, 2))
        assert Fraction(2 * v - 1, 2) ** 2 <= square < Fraction(2 * v + 1, 2) ** 2
        assert v < 2**17


def delta(x: mpmath.mpf, form: ActivationForm) -> mpmath.mpf:
    if form == "exact":
        return x * mpmath.erfc(x / mpmath.sqrt(2)) / 2
    return x / 2 * (1 - mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_delta_entries(precision: Precision, form: ActivationForm) -> None:
    table = delta_table(form, precision.delta_fraction, precision.delta_step)
    with mpmath.workdps(50):
        for i, v in enumerate(table.tolist()):
            exact = mpmath.ldexp(delta(mpmath.ldexp(i, -precision.delta_step), form), precision.delta_fraction)
            assert v == int(mpmath.floor(exact + 0.5))
    assert table[0] == 0
    assert table[-1] == 0
    assert (table[1:-1] > 0).all()


@pytest.mark.parametrize("table", [exp2_table(8, 255), reciprocal_table(), rsqrt_table(), delta_table("exact", 14, 5)])
def test_tables_are_shared_and_so_read_only(table: np.ndarray) -> None:
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "bound"), [("w8a8", 1.31e-4), ("w16a16", 9.9e-5)])
def test_gelu_error_is_what_the_numbers_page_states(name: str, bound: float, form: ActivationForm) -> None:
    assert bound - 1e-6 < gelu_error(PRECISIONS[name], form) < bound
