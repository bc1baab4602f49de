"""Multi-head self-attention: products, scale and softmax written out, or the Attention operator."""

from __future__ import annotations

import math
from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.builder import Builder
from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.contraction import labels_of
from moehls.frontend.layout import Array, Layout, LayoutError, reshape, transpose
from moehls.frontend.maps import rows
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.linear import as_affine
from moehls.frontend.values import Affine, Constant, Normalised, Scores, Unknown, Value
from moehls.network.operations import FloatArray

_REMEDY = "export plain self-attention: softmax(q·kᵀ·scale + bias)·v"
_CONSTANT = "masks and biases of attention must be constants of the graph: [heads, queries, keys], or broadcast to it"
_LOW = -1e3
"""what replaces a score and hides its key"""
_ALIKE = -1e30
"""a bias beside which float32 loses every score"""


def _is_matrix_a_head(layout: Layout) -> bool:
    """Dimensions `[…heads, tokens, channels]`."""
    if len(layout.dims) < 2:
        return False
    others = (*layout.dims[:-2], layout.dims[-1])
    return all(axis.token for axis in layout.dims[-2]) and not any(axis.token for dim in others for axis in dim)


def read_scores(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """`q · kᵀ`: a product of two token values that sums their channels, a head at a time."""
    left, right = (context.builder.materialise(v) if isinstance(v, Normalised) else v for v in inputs[:2])
    if not isinstance(left, Affine) or not isinstance(right, Affine) or len(inputs) > 2:
        return None
    labels = labels_of(node, len(left.layout.dims), len(right.layout.dims))
    *heads, query, key = labels.out
    summed = [label for label in labels.left if label not in labels.out]
    if len(summed) != 1 or query not in labels.left or key not in labels.right:
        raise UnsupportedError("a product of two activations that is not q·kᵀ", _REMEDY)
    wanted = (*heads, query, summed[0])
    order = [labels.left.index(label) for label in wanted if label in labels.left]
    key_order = [labels.right.index(label) for label in (*heads, key, summed[0]) if label in labels.right]
    q = restructure(left, *transpose(left.layout, order))
    k = restructure(right, *transpose(right.layout, key_order))
    same_heads = prod(q.layout.shape[:-2]) == prod(k.layout.shape[:-2])
    if not (_is_matrix_a_head(q.layout) and _is_matrix_a_head(k.layout) and same_heads):
        raise UnsupportedError("a product of two activations that is not q·kᵀ, a head at a time", _REMEDY)
    return Scores(q, k, 1.0, False)


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A scalar on the scores, or a constant bias or mask that is added to them."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(value, Scores) or isinstance(other, (Scores, Unknown)):
            continue
        if node.op_type == "Add" or (node.op_type == "Sub" and value is inputs[0]):
            return _biased(value, other, -1.0 if node.op_type == "Sub" else 1.0)
        if not isinstance(other, Constant) or other.array.size != 1 or value.softmax:
            return None
        if node.op_type == "Sub" or (node.op_type == "Div" and other is inputs[0]):
            return None
        factor = float(other.array.reshape(-1)[0])
        factor = 1 / factor if node.op_type == "Div" else factor
        bias = None if value.bias is None else value.bias * np.float32(factor)
        return replace(value, scale=value.scale * factor, bias=bias)
    return None


def _biased(scores: Scores, other: Value, sign: float) -> Scores:
    """The scores and a constant."""
    if not isinstance(other, Constant):
        raise UnsupportedError("an attention mask or bias that depends on the input", _CONSTANT)
    if scores.softmax:
        if other.array.any():
            raise UnsupportedError("something is added to attention probabilities", _REMEDY)
        return scores
    added = _as_scores(other.array.astype(np.float32), scores.shape)
    if not added.any():
        return scores
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.float32(sign) * added + (np.float32(0) if scores.bias is None else scores.bias)
    return replace(scores, bias=total)


def _as_scores(array: Array, shape: tuple[int, ...]) -> Array:
    """A mask or bias, broadcast to the scores' shape."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError as error:
        raise UnsupportedError(
            f"a mask or bias of shape {list(array.shape)} on scores of shape {list(shape)}", _CONSTANT
        ) from error


def _hiding(scores: Scores, hidden: Array, value: float) -> Scores:
    """The scores, those where `hidden` replaced by `value`."""
    hidden = _as_scores(hidden, scores.shape)
    if not hidden.any():
        return scores
    if value > _LOW:
        raise UnsupportedError(
            f"scores are replaced by {value:g}, which does not hide a key", "replace them by -inf, or add the mask"
        )
    # to a query that sees no key all are alike, as the replaced scores are: float32 loses what it adds to such a bias
    low = -np.inf if np.isneginf(value) else _ALIKE
    bias = np.zeros(scores.shape, np.float32) if scores.bias is None else scores.bias
    return replace(scores, bias=np.where(hidden, np.float32(low), bias))


def read_softmax(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, Scores):
        return None
    if attribute(node, "axis", -1 if context.opset >= 13 else 1) not in (-1, len(value.shape) - 1) or value.softmax:
        raise UnsupportedError("softmax of attention scores that does not run over the keys", _REMEDY)
    _check_bias(value.bias)
    return replace(value, softmax=True)


def _check_bias(bias: FloatArray | None) -> None:
    """Finite or -inf, and a key for each query."""
    if bias is None:
        return
    if np.isnan(bias).any() or np.isposinf(bias).any():
        raise UnsupportedError("an attention mask or bias that is not a number, or infinite", _CONSTANT)
    blind = np.argwhere(np.isneginf(bias).all(axis=-1))
    if len(blind):
        raise UnsupportedError(
            f"a mask that hides all keys from query {int(blind[0][-1])}: softmax of nothing is not a number",
            "let every token see one key at least, itself for example",
        )


def read_nan_guard(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """`IsNaN(p)` and `Where(isnan, 0, p)`: softmax of finite scores has no NaN. `Where(mask, scores, -inf)`, or the reverse."""
    if node.op_type == "IsNaN":
        value = inputs[0]
        return replace(value, is_nan=True) if isinstance(value, Scores) and value.softmax else None
    condition, kept, otherwise = inputs
    for scores, other, visible in ((kept, otherwise, True), (otherwise, kept, False)):
        if not isinstance(scores, Scores) or isinstance(condition, (Scores, Unknown)):
            continue
        if not isinstance(condition, Constant):
            raise UnsupportedError("an attention mask that depends on the input", _CONSTANT)
        if scores.softmax:
            return scores if (condition.array == visible).all() else None
        if isinstance(other, Constant) and other.array.size == 1:
            return _hiding(scores, condition.array != visible, float(other.array.reshape(-1)[0]))
    if isinstance(condition, Scores) and condition.is_nan and isinstance(otherwise, Scores) and not otherwise.is_nan:
        return otherwise if otherwise.query is condition.query else None
    return None


def read_context(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """`p · v`."""
    scores = inputs[0]
    if not isinstance(scores, Scores) or (value := as_affine(context, inputs[1])) is None:
        return None
    if not scores.softmax or scores.is_nan:
        raise UnsupportedError("scores without softmax meet the values", _REMEDY)
    labels = labels_of(node, len(scores.shape), len(value.layout.dims))
    *heads, query, channel = labels.out
    key = [label for label in labels.left if label not in labels.out]
    plain = labels.left == (*heads, query, *key) and channel in labels.right and len(key) == 1
    order = [labels.right.index(label) for label in (*heads, *key, channel) if label in labels.right]
    v = restructure(value, *transpose(value.layout, order)) if len(order) == len(labels.right) else value
    if not plain or not _is_matrix_a_head(v.layout):
        raise UnsupportedError("a product of softmax with something that is not the values, a head at a time", _REMEDY)
    return attend(context.builder, scores.query, scores.key, v, scores.scale, scores.bias)


def attend(
    builder: Builder, query: Affine, key: Affine, value: Affine, scale: float, bias: FloatArray | None = None
) -> Affine:
    """Emit attention of `[…heads, tokens, channels]` values; factors of q and k join the scale. `bias` is as `Scores` has it."""
    heads = prod(query.layout.shape[:-2])
    if prod(value.layout.shape[:-2]) != heads or key.layout.tokens != value.layout.tokens:
        raise UnsupportedError("queries, keys and values have different numbers of heads", _REMEDY)
    if query.layout.tokens != key.layout.tokens:
        raise UnsupportedError("queries and keys are not of the same tokens", _REMEDY)
    scale *= query.factor * key.factor
    q = builder.linear(_without_factor(query), "query")
    k = builder.linear(_without_factor(key), "key")
    v = builder.linear(value, "value")
    if bias is not None:
        bias = np.ascontiguousarray(bias.reshape(heads, *bias.shape[-2:]))
        bias = bias[:1] if (bias == bias[:1]).all() else bias
    return rows(builder.attention(q, k, v, heads, scale, bias), value.layout)


def _without_factor(value: Affine) -> Affine:
    """The value over its factor, and the integers that the graph gives it with it."""
    grid = value.grid if value.factor > 0 else None
    if grid is not None:
        grid = replace(grid, scale=grid.scale / value.factor)
    return replace(value, factor=1.0, grid=grid)


def read_operator(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The Attention operator (opset 23) on `[batch, heads, tokens, channels]` or `[batch, tokens, channels]`."""
    parts = [as_affine(context, value) for value in inputs[:3]]
    if len(parts) != 3 or any(part is None for part in parts):
        return None
    if attribute(node, "softcap", 0.0) or len(node.outputs) > 1 or any(not _is_missing(v) for v in inputs[4:]):
        raise UnsupportedError("attention with a soft cap or a cache", _REMEDY)
    given = [part for part in parts if part is not None]
    flat = len(given[0].layout.dims) == 3
    if flat:
        counts = [attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
        given = [_heads(part, count) for part, count in zip(given, counts, strict=True)]
    query, key, value = given
    if not all(_is_matrix_a_head(part.layout) for part in given):
        raise LayoutError("its inputs are not matrices of tokens, a head at a time")
    scale = attribute(node, "scale", 1 / math.sqrt(query.layout.shape[-1]))
    scores = Scores(query, key, float(scale), False)
    if len(inputs) > 3 and not _is_missing(inputs[3]):
        scores = _masked(scores, inputs[3])
    if attribute(node, "is_causal", 0):
        scores = _hiding(scores, np.triu(np.ones(scores.shape[-2:], np.bool_), 1), -np.inf)
    _check_bias(scores.bias)
    result = attend(context.builder, query, key, value, scores.scale, scores.bias)
    if not flat:
        return result
    result = restructure(result, *transpose(result.layout, (0, 2, 1, 3)))
    return restructure(result, *reshape(result.layout, (*result.layout.shape[:2], prod(result.layout.shape[2:]))))


def _is_missing(value: Value) -> bool:
    """Whether an optional input is not there."""
    return isinstance(value, Constant) and value.array.size == 0


def _masked(scores: Scores, mask: Value) -> Scores:
    """Scores with the mask of an Attention operator: true where a key is seen, or what is added."""
    if isinstance(mask, Constant) and mask.array.dtype == np.bool_:
        return _hiding(scores, ~mask.array, -np.inf)
    return _biased(scores, mask, 1.0)


def _heads(value: Affine, heads: int) -> Affine:
    """`[batch, tokens, heads · channels]` as `[batch, heads, tokens, channels]`."""
    batch, tokens, channels = value.layout.shape
    if heads < 1 or channels % heads:
        raise UnsupportedError(f"{channels} channels do not divide into {heads} heads", _REMEDY)
    split = restructure(value, *reshape(value.layout, (batch, tokens, heads, channels // heads)))
    return restructure(split, *transpose(split.layout, (0, 2, 1, 3)))


RULES: Rules = (
    ("MatMul Einsum", read_scores),
    ("Mul Div Add Sub", read_scale),
    ("Softmax", read_softmax),
    ("IsNaN Where", read_nan_guard),
    ("MatMul Einsum", read_context),
    ("Attention", read_operator),
)
