"""Constant rows, and the operands that an attention reads of a residual value or of a norm of it.

The grids are those that the attention plans for its queries, keys and values.
"""

from __future__ import annotations

import numpy as np

from moehls.integer.operations import IntegerConstant, IntegerNorm, Scaling
from moehls.quantize.attention import plan_attention
from moehls.quantize.builder import Builder, flat
from moehls.quantize.fixed_point import Grid, rounded, significant
from moehls.quantize.norm import fine_name, norm_epsilon, norm_scaling
from moehls.quantize.steps import ConstantStep, OperandStep

_HEADROOM = 1.3


def convert_constant(step: ConstantStep, builder: Builder) -> IntegerConstant:
    """Rows in the integers of an attention's operand, in the stream's unit, or in one for the largest sum that replaces them."""
    precision, rows = builder.precision, step.constant.rows.astype(np.float64)
    if step.attention is not None:
        plan_attention(step.attention, builder)
        own, limit = builder.grids[step.operand], 1 << (precision.activation_bits - 1)
        integers = np.clip(rounded(rows / own.scale + own.offset), -limit, limit - 1) << precision.fine_shift
        grid = Grid(np.ldexp(own.scale, -precision.fine_shift), np.ldexp(own.offset, precision.fine_shift))
    elif step.stream:
        top = (1 << (precision.residual_bits - 1)) - 1
        integers = np.clip(rounded(rows / builder.residual), -top, top)
        grid = Grid(np.full(rows.shape[1], builder.residual), np.zeros(rows.shape[1]))
    else:
        sums = [_HEADROOM * float(np.abs(builder.target(name)).max()) for name in step.sums]
        top = (1 << (precision.residual_bits - 1)) - 1
        unit = float(significant(max(float(np.abs(rows).max()), *sums, 1e-9) / top))
        integers = np.clip(rounded(rows / unit), -top, top)
        grid = Grid(np.full(rows.shape[1], unit), np.zeros(rows.shape[1]))
    builder.add(step.output, "residual", precision.residual_bits, True, grid)
    return IntegerConstant(step.output, step.output, integers)


def convert_operand(step: OperandStep, builder: Builder) -> IntegerNorm:
    """A norm with the gain that puts its output on the planned grid, or one that only scales."""
    precision, source = builder.precision, builder.grids[step.source]
    if step.norm is None and not step.constant:
        builder.least_steps[step.output] = float(source.scale[0])
    plan_attention(step.attention, builder)
    grid = builder.grids[step.output]
    heads = 1 if step.norm is None else step.norm.heads
    channels = len(grid.scale) // heads  # of a head: all have the same grid
    whole = Grid(np.ldexp(grid.scale, -precision.fine_shift), np.ldexp(grid.offset, precision.fine_shift))
    fine = Grid(whole.scale[:channels], whole.offset[:channels])
    if step.constant:  # the integers are the operand's
        zero = np.zeros(channels, np.int64)
        scaling = Scaling(zero, zero + 1, zero)
    elif step.norm is None:
        scaling = norm_scaling(source.scale, np.zeros(channels), 1.0, fine)
    else:
        gain, bias = step.norm.weight.astype(np.float64), step.norm.bias.astype(np.float64)
        scaling = norm_scaling(gain, bias, float(1 << precision.norm_fraction), fine)
    builder.add(fine_name(step.output), "fine", precision.fine_bits, True, whole)
    return IntegerNorm(
        step.output,
        step.source,
        fine_name(step.output),
        step.output,
        0,
        len(flat(builder.data.integer(step.source)[:1])),
        scaling,
        0 if step.norm is None else norm_epsilon(step.norm, float(source.scale[0])),
        step.norm is None or step.norm.centred,
        plain=step.norm is None,
        heads=heads,
    )
