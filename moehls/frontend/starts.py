"""Streams that begin behind a normalisation: `weight · norm(x) + rows`, x the embedded tokens, rows a constant for each token.

In go a normalisation of tokens, or a linear map of one, and constant rows that join it: class tokens put before it, positions
added to it (vit-pytorch). Out come its operations: a norm without offset, a linear, the rows, and their sum. A token put
before others has a row of zeros in the embedding, which the norm leaves zero, so that its constant row is all that it is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moehls.frontend.builder import Builder, Start
from moehls.frontend.layout import Array, Axis, Layout, LayoutError, merge_dim
from moehls.frontend.maps import folded, full_features, is_rows, rows, with_weight
from moehls.frontend.values import Affine, Base, Normalised, Value
from moehls.network.operations import Add, Constant, Embed, LayerNorm, Linear


def start_of(builder: Builder, value: Value) -> tuple[Start, Layout] | None:
    """The start that a value is, with its layout, which has tokens before channels; None of anything else."""
    if not isinstance(value, Normalised | Affine) or value.base.stand_in:
        return None
    if isinstance(value, Affine) and is_rows(value) and value.base.name in builder.starts:
        found = builder.starts[value.base.name]
        return (found, value.layout) if _is_matrix(value.layout) else None
    plain = builder.materialise(value) if isinstance(value, Normalised) else value
    makers = {operation.output: operation for operation in builder.operations}
    norm = makers.get(plain.base.name)
    if not isinstance(norm, LayerNorm) or norm.heads > 1 or not isinstance(makers.get(norm.input), Embed | Add):
        return None
    if not _is_matrix(plain.layout) or plain.selector is not None or plain.weighing is not None:
        return None
    if plain.layout.features != len(norm.weight):  # a head, or queries, keys and values in one
        return None
    dense = with_weight(folded(plain))
    assert dense.weight is not None
    weight, bias = (full_features(plain.layout, array)[:, 0] for array in (dense.weight, dense.bias))
    offset = np.broadcast_to(weight @ norm.bias + bias, (plain.base.tokens, len(weight)))
    zero = np.zeros_like(norm.bias)
    embedded = Base(norm.input, plain.base.tokens, plain.base.channels)
    return Start(replace(norm, bias=zero), embedded, weight, offset.astype(np.float32)), plain.layout


def _is_matrix(layout: Layout) -> bool:
    """Whether the tensor is rows of tokens, the channels of each in its last dimension."""
    *tokens, last = layout.dims
    return all(axis.token for group in tokens for axis in group) and not any(axis.token for axis in last)


def with_positions(builder: Builder, start: Start, layout: Layout, constant: Array) -> Affine:
    """The stream with a constant that differs from token to token added."""
    added = np.broadcast_to(constant, layout.shape).reshape(start.rows.shape)
    return _begun(builder, replace(start, rows=start.rows + added), layout)


def with_leading(builder: Builder, start: Start, layout: Layout, dim: int, constants: Array) -> Affine:
    """The stream with constant tokens put before it along dimension `dim`.

    Raises:
        LayoutError: it does not come from the patch embedding, or its norm has no epsilon, so that zeros are not left zeros.
    """
    merged, _ = merge_dim(layout, dim)
    count, channels = constants.shape[dim], layout.features
    embed = next(o for o in builder.operations if o.output == start.embedded.name)
    if not isinstance(embed, Embed) or len(merged.dims[dim]) != 1 or merged.dims[dim][0].size != start.embedded.tokens:
        raise LayoutError("constant tokens are put before others that are not all tokens of the patch embedding")
    if start.norm.epsilon <= 0:
        raise LayoutError("constant tokens are put before tokens that a normalisation without epsilon wrote")
    zeros = np.zeros((count, embed.weight.shape[0]), np.float32)
    fields = {"input": embed.input, "weight": embed.weight, "bias": embed.bias}
    prefix, position = (np.concatenate([zeros, array]) for array in (embed.prefix, embed.position))
    name = builder.emit(Embed, "embed", **fields, prefix=prefix, position=position)
    tokens = count + start.embedded.tokens
    wide = Layout((*merged.dims[:dim], (Axis(tokens, True),), *merged.dims[dim + 1 :]))
    head = np.broadcast_to(constants, [count if i == dim else size for i, size in enumerate(merged.shape)])
    longer = np.concatenate([head.reshape(count, channels).astype(np.float32), start.rows])
    begun = replace(start, embedded=Base(name, tokens, start.embedded.channels), rows=longer)
    return _begun(builder, begun, wide)


def _begun(builder: Builder, start: Start, layout: Layout) -> Affine:
    """Emit a start; what it was before is no operation's to read any more."""
    norm = start.norm
    fields = {"weight": norm.weight, "bias": norm.bias, "epsilon": norm.epsilon, "centred": norm.centred}
    normed = builder.emit(LayerNorm, "norm", input=start.embedded.name, **fields, heads=1)
    constant = builder.emit(Constant, "constant", input=normed, rows=np.array(start.rows, order="C"))
    channels = len(start.weight)
    weight = {"weight": np.array(start.weight, order="C"), "bias": np.zeros(channels, np.float32)}
    linear = builder.emit(Linear, "linear", input=normed, **weight)
    builder.put_before(constant, linear)
    base = Base(builder.emit(Add, "add", left=constant, right=linear), start.embedded.tokens, channels)
    builder.starts[base.name] = start
    return rows(base, layout)
