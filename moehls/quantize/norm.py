"""LayerNorm and RMSNorm: gain and bias a channel that put the operand, and the fine value behind it, on their grids."""

from __future__ import annotations

import numpy as np

from moehls.integer.operations import IntegerNorm, RealArray, Scaling
from moehls.network.operations import Experts, Lattice, LayerNorm
from moehls.quantize.builder import Builder
from moehls.quantize.calibrate import FINE
from moehls.quantize.fixed_point import Grid, factor, rounded
from moehls.quantize.given import centred_grid, signed_grid
from moehls.quantize.ranges import NORMALISED, balanced_steps, clipped_range
from moehls.quantize.steps import FineStep, NormStep, RowsStep

_GAIN_BITS = 15
_LARGEST_SHIFT = 15
"""keeps the bias, which has `shift` fraction bits below the fine value, within 32 bits"""


def fine_name(output: str) -> str:
    """Name of the fine value beside the operand `output`."""
    return output + FINE


def convert_norm(step: NormStep, builder: Builder) -> IntegerNorm:
    given = builder.given.get(step.output) or builder.given.get(step.norm.output)
    gain = np.ldexp(step.norm.weight.astype(np.float64), -builder.precision.norm_fraction)
    fine, scaling = _scaled(step.output, gain, step.norm.bias.astype(np.float64), given, builder)
    return IntegerNorm(
        step.norm.name if step.output == step.norm.output else step.output,
        step.source,
        fine,
        step.output,
        step.start,
        step.start + builder.data.real(step.output).shape[1],
        scaling,
        norm_epsilon(step.norm, float(builder.grids[step.source].scale[0])),
        step.norm.centred,
    )


def convert_rows(step: RowsStep, builder: Builder) -> IntegerNorm:
    """Rows of the residual on the grids that a norm's output would have."""
    select, unit = step.selection, builder.grids[step.selection.input].scale
    fine, scaling = _scaled(select.output, unit, np.zeros_like(unit), builder.given.get(select.output), builder)
    fields = (select.name, select.input, fine, select.output, select.start, select.stop, scaling)
    return IntegerNorm(*fields, epsilon=0, plain=True)


def _scaled(
    output: str, gain: RealArray, bias: RealArray, given: Lattice | None, builder: Builder
) -> tuple[str, Scaling]:
    """Name of the fine value and the gains and biases that put `gain · n + bias`, n integers, on the grids of `output`.

    The operand's steps are balanced against the matrices that read it; its offset is the middle of its range, or nothing where
    gates multiply it.
    """
    precision = builder.precision
    x = builder.target(output)
    levels = (1 << precision.activation_bits) - 1
    weighed = any(isinstance(reader, Experts) and reader.weigh_inputs for reader in builder.structure.readers[output])
    if weighed:
        x = np.concatenate([x, -x])
    low, high = clipped_range(NORMALISED.of(x), NORMALISED.shares, levels)
    operand_step = balanced_steps((high - low) / levels, x.std(axis=0), builder.readers(output), builder.weight_limit)
    kept = centred_grid if weighed else signed_grid
    grid = None if given is None else kept(given, output, precision)
    if grid is not None:
        operand_step = grid.scale
    fine_step = np.ldexp(operand_step, -precision.fine_shift)
    chosen = factor(np.maximum(np.abs(gain) / fine_step, 2.0**-_LARGEST_SHIFT), _GAIN_BITS, _LARGEST_SHIFT)
    scale = np.where(gain == 0, fine_step, np.abs(gain) / chosen.value) if grid is None else fine_step
    multiplier = np.sign(gain).astype(np.int64) * chosen.multiplier
    middle = -(low + high) / 2 / scale if grid is None else np.ldexp(grid.offset, precision.fine_shift)
    integer_bias = rounded(np.ldexp(bias / scale + middle, chosen.shift))
    offset = np.ldexp(integer_bias.astype(np.float64), -chosen.shift) - bias / scale if grid is None else middle
    fine = fine_name(output)
    builder.add(fine, "fine", precision.fine_bits, True, Grid(scale, offset))
    wide = 2.0**precision.fine_shift
    builder.add(output, "operand", precision.activation_bits, True, Grid(scale * wide, offset / wide))
    return fine, Scaling(integer_bias, multiplier, chosen.shift)


def norm_epsilon(norm: LayerNorm, unit: float) -> int:
    """The norm's epsilon for `D·S2 - S1²` of residual integers of `unit`."""
    return int(rounded(norm.epsilon * len(norm.weight) ** 2 / unit**2))


def norm_scaling(gain: RealArray, bias: RealArray, one: float, fine: Grid) -> Scaling:
    """Parameters that put `gain · n / one + bias`, n an integer, on the grid of a fine value, which stays as it is."""
    chosen = factor(np.maximum(np.abs(gain) / (fine.scale * one), 2.0**-_LARGEST_SHIFT), _GAIN_BITS, _LARGEST_SHIFT)
    integer_bias = rounded(np.ldexp(bias / fine.scale + fine.offset, chosen.shift))
    return Scaling(integer_bias, np.sign(gain).astype(np.int64) * chosen.multiplier, chosen.shift)


def convert_fine(step: FineStep, builder: Builder) -> IntegerNorm:
    """Both have 16 bits and one scale: the fine value is the residual."""
    rows, channels = builder.data.integer(step.source).shape[1:]
    one, zero = np.ones(channels, np.int64), np.zeros(channels, np.int64)
    grid, fine = builder.grids[step.source], fine_name(step.source)
    operand = step.source + ".operand"
    wide = 2.0**builder.precision.fine_shift
    builder.add(fine, "fine", builder.precision.fine_bits, True, grid)
    builder.add(
        operand, "operand", builder.precision.activation_bits, True, Grid(grid.scale * wide, grid.offset / wide)
    )
    scaling = Scaling(zero, one, zero)
    return IntegerNorm(fine, step.source, fine, operand, 0, rows, scaling, 0, plain=True)
