"""Attention: one grid for the scores of a head, grids a channel for queries, keys, values and the context.

What is free: any constant added to a key channel (softmax does not see it), any scale and offset of a value channel
(undone after), and the split of the score's scale between query and key, channel by channel.
"""

from __future__ import annotations

import math

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntegerAttention, RealArray, Scaling
from moehls.network.operations import Attention
from moehls.quantize.builder import Builder
from moehls.quantize.fixed_point import Grid, factor, rounded, significant
from moehls.quantize.given import centred_grid, check_scores, signed_grid
from moehls.quantize.ranges import CONTEXT, GATHERED, PROJECTED, balanced_steps, clipped_range
from moehls.quantize.score_bias import convert_bias, least_product


def plan_attention(attention: Attention, builder: Builder) -> None:
    """Choose the grids of queries, keys and values, once an attention."""
    if attention.query in builder.grids:
        return
    bits = builder.precision.activation_bits
    levels = (1 << bits) - 1
    if any(name in builder.given for name in (attention.query, attention.key)):
        for name, grid in zip((attention.query, attention.key), _given_scores(attention, builder), strict=True):
            builder.add(name, "operand", bits, True, grid)
        _plan_value(attention, builder, levels)
        return
    query, key = builder.target(attention.query), builder.target(attention.key)
    heads = attention.heads
    finest = least_product(attention, query, key, builder.precision)
    if {attention.query, attention.key} & builder.structure.tied:  # one grid for all heads, from the channels of all
        query, key = (x.reshape(-1, x.shape[1] // heads) for x in (query, key))
        heads = 1
    low, high = clipped_range(PROJECTED.of(key), PROJECTED.shares, levels)
    key_reach, key_centre = (high - low) / 2, (high + low) / 2
    low, high = clipped_range(PROJECTED.of(np.concatenate([query, -query])), PROJECTED.shares, levels)
    query_reach = high
    product = significant(np.maximum(_head_max(query_reach * key_reach, heads) / (levels / 2) ** 2, finest))
    chosen = factor(product * attention.scale * math.log2(math.e) * 2**builder.precision.score_fraction, 16)
    product = chosen.value / (attention.scale * math.log2(math.e) * 2**builder.precision.score_fraction)
    product = np.repeat(product, query.shape[1] // heads)
    even = np.sqrt(product)
    ideal = np.sqrt(np.maximum(query.std(axis=0), 1e-9) / np.maximum(key.std(axis=0), 1e-9))
    least = query_reach / (levels / 2) / even
    most = even / np.maximum(key_reach / (levels / 2), 1e-12)
    split = significant(np.clip(ideal, least, np.maximum(most, least)))
    key_scale = even / split
    for name, scale, offset in (
        (attention.query, even * split, np.zeros_like(even)),
        (attention.key, key_scale, significant(-key_centre / key_scale)),
    ):
        copies = attention.heads // heads
        builder.add(name, "operand", bits, True, Grid(np.tile(scale, copies), np.tile(offset, copies)))
    _plan_value(attention, builder, levels)


def _given_scores(attention: Attention, builder: Builder) -> tuple[Grid, Grid]:
    """Queries and keys on the graph's lattices; where it gives one of the two only, it cannot be kept."""
    missing = [name for name in (attention.query, attention.key) if name not in builder.given]
    if missing:
        raise MoehlsError(
            f"{attention.name}: the graph quantises one of queries and keys, but not {missing[0]}; quantise both or neither"
        )
    query, key = builder.given[attention.query], builder.given[attention.key]
    grids = (
        centred_grid(query, attention.query, builder.precision),
        signed_grid(key, attention.key, builder.precision),
    )
    check_scores(*grids, attention)
    return grids


def _plan_value(attention: Attention, builder: Builder, levels: int) -> None:
    bits = builder.precision.activation_bits
    if attention.value in builder.given:
        grid = signed_grid(builder.given[attention.value], attention.value, builder.precision)
        builder.add(attention.value, "operand", bits, True, grid)
        return
    value = builder.target(attention.value)
    low, high = clipped_range(PROJECTED.of(value), PROJECTED.shares, levels)
    scale = significant(np.maximum((high - low) / levels, builder.least_steps.get(attention.value, 1e-9)))
    builder.add(attention.value, "operand", bits, True, Grid(scale, significant(-(low + high) / 2 / scale)))


def convert_attention(attention: Attention, builder: Builder) -> IntegerAttention:
    """The context gets its own grid a channel, balanced against the projection."""
    precision = builder.precision
    levels = (1 << precision.activation_bits) - 1
    context = builder.target(attention.output)
    futures = [*CONTEXT.of(context), *GATHERED.of(builder.target(attention.value))]
    low, high = clipped_range(futures, CONTEXT.shares + GATHERED.shares, levels)
    least = np.maximum((high - low) / levels, 1e-9)
    wanted = balanced_steps(least, context.std(axis=0), builder.readers(attention.output), builder.weight_limit)
    given = None
    if attention.output in builder.given:
        given = signed_grid(builder.given[attention.output], attention.output, precision)
        wanted = given.scale
    value = builder.grids[attention.value]
    fine = np.ldexp(value.scale, -precision.context_fraction)
    chosen = factor(fine / wanted, precision.multiplier_bits)
    scale = fine / chosen.value if given is None else given.scale
    wanted_offset = -(low + high) / 2 / scale if given is None else given.offset
    zero = value.offset * 2**precision.context_fraction
    bias = rounded(wanted_offset * scale / fine - zero)
    offset = (bias + zero) * fine / scale if given is None else given.offset
    builder.add(attention.output, "operand", precision.activation_bits, True, Grid(scale, offset))
    key, query = builder.grids[attention.key], builder.grids[attention.query]
    factor_of_head = (key.scale * query.scale).reshape(attention.heads, -1)[:, 0]
    score = factor(factor_of_head * attention.scale * math.log2(math.e) * 2**precision.score_fraction, 16)
    scored = builder.target(attention.query), builder.target(attention.key)
    return IntegerAttention(
        attention.name,
        attention.query,
        attention.key,
        attention.value,
        attention.output,
        attention.heads,
        score.multiplier,
        score.shift,
        Scaling(bias, chosen.multiplier, chosen.shift),
        convert_bias(attention, score.value, *scored, precision),
    )


def _head_max(x: RealArray, heads: int) -> RealArray:
    result: RealArray = x.reshape(heads, -1).max(axis=1)
    return result
