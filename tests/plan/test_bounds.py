"""The bounds of the epilogue against the integer network they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moehls.integer.operations import (
    GeluRequantise,
    IntegerAttention,
    IntegerExperts,
    IntegerLinear,
    Raw,
    Scaling,
    WeightArray,
)
from moehls.integer.precision import W8A8, W16A16, Precision
from tests.plan.support import program_and_shape, small_network


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_every_sum_and_shift_is_within_the_bounds_and_some_reach_them(precision: Precision) -> None:
    network = small_network(precision)
    _, shape = program_and_shape(network, 3, 8)
    products: list[tuple[WeightArray, Scaling]] = []
    seconds: list[int] = []
    shifts: list[int] = []
    for op in network.operations:
        match op:
            case IntegerLinear(epilogue=Raw()):
                continue
            case IntegerLinear():
                products.append((op.weight, op.scaling))
                seconds += [op.epilogue.shift] if isinstance(op.epilogue, GeluRequantise) else []
            case IntegerExperts():
                scalings = zip((op.first_weight, op.second_weight), (op.first_scaling, op.second_scaling), strict=True)
                for weight, scaling in scalings:
                    products.append((weight.reshape(-1, weight.shape[-1]), scaling))
                seconds.append(op.gelu.shift)
            case IntegerAttention():
                shifts += op.score_shift.tolist()
                seconds += op.scaling.shift.tolist()
    shifts += [int(s) for _, scaling in products for s in scaling.shift.ravel()]
    assert shape.shift_low <= min(min(shifts), 16) and max(shifts) <= shape.shift_high
    assert (shape.second_shift_low, shape.second_shift_high) == (min(seconds), max(seconds))
    least = max(  # with the smallest of the inputs' ranges
        int((np.abs(w.astype(np.int64)).sum(axis=1) * (2 ** (precision.activation_bits - 1))).max())
        for w, _ in products
    )
    assert shape.scaled_bits > least.bit_length()
    assert shape.scaled_bits <= max(precision.requantised_bits, least.bit_length() + 4)


def test_a_larger_weight_and_a_larger_shift_widen_the_bounds() -> None:
    network = small_network()
    _, before = program_and_shape(network, 3, 8)
    index, op = next(
        (i, op)
        for i, op in enumerate(network.operations)
        if isinstance(op, IntegerLinear) and not isinstance(op.epilogue, Raw)
    )
    assert isinstance(op, IntegerLinear)
    bias = np.full_like(op.scaling.bias, 1 << 28)
    shift = np.full_like(op.scaling.shift, 47)
    wide = replace(op, scaling=replace(op.scaling, bias=bias, shift=shift))
    operations = (*network.operations[:index], wide, *network.operations[index + 1 :])
    _, after = program_and_shape(replace(network, operations=operations), 3, 8)
    assert after.scaled_bits >= 30 > before.scaled_bits
    assert after.shift_high == 47 > before.shift_high
