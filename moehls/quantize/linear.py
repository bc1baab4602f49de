"""Linear, with each of its epilogues."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moehls.integer.operations import (
    AddResidual,
    Epilogue,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerLinear,
    Raw,
    RealArray,
    Requantise,
    Scaling,
    Widen,
)
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table
from moehls.network.operations import ActivationForm, Linear
from moehls.quantize.attention import plan_attention
from moehls.quantize.builder import Builder, Rows, flat, quantise_rows
from moehls.quantize.calibrate import activation as activation_real
from moehls.quantize.fixed_point import Grid, significant
from moehls.quantize.given import given_activation, given_multipliers, given_steps
from moehls.quantize.norm import fine_name
from moehls.quantize.ranges import ACTIVATED, PROJECTED, balanced_steps, clipped_range
from moehls.quantize.steps import (
    AttentionInputStep,
    GatedStep,
    GeluStep,
    OutputStep,
    ResidualStep,
    StreamStep,
    UpStep,
    WideStep,
)

_LEAST_STEP = 1e-3
"""of a channel of the other branch of a gated MLP, as a share of the largest of its tensor"""


def convert_attention_input(step: AttentionInputStep, builder: Builder) -> IntegerLinear:
    """Queries, keys or values, on the grids chosen for the whole attention."""
    plan_attention(step.attention, builder)
    grid = builder.grids[step.linear.output]
    rows = _rows(step.linear, builder, grid.scale, builder.target(step.linear.output), grid.offset)
    return _integer(step.linear, step.linear.output, rows, Requantise(), builder)


_WIDE_HEADROOM = 1.3


def convert_wide(step: WideStep, builder: Builder) -> IntegerLinear:
    """One scale, as a norm takes it, with room for what other images bring."""
    target = builder.target(step.linear.output)
    top = (1 << (builder.precision.residual_bits - 1)) - 1
    unit = float(significant(max(_WIDE_HEADROOM * float(np.abs(target).max()) / top, 1e-12)))
    grid = Grid(np.full(target.shape[1], unit), np.zeros(target.shape[1]))
    rows = _rows(step.linear, builder, grid.scale, target)
    builder.add(step.linear.output, "residual", builder.precision.residual_bits, True, grid)
    return _integer(step.linear, step.linear.output, rows, Widen(), builder)


def convert_stream(step: StreamStep, builder: Builder) -> IntegerLinear:
    """The stream goes on from the norm's fine value, which has the bits that an operand lacks.

    Where constant rows join it the bias is not moved to meet the mean: tokens that are constants would move with the patches.
    """
    linear = replace(step.linear, input=fine_name(step.linear.input))
    unit = np.full(len(linear.bias), builder.residual)
    target = None if step.residual else builder.target(linear.output)
    rows = _rows(linear, builder, unit, target, largest=1 << (builder.precision.fine_bits - 1))
    builder.add_residual(step.output, len(unit))
    epilogue = AddResidual(step.residual) if step.residual else Widen()
    return _integer(linear, step.output, rows, epilogue, builder)


def convert_residual(step: ResidualStep, builder: Builder) -> IntegerLinear:
    """The branch is to bring the integer residual, with its errors, to the float one, on the mean."""
    unit = np.full(len(step.linear.bias), builder.residual)
    target = builder.target(step.output) - flat(builder.data.integer(step.residual)) * builder.residual
    rows = _rows(step.linear, builder, unit, target)
    builder.add_residual(step.output, len(unit))
    return _integer(step.linear, step.output, rows, AddResidual(step.residual), builder)


def convert_output(step: OutputStep, builder: Builder) -> IntegerLinear:
    """The accumulator is the output, in the scale of the weights."""
    name = step.linear.output
    rows = _rows(step.linear, builder, np.ones(len(step.linear.bias)), builder.target(name))
    grid = Grid(rows.step, np.zeros_like(rows.step))
    builder.add(name, "raw", builder.precision.accumulator_bits, True, grid)
    one, zero = np.ones_like(rows.scaling.bias), np.zeros_like(rows.scaling.bias)
    unscaled = Rows(rows.weight, rows.step, Scaling(rows.scaling.bias, one, zero))
    return _integer(step.linear, name, unscaled, Raw(), builder)


def convert_gelu(step: GeluStep, builder: Builder) -> IntegerLinear:
    """The second multiplier puts each channel on its own grid, undone by the matrices that read it."""
    precision, form = builder.precision, step.gelu.form
    unit = np.full(len(step.linear.bias), 2.0**-precision.gelu_fraction)
    rows = _rows(step.linear, builder, unit, builder.target(step.linear.output))
    given = builder.given.get(step.gelu.output)
    if given is None:
        wanted = gelu_steps(builder.target(step.linear.output), builder.readers(step.gelu.output), form, precision)
        epilogue, grid = gelu_grid(wanted, form, precision)
    else:
        epilogue, grid = given_activation(given, step.gelu.output, form, precision)
    epilogue = replace(epilogue, form=builder.form(form))
    builder.add(step.gelu.output, "operand", precision.activation_bits, False, grid)
    return _integer(step.linear, step.gelu.output, rows, epilogue, builder)


def convert_up(step: UpStep, builder: Builder) -> IntegerLinear:
    """The other branch of a gated MLP: zero is zero, so that products need no correction."""
    name = step.linear.output
    given = builder.given.get(name)
    scale = up_steps(builder.target(name), builder.precision)
    if given is not None:
        scale = given_steps(given, name, builder.precision)
    builder.add(name, "operand", builder.precision.activation_bits, True, Grid(scale, np.zeros_like(scale)))
    rows = _rows(step.linear, builder, scale, builder.target(name))
    return _integer(step.linear, name, rows, Requantise(), builder)


def convert_gated(step: GatedStep, builder: Builder) -> IntegerLinear:
    """As for GELU, the second multiplier puts each channel on its own grid."""
    precision = builder.precision
    unit = np.full(len(step.linear.bias), 2.0**-precision.gelu_fraction)
    hidden, up = builder.target(step.linear.output), builder.target(step.up)
    rows = _rows(step.linear, builder, unit, hidden)
    given = builder.given.get(step.output)
    if given is None:
        wanted = gated_steps(hidden, up, builder.readers(step.output), step.activation.form, precision)
    else:
        wanted = given_steps(given, step.output, precision)
    multiplier, shift, scale = gated_grid(wanted, builder.grids[step.up].scale, precision, given is not None)
    builder.add(step.output, "operand", precision.activation_bits, True, Grid(scale, np.zeros_like(scale)))
    epilogue = GatedRequantise(step.up, multiplier, shift, builder.form(step.activation.form))
    return _integer(step.linear, step.output, rows, epilogue, builder)


def up_steps(up: RealArray, precision: Precision) -> RealArray:
    """Steps `[channels]` of the signed operand for values `[rows, channels]` around zero."""
    levels = (1 << precision.activation_bits) - 1
    _, high = clipped_range(PROJECTED.of(np.concatenate([up, -up])), PROJECTED.shares, levels)
    steps = 2 * high / levels
    return significant(np.maximum(steps, max(float(steps.max()) * _LEAST_STEP, 1e-9)))


def gated_steps(
    hidden: RealArray, up: RealArray, matrices: list[RealArray], form: ActivationForm, precision: Precision
) -> RealArray:
    """Steps `[channels]` of the signed product of the activation of `hidden` `[rows, channels]` and `up`."""
    levels = (1 << precision.activation_bits) - 1
    futures = [
        np.concatenate([product, -product])
        for product in (
            activation_real(x, form) * y for x, y in zip(ACTIVATED.of(hidden), ACTIVATED.of(up), strict=True)
        )
    ]
    _, high = clipped_range(futures, ACTIVATED.shares, levels)
    deviation = futures[0].std(axis=0)
    return balanced_steps(2 * high / levels, deviation, matrices, (1 << (precision.weight_bits - 1)) - 1)


def gated_grid(steps: RealArray, up: RealArray, precision: Precision, given: bool) -> tuple[IntArray, int, RealArray]:
    """Second multipliers and shift nearest to `steps` `[…, channels]`, `up` the steps of the other operand, and the scale.

    `given`: the steps are the graph's, and are kept as near as they can be; else they are the least.
    """
    ratio = np.ldexp(steps / up, precision.delta_fraction)
    multiplier, shift = (given_multipliers if given else _second_multipliers)(ratio, precision)
    return multiplier, shift, up * 2.0 ** (shift - precision.delta_fraction) / multiplier


def gelu_steps(hidden: RealArray, matrices: list[RealArray], form: ActivationForm, precision: Precision) -> RealArray:
    """Steps `[channels]` of the unsigned operand for GELU inputs `[rows, channels]`."""
    levels = (1 << precision.activation_bits) - 1
    lowest = (
        float(delta_table(form, precision.delta_fraction, precision.delta_step).max()) / 2**precision.delta_fraction
    )
    futures = [activation_real(x, form) for x in ACTIVATED.of(hidden)]
    _, high = clipped_range(futures, ACTIVATED.shares, levels)
    least = np.maximum(high + lowest, lowest / 2) / levels
    return balanced_steps(least, futures[0].std(axis=0), matrices, (1 << (precision.weight_bits - 1)) - 1)


def gelu_grid(
    steps: RealArray, form: ActivationForm, precision: Precision, given: bool = False
) -> tuple[GeluRequantise, Grid]:
    """The second multipliers nearest to `steps` `[…, channels]` and the grid that they define; `given` as in `gated_grid`.

    One shift holds for the tensor: the widest channel has a multiplier of 16 … 31, the finest at most 255.
    """
    offset = int(delta_table(form, precision.delta_fraction, precision.delta_step).max())
    ratio = np.ldexp(steps, precision.delta_fraction)
    multiplier, shift = (given_multipliers if given else _second_multipliers)(ratio, precision)
    scale = 2.0 ** (shift - precision.delta_fraction) / multiplier
    grid = Grid(scale, offset / 2.0**precision.delta_fraction / scale)
    return GeluRequantise(multiplier, shift, offset), grid


def _second_multipliers(ratio: RealArray, precision: Precision) -> tuple[IntArray, int]:
    """`multiplier · 2^-shift ≤ 1 / ratio`, with one shift."""
    _, exponent = np.frexp(float(ratio.max()))
    shift = int(exponent) + 4
    largest = (1 << precision.second_multiplier_bits) - 1
    multiplier: IntArray = np.clip(np.floor(np.ldexp(1 / ratio, shift)), 1, largest).astype(np.int64)
    return multiplier, shift


def _rows(
    linear: Linear,
    builder: Builder,
    unit: RealArray,
    target: RealArray | None,
    offset: RealArray | float = 0.0,
    largest: int | None = None,
) -> Rows:
    return quantise_rows(
        builder.weight(linear),
        builder.bias(linear),
        builder.grids[linear.input],
        flat(builder.data.integer(linear.input)),
        unit,
        largest or (1 << builder.precision.activation_bits) - 1,
        builder.precision,
        offset,
        None if linear.input in builder.given else target,
    )


def _integer(linear: Linear, output: str, rows: Rows, epilogue: Epilogue, builder: Builder) -> IntegerLinear:
    weight = rows.weight
    return IntegerLinear(linear.name, linear.input, output, weight, rows.scaling, epilogue)
