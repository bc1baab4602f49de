"""Embed: unsigned pixels of the patches to the residual stream."""

from __future__ import annotations

from moehls.integer.arithmetic import requantise, sat
from moehls.integer.operations import IntArray, IntegerEmbed
from moehls.integer.precision import Precision
from moehls.reference.product import product


def embed(operation: IntegerEmbed, pixels: IntArray, precision: Precision) -> IntArray:
    """`[patches, pixels a patch]` to the residual `[tokens, channels]`."""
    scaling = operation.scaling
    patches = requantise(product(pixels, operation.weight), scaling.bias, scaling.multiplier, scaling.shift, precision)
    residual = operation.initial.copy()
    residual[operation.prefix :] += patches
    return sat(residual, precision.residual_bits)
