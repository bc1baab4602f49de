"""The constant tables of the C++ (`tables.hpp`): the integer tables of a precision, with the widths they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moehls.integer.operations import IntArray
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table, exp2_table, reciprocal_table, rsqrt_table, sigmoid_table
from moehls.network.operations import ActivationForm


@dataclass(frozen=True)
class Table:
    """A table in C++: `static const ap_(u)int<bits> name[]`."""

    name: str
    comment: str
    values: tuple[int, ...]
    bits: int
    signed: bool = False


def delta_starts(precision: Precision, activations: Sequence[ActivationForm]) -> tuple[tuple[int, int], ...]:
    """First and last entry of each activation in the table `DELTA`."""
    sizes = [len(delta_table(form, precision.delta_fraction, precision.delta_step)) for form in activations]
    ends = np.cumsum(sizes).tolist()
    return tuple((end - size, end - 1) for size, end in zip(sizes, ends, strict=True))


def tables_of(precision: Precision, activations: Sequence[ActivationForm], sigmoids: bool = False) -> tuple[Table, ...]:
    """Every table of an accelerator of this precision; `sigmoids` where routers have them."""
    deltas = [delta_table(form, precision.delta_fraction, precision.delta_step) for form in activations]
    delta, slope = np.concatenate(deltas), np.concatenate([np.append(np.diff(each), 0) for each in deltas])
    top = (1 << precision.activation_bits) - 1
    tail = sigmoid_table()
    scores = (
        _table("SIGMOID", "65535 / (1 + 2^(i / 16))", tail),
        _table("SIGMOID_FALL", "differences of SIGMOID", np.append(-np.diff(tail), 0)),
    )
    return (
        _table("RECIPROCAL", "2^24 / (i + 128.5)", reciprocal_table()),
        _table("RSQRT", "2^16 * sqrt(256 / (i + 64.5))", rsqrt_table()),
        _table(
            "SCORE_EXP2", f"{top} * 2^(-i / 2^{precision.score_fraction})", exp2_table(precision.score_fraction, top)
        ),
        _table(
            "LOGIT_EXP2", f"65535 * 2^(-i / 2^{precision.logit_fraction})", exp2_table(precision.logit_fraction, 65535)
        ),
        _table(
            "DELTA", f"ReLU - activation ({', '.join(activations)}) at multiples of 2^-{precision.delta_step}", delta
        ),
        Table(
            "DELTA_SLOPE",
            "differences of DELTA",
            tuple(slope.tolist()),
            int(np.abs(slope).max()).bit_length() + 1,
            True,
        ),
        *(scores if sigmoids else ()),
    )


def _table(name: str, comment: str, values: IntArray) -> Table:
    return Table(name, comment, tuple(values.tolist()), max(int(values.max()).bit_length(), 1))
