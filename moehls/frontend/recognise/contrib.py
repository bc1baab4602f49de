"""onnxruntime's fused operators (domain com.microsoft), each read as the standard nodes it stands for."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, apply, attribute
from moehls.frontend.values import Affine, Constant, FeedForward, Unknown, Value, shape_of

_REMEDY = "export plain self-attention without cache or rotary positions"


def _given(node: ir.Node, inputs: list[Value], place: int) -> Value | None:
    """An optional input, None where the node does not have it."""
    return inputs[place] if place < len(inputs) and node.inputs[place] is not None else None


def _plus(context: Context, value: Value, bias: Value | None) -> Value:
    return value if bias is None else apply(context, "Add", [value, bias])[0]


def read_gelu(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Gelu, BiasGelu and FastGelu; FastGelu is the tanh form."""
    value = _plus(context, inputs[0], _given(node, inputs, 1))
    return apply(context, "Gelu", [value], approximate="tanh" if node.op_type == "FastGelu" else "none")


def read_swish(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Swish (opset 24) and QuickGelu: `x · sigmoid(alpha · x)`."""
    alpha = float(attribute(node, "alpha", 1.702 if node.op_type == "QuickGelu" else 1.0))
    scaled = apply(context, "Mul", [inputs[0], Constant(np.array(alpha, np.float32))])
    return apply(context, "Mul", [inputs[0], *apply(context, "Sigmoid", scaled)])


def read_matmul(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """FusedMatMul: a product of transposed operands, times a factor."""
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return None
    operands = []
    for value, name in zip(inputs, ("transA", "transB"), strict=True):
        rank = len(shape_of(value) or ())
        turned = bool(attribute(node, name, 0)) and rank > 1
        perm = [*range(rank - 2), rank - 1, rank - 2]
        operands.append(apply(context, "Transpose", [value], perm=perm)[0] if turned else value)
    alpha = Constant(np.array(attribute(node, "alpha", 1.0), np.float32))
    return apply(context, "Mul", [*apply(context, "MatMul", operands), alpha])


def _is_branch(value: Value) -> bool:
    """Whether a value is the output of a layer, which takes a bias, and not the residual stream."""
    return isinstance(value, FeedForward) or (isinstance(value, Affine) and value.weight is not None)


def read_skip_norm(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A residual add with bias, then normalisation, without mean if Simplified; the fourth output is the sum."""
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    bias, offset = (3, None) if simplified else (4, 3)
    branch = 1 if _is_branch(inputs[1]) and not _is_branch(inputs[0]) else 0
    biased = _plus(context, inputs[branch], _given(node, inputs, bias))
    total = apply(context, "Add", [biased, inputs[1 - branch]])[0]
    given = None if offset is None else _given(node, inputs, offset)
    parameters = [inputs[2], *([] if given is None else [given])]
    epsilon = float(attribute(node, "epsilon", 1e-12))
    operator = "RMSNormalization" if simplified else "LayerNormalization"
    normalised = apply(context, operator, [total, *parameters], axis=-1, epsilon=epsilon)
    return [*normalised, Unknown(), Unknown(), total][: len(node.outputs)]


def _refuse_extras(node: ir.Node, inputs: list[Value], known: set[int], flags: tuple[str, ...]) -> None:
    """Caches and the like."""
    extra = [node.inputs[place] for place in range(len(inputs)) if place not in known and _given(node, inputs, place)]
    flagged = [name for name in flags if attribute(node, name, 0)]
    if extra or flagged or len(node.outputs) > 1:
        raise UnsupportedError("attention with a cache or rotary positions", _REMEDY)


def _attend(
    context: Context, node: ir.Node, parts: list[Value], padding: Value | None = None, bias: Value | None = None
) -> Result:
    """Standard Attention of three `[batch, tokens, channels]` values; `padding` is 0 of keys that are hidden."""
    heads = int(attribute(node, "num_heads", 0))
    channels = (shape_of(parts[0]) or (0,))[-1]
    if len(shape_of(parts[0]) or ()) != 3 or heads < 1 or channels % heads:
        raise UnsupportedError(f"{channels} channels do not divide into {heads} heads", _REMEDY)
    scale = float(attribute(node, "scale", 0.0)) or 1 / math.sqrt(channels // heads)
    masks = [mask for mask in (bias, _padding(node, padding, parts[1])) if mask is not None]
    mask = masks if len(masks) < 2 else apply(context, "Add", masks)
    causal = int(attribute(node, "unidirectional", 0))
    sizes = {"q_num_heads": heads, "kv_num_heads": heads}
    return apply(context, "Attention", [*parts, *mask], scale=scale, is_causal=causal, **sizes)


def _padding(node: ir.Node, mask: Value | None, keys: Value) -> Value | None:
    """What a mask of whole numbers, `[batch, keys]` or `[batch, queries, keys]`, adds to the scores."""
    if mask is None:
        return None
    if not isinstance(mask, Constant):
        raise UnsupportedError(
            "an attention mask that depends on the input", "give the mask as a constant of the graph"
        )
    tokens = (shape_of(keys) or (0, 0))[1]
    shape = mask.array.shape
    if len(shape) not in (2, 3) or shape[0] != 1 or shape[-1] != tokens:
        raise UnsupportedError(
            f"an attention mask of shape {list(shape)}",
            f"give one of shape [1, {tokens}] or [1, {tokens}, {tokens}]",
        )
    hidden = np.where(mask.array == 0, np.float32(attribute(node, "mask_filter_value", -10000.0)), np.float32(0))
    return Constant(hidden.reshape(1, 1, -1, tokens))


def _split(context: Context, value: Value, sizes: list[int]) -> list[Value]:
    return apply(context, "Split", [value, Constant(np.array(sizes, np.int64))], len(sizes), axis=-1)


def read_attention(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Attention: one matrix for queries, keys and values, with its bias."""
    _refuse_extras(node, inputs, {0, 1, 2, 3, 5}, ("do_rotary", "past_present_share_buffer"))
    fused = _plus(context, apply(context, "MatMul", inputs[:2])[0], _given(node, inputs, 2))
    width = (shape_of(fused) or (0,))[-1]
    sizes = list(attribute(node, "qkv_hidden_sizes", None) or [width // 3] * 3)
    padding, bias = (_given(node, inputs, place) for place in (3, 5))
    return _attend(context, node, _split(context, fused, sizes), padding, bias)


def read_multi_head(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """MultiHeadAttention of separate queries, keys and values `[batch, tokens, channels]`, perhaps with a bias for all."""
    _refuse_extras(node, inputs, {0, 1, 2, 3, 4, 5}, ())
    parts = [_given(node, inputs, place) for place in range(3)]
    query, key, value = parts
    if query is None or key is None or value is None or any(len(shape_of(part) or ()) != 3 for part in inputs[:3]):
        raise UnsupportedError("packed or already split queries, keys and values", _REMEDY)
    given: list[Value] = [query, key, value]
    bias = _given(node, inputs, 3)
    if bias is not None:
        biases = _split(context, bias, [(shape_of(part) or (0,))[-1] for part in given])
        given = [_plus(context, part, own) for part, own in zip(given, biases, strict=True)]
    return _attend(context, node, given, *(_given(node, inputs, place) for place in (4, 5)))


RULES: Rules = (
    ("com.microsoft::Gelu com.microsoft::BiasGelu com.microsoft::FastGelu", read_gelu),
    ("com.microsoft::FusedMatMul", read_matmul),
    ("com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization", read_skip_norm),
    ("com.microsoft::QuickGelu Swish", read_swish),
    ("com.microsoft::Attention", read_attention),
    ("com.microsoft::MultiHeadAttention", read_multi_head),
)
