"""Route: the gates of all tasks on the fine value, one scale a task."""

from __future__ import annotations

import math

import numpy as np

from moehls.integer.operations import Format, IntegerRoute
from moehls.network.operations import Route
from moehls.quantize.builder import Builder, flat, narrow
from moehls.quantize.fixed_point import factor, rounded
from moehls.quantize.norm import fine_name
from moehls.quantize.weights import round_weights, second_moments

_CLIPS = np.arange(1.0, 0.45, -0.05)


def convert_route(route: Route, builder: Builder) -> IntegerRoute:
    """The scale with the least error of the logits; the bias meets the mean logits of the float network."""
    precision = builder.precision
    fine = fine_name(route.input)
    grid = builder.grids[fine]
    integers = builder.data.integer(fine)
    real = builder.data.real(route.input)
    weights, biases, multipliers, shifts = [], [], [], []
    for task in range(len(route.weight)):
        runs = builder.data.tasks == task
        mean, covariance = second_moments(flat(integers[runs]))
        weight, bias = route.weight[task].astype(np.float64), route.bias[task].astype(np.float64)
        scaled = weight * grid.scale
        target = (flat(real[runs]) @ weight.T + bias).mean(axis=0)
        unit = 1 / (math.log2(math.e) * 2**precision.logit_fraction)
        best = None
        for clip in _CLIPS:
            chosen = factor(clip * np.abs(scaled).max() / builder.weight_limit / unit, precision.multiplier_bits)
            step = float(chosen.value) * unit
            rounded_weight = round_weights(scaled, np.full(len(scaled), step), covariance, builder.weight_limit)
            difference = rounded_weight * step - scaled
            error = float(np.einsum("oi,ij,oj->", difference, covariance, difference))
            logits = rounded((target - rounded_weight @ mean * step) / step)
            peak = np.abs(logits) + np.abs(rounded_weight).sum(axis=1) * (1 << (precision.fine_bits - 1))
            fits = bool((peak < 1 << (precision.accumulator_bits - 1)).all())
            if fits and (best is None or error < best[0] * (1 - 1e-9)):
                best = (error, rounded_weight, logits, chosen)
        assert best is not None
        weights.append(best[1])
        biases.append(best[2])
        multipliers.append(best[3].multiplier)
        shifts.append(best[3].shift)
    one = np.full(1, 2.0**-precision.gate_fraction)
    builder.formats[route.output] = Format("routing", precision.gate_fraction + 1, False, one, np.zeros(1))
    return IntegerRoute(
        route.name,
        fine,
        route.output,
        narrow(np.stack(weights), precision),
        np.stack(biases),
        np.stack(multipliers),
        np.stack(shifts),
        route.k,
        route.normalisation,
    )
