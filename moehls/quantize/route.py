"""Route: the gates of all tasks on the fine value, one scale a task."""

from __future__ import annotations

import math

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import Format, IntArray, IntegerRoute, RealArray
from moehls.integer.validate import SELECTION_BITS
from moehls.network.operations import FloatArray, Route
from moehls.quantize.builder import Builder, flat, narrow
from moehls.quantize.fixed_point import Factor, Grid, factor, rounded
from moehls.quantize.norm import fine_name
from moehls.quantize.weights import compensation, round_weights, second_moments

_STEPS = (*np.arange(1.0, 0.45, -0.05), *(1.25**n for n in range(1, 40)))
"""candidates for a gate's step, as shares of the one at which nothing is clipped; larger ones only where those overflow"""


def convert_route(route: Route, builder: Builder) -> IntegerRoute:
    """Each task's gate is quantised on the tokens of that task."""
    fine, one = fine_name(route.input), 1 << builder.precision.gate_fraction
    integers, real = builder.data.integer(fine), builder.data.real(route.input)
    gates = []
    for task in range(len(route.weight)):
        runs = builder.data.tasks == task
        weight, bias = route.weight[task].astype(np.float64), route.bias[task].astype(np.float64)
        target = (flat(real[runs]) @ weight.T + bias).mean(axis=0)
        relative = route.score == "softmax"
        target -= target.mean() if relative else 0
        gates.append(_gate(weight, target, flat(integers[runs]), builder.grids[fine], builder, relative))
    builder.formats[route.output] = Format(
        "routing",
        builder.precision.gate_fraction + 1,
        False,
        np.array([2.0**-builder.precision.gate_fraction]),
        np.zeros(1),
    )
    weights, biases, factors = zip(*gates, strict=True)
    return IntegerRoute(
        route.name,
        fine,
        route.output,
        narrow(np.stack(weights), builder.precision),
        np.stack(biases),
        np.stack([f.multiplier for f in factors]),
        np.stack([f.shift for f in factors]),
        route.k,
        route.normalisation,
        min(max(round(route.threshold * one), 1), one - 1) if route.threshold > 0 else 0,
        route.renormalise,
        route.capacity,
        route.priority,
        route.score,
        route.group,
        route.kept_groups,
        route.pairs,
        None if route.selection is None else _selection(route.name, route.selection),
        route.room,
    )


def _selection(name: str, bias: FloatArray) -> IntArray:
    """In units of the sigmoids; the same number for all experts of a task changes nothing, so the middle of a task's is zero.

    Raises:
        MoehlsError: two of them differ by more than the machine adds.
    """
    wide = bias.astype(np.float64)
    middle = (wide.max(axis=1, keepdims=True) + wide.min(axis=1, keepdims=True)) / 2
    units = rounded((wide - middle) * 65535)
    if np.abs(units).max() >= 1 << SELECTION_BITS - 1:
        raise MoehlsError(
            f"{name}: its selection biases differ by {np.ptp(wide, axis=1).max():.4g}, at most {2**SELECTION_BITS // 65535} "
            "is possible; sigmoids lie between 0 and 1, so limit the biases to a few units before the export"
        )
    return units


def _gate(
    weight: RealArray, target: RealArray, integers: IntArray, grid: Grid, builder: Builder, relative: bool
) -> tuple[IntArray, IntArray, Factor]:
    """The integers of one gate and the factor to base-2 logits, with the least error of the logits.

    Args:
        weight: `[experts, channels]`.
        target: `[experts]`, mean logits to meet.
        integers: `[rows, channels]`, the fine value.
        grid: of the fine value.
        builder: what the conversions share.
        relative: whether the same number in all logits has no effect, as in a softmax.
    """
    precision, limit = builder.precision, builder.weight_limit
    mean, covariance = second_moments(integers)
    scaled = weight * grid.scale
    if relative:
        scaled = scaled - (scaled.max(axis=0) + scaled.min(axis=0)) / 2
    unit = 1 / (math.log2(math.e) * 2**precision.logit_fraction)
    room = 1 << (precision.accumulator_bits - 1)
    full = max(float(np.abs(scaled).max()) / limit, 4 * float(np.abs(target).max()) / room, unit * 2.0**-30)
    best: tuple[IntArray, IntArray, Factor] | None = None
    columns = compensation(covariance)
    least = np.inf
    for share in _STEPS:
        if share > 1 and best is not None:
            break
        chosen = factor(share * full / unit, precision.multiplier_bits)
        step = float(chosen.value) * unit
        candidate = round_weights(scaled, np.full(len(scaled), step), columns, limit)
        moved = candidate - candidate.mean(axis=0) if relative else candidate
        bias = rounded(target / step - moved @ mean)
        peak = np.abs(bias) + np.abs(candidate).sum(axis=1) * (1 << (precision.fine_bits - 1))
        difference = candidate * step - scaled
        if relative:
            difference -= difference.mean(axis=0)
        error = float(np.einsum("oi,ij,oj->", difference, covariance, difference))
        if (peak < room).all() and error < least * (1 - 1e-9):
            best, least = (candidate, bias, chosen), error
    assert best is not None, "the largest step leaves no weight, so nothing to overflow"
    return best
