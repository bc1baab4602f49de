"""Embed: the pixel lattice, the patch matrix and the constant rows."""

from __future__ import annotations

import numpy as np

from moehls.integer.operations import IntegerEmbed, IntegerInput, RealArray
from moehls.integer.precision import Precision
from moehls.network.operations import Embed, FloatArray, Lattice, NetworkInput
from moehls.quantize.builder import Builder, flat, quantise_rows
from moehls.quantize.fixed_point import Grid, rounded, significant
from moehls.quantize.given import pixel_lattice

_PIXEL_LEVELS = 255
"""images are made of 8-bit pixels, whatever the precision"""


def integer_input(
    source: NetworkInput, embed: Embed, images: FloatArray, precision: Precision, given: Lattice | None = None
) -> IntegerInput:
    """The pixel grid of each image channel: the graph's, or the 8-bit lattice the images lie on, where they lie on one."""
    _, _, rows, columns = embed.weight.shape
    if given is None and source.type == "uint8":
        given = Lattice(np.ones(1), np.zeros(1), 8, False)
    if given is not None:
        scale, offset = pixel_lattice(given, source.shape[0], precision)
        return _input(source, (rows, columns), scale, offset)
    lattices = [_lattice(images[:, c].reshape(-1).astype(np.float64), precision) for c in range(source.shape[0])]
    scale, offset = (np.array(column) for column in zip(*lattices, strict=True))
    return _input(source, (rows, columns), scale, offset)


def _input(source: NetworkInput, patch: tuple[int, int], scale: RealArray, offset: RealArray) -> IntegerInput:
    return IntegerInput(source.name, source.shape, patch, scale, offset, source.given, source.type, source.steps)


def _lattice(pixels: RealArray, precision: Precision) -> tuple[float, float]:
    """`scale, offset` with `level = pixel / scale + offset`, an integer of 0 … 255 for every pixel where possible."""
    values = np.unique(pixels)
    low, high = float(values[0]), float(values[-1])
    if 1 < len(values) <= _PIXEL_LEVELS + 1:
        tolerance = 1e-6 * max(abs(low), abs(high))
        for parts in range(1, 9):
            levels: RealArray = np.rint((values - low) / (float(np.diff(values).min()) / parts))
            if levels[-1] > _PIXEL_LEVELS:
                break
            step = (high - low) / float(levels[-1])
            if np.abs(low + levels * step - values).max() <= tolerance:
                return _anchored(low, high, step)
    levels_used = (1 << precision.activation_bits) - 1
    step = float(significant(max(1.05 * (high - low), 1e-3 * abs(high), 1e-6) / levels_used))
    return step, float(rounded(levels_used / 2 - (low + high) / 2 / step))


def _anchored(low: float, high: float, step: float) -> tuple[float, float]:
    """The lattice with the real 0 on a level, or else at the place of its level among 0 … 255, the image in the middle.

    The step is `1/k` for an integer k where it lies that near.
    """
    count = float(rounded(1 / step))
    step = 1 / count if abs(1 / step - count) < 1e-4 * count else float(significant(step))
    offset = -low / step
    whole = float(rounded(offset))
    fraction = 0.0 if abs(offset - whole) < 1e-3 else offset - whole
    used = float(rounded((high - low) / step))
    first = min(max(-whole, 0.0), _PIXEL_LEVELS - used) if fraction == 0 else float((_PIXEL_LEVELS - used) // 2)
    return step, whole + fraction + first


def constant_range(embed: Embed, source: IntegerInput) -> float:
    """Largest magnitude of the rows that are added to the products of the pixel integers."""
    fixed = _matrix(embed) @ _pixel_grid(embed, source).base + embed.bias
    return float(np.abs(fixed + embed.position).max())


def convert_embed(embed: Embed, source: IntegerInput, builder: Builder) -> IntegerEmbed:
    """The embedding of pixels already given to the calibration runs; the constant rows meet the mean embedding."""
    precision, channels, prefix = builder.precision, embed.weight.shape[0], len(embed.prefix)
    pixels = builder.data.integer(embed.input)
    grid = _pixel_grid(embed, source)
    weight = _matrix(embed)
    rows = quantise_rows(
        weight,
        -(weight @ grid.base),  # no bias in the accumulator: a row without a patch must give 0
        grid,
        flat(pixels),
        np.full(channels, builder.residual),
        (1 << precision.activation_bits) - 1,
        precision,
    )
    constant = embed.position.astype(np.float64)
    constant[:prefix] += embed.prefix
    target = builder.data.real(embed.output).mean(axis=0)[prefix:]
    if embed.input in builder.given:
        constant[prefix:] += embed.bias + weight @ grid.base
    else:
        constant[prefix:] = target - pixels.mean(axis=0) @ rows.weight.T * rows.step
    limit = (1 << (precision.residual_bits - 1)) - 1
    builder.add_residual(embed.output, channels)
    return IntegerEmbed(
        embed.name,
        embed.input,
        embed.output,
        rows.weight,
        rows.scaling,
        np.clip(rounded(constant / builder.residual), -limit, limit),
        prefix,
    )


def _matrix(embed: Embed) -> RealArray:
    """`[channels, pixels a patch]`."""
    return embed.weight.reshape(len(embed.weight), -1).astype(np.float64)


def _pixel_grid(embed: Embed, source: IntegerInput) -> Grid:
    """The grid of a patch, image channel by image channel."""
    area = embed.weight.shape[2] * embed.weight.shape[3]
    return Grid(np.repeat(source.scale, area), np.repeat(source.offset, area))
