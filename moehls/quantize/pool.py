"""Mean pooling: of the residual on one finer scale, of a LayerNorm's output on a grid a channel."""

from __future__ import annotations

import numpy as np

from moehls.integer.operations import IntegerPool, Scaling
from moehls.quantize.builder import Builder
from moehls.quantize.fixed_point import Grid, factor, rounded, significant
from moehls.quantize.given import signed_grid
from moehls.quantize.norm import fine_name
from moehls.quantize.ranges import NORMALISED, balanced_steps, clipped_range
from moehls.quantize.steps import PoolStep

_HEADROOM = 2.0
"""of a mean over the residual: tokens of other images may agree more"""


def convert_pool(step: PoolStep, builder: Builder) -> IntegerPool:
    """A mean is smaller than its tokens, so its unit is finer."""
    mean, precision = step.mean, builder.precision
    count = mean.stop - mean.start
    x = builder.target(mean.output)
    source = fine_name(mean.input) if step.of_norm else mean.input
    grid = builder.grids[source]
    if step.of_norm:
        levels = (1 << precision.activation_bits) - 1
        low, high = clipped_range(NORMALISED.of(x), NORMALISED.shares, levels)
        wanted = balanced_steps(
            np.maximum((high - low) / levels, grid.scale * 2.0**-8),
            x.std(axis=0),
            builder.readers(mean.output),
            builder.weight_limit,
        )
        given = builder.given.get(mean.output)
        own = None if given is None else signed_grid(given, mean.output, precision)
        wanted = wanted if own is None else own.scale
    else:
        top = (1 << (precision.residual_bits - 1)) - 1
        wanted = np.full(x.shape[1], max(_HEADROOM * float(np.abs(x).max()) / top, builder.residual * 2.0**-8))
    chosen = factor(grid.scale / count / significant(wanted), precision.multiplier_bits)
    scale = grid.scale / count / chosen.value
    if step.of_norm:
        if own is not None:
            bias, scale, offset = rounded(own.offset / chosen.value - grid.offset * count), own.scale, own.offset
        else:  # the middle of the range becomes the integer 0
            bias = rounded(-((low + high) / 2 / grid.scale + grid.offset) * count)
            offset = (grid.offset * count + bias) * chosen.value
        builder.add(mean.output, "operand", precision.activation_bits, True, Grid(scale, offset))
    else:
        bias = np.zeros(x.shape[1], np.int64)
        builder.add(mean.output, "residual", precision.residual_bits, True, Grid(scale, np.zeros_like(scale)))
    return IntegerPool(
        mean.name,
        source,
        mean.output,
        step.of_norm,
        mean.start,
        mean.stop,
        Scaling(bias, chosen.multiplier, chosen.shift),
    )
