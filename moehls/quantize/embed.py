"""Embed: the pixel lattice, the patch matrix and the constant rows."""

from __future__ import annotations

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntegerEmbed, IntegerInput, RealArray
from moehls.integer.precision import Precision
from moehls.network.operations import Embed, FloatArray, NetworkInput
from moehls.quantize.builder import Builder, flat, narrow, quantise_rows
from moehls.quantize.fixed_point import Grid, rounded, significant

_PIXEL_LEVELS = 255
"""images are made of 8-bit pixels, whatever the precision"""


def integer_input(source: NetworkInput, embed: Embed, images: FloatArray, precision: Precision) -> IntegerInput:
    """The pixel grid of each image channel: the 8-bit lattice the images lie on, where they lie on one."""
    lattices = [_lattice(images[:, c].reshape(-1).astype(np.float64), precision) for c in range(source.shape[0])]
    scale, offset = (np.array(column) for column in zip(*lattices, strict=True))
    _, _, rows, columns = embed.weight.shape
    return IntegerInput(source.name, source.shape, (rows, columns), scale, offset)


def _lattice(pixels: RealArray, precision: Precision) -> tuple[float, float]:
    """`scale, offset` with `level = pixel / scale + offset`, an integer of 0 … 255 for every pixel where possible."""
    values = np.unique(pixels)
    low, high = float(values[0]), float(values[-1])
    span = max(high - low, abs(high), 1e-6)
    if 1 < len(values) <= _PIXEL_LEVELS + 1:
        tolerance = 1e-6 * max(abs(low), abs(high))
        smallest = float(np.diff(values).min())
        for parts in range(1, 9):
            step = smallest / parts
            levels = np.rint((values - low) / step)
            if levels[-1] > _PIXEL_LEVELS:
                break
            step = (high - low) / levels[-1]
            if np.abs(low + levels * step - values).max() <= tolerance:
                return _anchored(low, high, step)
    levels = (1 << precision.activation_bits) - 1
    step = float(significant(1.05 * span / levels)) if high > low else float(significant(span / levels))
    return step, float(rounded(-(low + high) / 2 / step + levels / 2))


def _anchored(low: float, high: float, step: float) -> tuple[float, float]:
    """The lattice with the real 0 on a level, or else at the place of its level among 0 … 255, the image in the middle.

    The step is `1/k` for an integer k where it lies that near.
    """
    count = float(rounded(1 / step))
    if abs(1 / step - count) < 1e-4 * count:
        step = 1 / count
    else:
        step = float(significant(step))
    offset = -low / step
    whole = float(rounded(offset))
    fraction = 0.0 if abs(offset - whole) < 1e-3 else offset - whole
    used = float(rounded((high - low) / step))
    first = min(max(-whole, 0.0), _PIXEL_LEVELS - used) if fraction == 0 else float((_PIXEL_LEVELS - used) // 2)
    return step, whole + fraction + first


def convert_embed(embed: Embed, source: IntegerInput, builder: Builder) -> IntegerEmbed:
    """The embedding of pixels already given to the calibration runs."""
    precision, channels = builder.precision, embed.weight.shape[0]
    area = embed.weight.shape[2] * embed.weight.shape[3]
    prefix = len(embed.prefix)
    grid = Grid(np.repeat(source.scale, area), np.repeat(source.offset, area))
    weight = embed.weight.reshape(channels, -1).astype(np.float64)
    pixels = flat(builder.data.integer(embed.input))
    unit = np.full(channels, builder.residual)
    largest = (1 << precision.activation_bits) - 1
    rows = quantise_rows(
        weight, -(weight @ grid.base), grid, pixels, unit, largest, precision
    )  # no bias: a row without a patch must give 0
    target = builder.data.real(embed.output).mean(axis=0)
    patches = builder.data.integer(embed.input) @ rows.weight.T * rows.step
    constant = embed.position.astype(np.float64)
    constant[:prefix] += embed.prefix
    constant[prefix:] = target[prefix:] - patches.mean(axis=0)
    if (np.abs(constant) / builder.residual >= 1 << (precision.residual_bits - 1)).any():
        raise MoehlsError(
            f"{embed.name}: positions exceed the residual range; calibrate with images of the model's kind"
        )
    builder.add_residual(embed.output, channels)
    return IntegerEmbed(
        embed.name,
        embed.input,
        embed.output,
        narrow(rows.weight, precision),
        rows.scaling,
        rounded(constant / builder.residual),
        prefix,
    )
