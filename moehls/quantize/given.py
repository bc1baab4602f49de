"""Scales and zero points that a quantised graph gives: taken over as they are, or refused where the machine cannot hold them.

In go the lattices of the network, out come grids of the machine's operands. An operand then has the graph's scale, and its
integers are the graph's, shifted by a constant. The machine saturates where the graph does or beyond.
"""

from __future__ import annotations

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import GeluRequantise, IntArray, RealArray
from moehls.integer.precision import Precision
from moehls.integer.tables import delta_table
from moehls.network.operations import (
    Activation,
    ActivationForm,
    Attention,
    Experts,
    Lattice,
    LayerNorm,
    Linear,
    MeanTokens,
    Multiply,
    Network,
    of_experts,
)
from moehls.quantize.fixed_point import Grid, rounded

_CUT = 2.0**-5
"""share of the integers that may saturate at one end so that a scale stays as it is"""
_NEAR = 2.0**-7
"""largest relative difference of an activation's scale from the graph's; a multiplier of 128 … 255 makes up to 2^-8"""


def signed_grid(lattice: Lattice, what: str, precision: Precision) -> Grid:
    """The grid of a signed operand; unsigned integers of b bits are shifted by `2^(b-1)`.

    Raises:
        MoehlsError: the graph's integers are wider than the machine's.
    """
    if lattice.bits > precision.activation_bits:
        raise MoehlsError(
            f"{what}: the graph quantises it to {lattice.bits} bits, {precision.name} has {precision.activation_bits}; "
            "compile with --precision w16a16"
        )
    shift = 0.0 if lattice.signed else 2.0 ** (lattice.bits - 1)
    return Grid(lattice.scale.astype(np.float64), lattice.zero.astype(np.float64) - shift)


def centred_grid(lattice: Lattice, what: str, precision: Precision) -> Grid:
    """The grid of an operand whose zero is the integer 0: an offset of a query would reach the scores through every key.

    Where the graph has another zero point and there are no bits to spare, the integers at one end saturate; where these would be
    too many, all scales are widened until none does.

    Raises:
        MoehlsError: the graph's integers are wider than the machine's.
    """
    grid = signed_grid(lattice, what, precision)
    half = 2.0 ** (precision.activation_bits - 1)
    beyond = float(np.abs(grid.offset).max()) + 2.0 ** (lattice.bits - 1) - half
    widened = 1.0 if beyond <= _CUT * 2 * half else 1.0 + beyond / half
    return Grid(grid.scale * widened, np.zeros_like(grid.offset))


def check_scores(query: Grid, key: Grid, attention: Attention) -> None:
    """One factor makes scores of the products of a head.

    Raises:
        MoehlsError: the product of the scales of query and key differs from channel to channel of a head.
    """
    product = (query.scale * key.scale).reshape(attention.heads, -1)
    if not np.allclose(product, product[:, :1], rtol=1e-6, atol=0):
        raise MoehlsError(
            f"{attention.name}: the scales of query and key, channel by channel, have different products within a head; "
            "quantise queries and keys with one scale a tensor"
        )


def pixel_lattice(lattice: Lattice, channels: int, precision: Precision) -> tuple[RealArray, RealArray]:
    """Scale and offset of the unsigned pixels, one an image channel.

    Raises:
        MoehlsError: wider integers than the machine's, or as many scales as there are no channels.
    """
    grid = signed_grid(lattice, "the image", precision)
    if grid.scale.size not in (1, channels):
        raise MoehlsError(f"the image: {grid.scale.size} scales for {channels} channels; quantise it with one scale")
    middle = 2.0 ** (lattice.bits - 1)
    scale, offset = (np.broadcast_to(array, channels).copy() for array in (grid.scale, grid.offset + middle))
    return scale, offset


def given_activation(
    lattice: Lattice, what: str, form: ActivationForm, precision: Precision
) -> tuple[GeluRequantise, Grid]:
    """The second multipliers nearest to the graph's scales, the offset that puts zero on its integer, and the grid that results.

    Integers below the function's least value are left out, so that the offset stays below 1. The scale is the graph's but for
    the second multiplier's few bits; the grid holds what comes out.

    Raises:
        MoehlsError: wider integers than the machine's, or channels that one shift and one offset cannot serve.
    """
    grid = signed_grid(lattice, what, precision)
    zero = grid.offset + 2.0 ** (lattice.bits - 1)
    unit = 2.0**-precision.delta_fraction
    lowest = float(delta_table(form, precision.delta_fraction, precision.delta_step).max()) * unit
    below = np.minimum(zero, np.floor(lowest / grid.scale) + 1) * grid.scale
    largest = (1 << precision.second_multiplier_bits) - 1
    shift = int(np.floor(np.log2(largest * grid.scale.min() / unit)))
    multiplier = np.clip(rounded(2.0**shift * unit / grid.scale), 1, largest)
    scale = np.ldexp(unit, shift) / multiplier
    offset = int(rounded(below[0] / unit))
    fits = np.allclose(below, below[0], rtol=1e-6, atol=0) and np.allclose(scale, grid.scale, rtol=_NEAR, atol=0)
    if not (fits and 0 <= shift < 64 and 0 <= offset < 1 << precision.delta_fraction):
        raise MoehlsError(
            f"{what}: scales from {grid.scale.min():.3g} to {grid.scale.max():.3g} with their zero points do not fit an "
            "activation of the machine: it has one offset and multipliers of 8 bits under one shift; quantise with one scale"
        )
    return GeluRequantise(multiplier, shift, offset), Grid(scale, offset * unit / scale)


def given_steps(lattice: Lattice, what: str, precision: Precision) -> RealArray:
    """Steps of the other branch of a gated MLP or of a gated product, whose zero is the integer 0.

    Raises:
        MoehlsError: wider integers than the machine's.
    """
    return centred_grid(lattice, what, precision).scale


def given_multipliers(ratio: RealArray, precision: Precision) -> tuple[IntArray, int]:
    """Second multipliers of at most 8 bits and their one shift, `multiplier · 2^-shift` nearest to `1 / ratio`.

    The least ratio gets 128 … 255, so that it is kept to 0.4 %, and one 8 times as large to 3 %.
    """
    largest = (1 << precision.second_multiplier_bits) - 1
    shift = int(np.floor(np.log2(largest * ratio.min())))
    return np.clip(rounded(np.ldexp(1 / ratio, shift)), 1, largest), shift


def left_to_calibration(network: Network) -> tuple[str, ...]:
    """The operands for which a graph that quantises others gives no scale."""
    if not network.lattices:
        return ()
    found = [] if network.input.name in network.lattices else [network.input.name]
    inputs = {name for o in network.operations if isinstance(o, Attention) for name in (o.query, o.key, o.value)}
    gated = {name for o in network.operations if isinstance(o, Multiply) for name in (o.left, o.right)}
    norms = {o.output for o in network.operations if isinstance(o, LayerNorm)}
    for operation in network.operations:
        of_norm = isinstance(operation, MeanTokens) and operation.input in norms
        of_attention = isinstance(operation, Linear) and operation.output in inputs
        activated = isinstance(operation, Activation) and operation.output not in gated
        operand = of_norm or of_attention or activated or isinstance(operation, (LayerNorm, Attention, Multiply))
        if operand and operation.output not in network.lattices:
            found.append(operation.name)
        if isinstance(operation, Experts) and of_experts(operation.output, "hidden") not in network.lattices:
            found.append(f"the hidden layers of {operation.name}")
    return tuple(found)
