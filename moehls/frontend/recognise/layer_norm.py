"""Layer normalisation: the operator, or the decomposition mean, centre, square, mean, epsilon, root, divide.

RMS normalisation is the same without the first two.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute, integers
from moehls.frontend.layout import Layout, LayoutError, drop_dims
from moehls.frontend.recognise.linear import table_of
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Affine, Constant, Normalised, Pointwise, RealFunction, Statistic, Value

_SMALL = 1e-6
"""least length that a vector may be guarded to have: no real token is as short"""


def token_rows(context: Context, value: Value) -> Affine | None:
    """The value as plain rows with the channels, or those of a head, in the last dimension; None for anything but tokens."""
    if not isinstance(value, TOKENS):
        return None
    plain = context.builder.materialise(value)
    last = plain.layout.dims[-1]
    if len(last) < 1 or any(axis.token for axis in last):
        raise UnsupportedError(
            "normalisation does not run over the channels of a token or of a head",
            "normalise the residual stream, or queries and keys a head at a time (timm: qk_norm=True)",
        )
    return plain


def read_operator(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    rows = token_rows(context, inputs[0])
    if rows is None or not all(isinstance(value, Constant) for value in inputs[1:]):
        return None
    rank, channels = len(rows.layout.dims), rows.layout.shape[-1]
    if attribute(node, "axis", -1) % rank != rank - 1:
        raise LayoutError("normalisation runs over more than the last dimension")
    parameters = [value.array for value in inputs[1:] if isinstance(value, Constant)]
    weight = np.broadcast_to(parameters[0].astype(np.float32), (channels,))
    bias = (
        np.broadcast_to(parameters[1].astype(np.float32), (channels,)) if len(parameters) > 1 else np.zeros_like(weight)
    )
    epsilon, centred = float(attribute(node, "epsilon", 1e-5)), node.op_type == "LayerNormalization"
    return Normalised(rows.layout, rows.base, epsilon, weight, bias, centred)


def read_mean(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    layout = value.layout if isinstance(value, (*TOKENS, Statistic)) else None
    if layout is None:
        return None
    rank = len(layout.dims)
    axes = (
        node.attributes["axes"].value if "axes" in node.attributes else integers(inputs[1]) if len(inputs) > 1 else None
    )
    if axes is None or [axis % rank for axis in axes] != [rank - 1]:
        raise LayoutError("it averages over something else than the channels of a token, as mean pooling does")
    keep = bool(attribute(node, "keepdims", 1))
    if isinstance(value, Pointwise):
        if not _is_square(value.function):
            raise UnsupportedError(
                "a mean over channels of a function that is not the square", "use nn.LayerNorm or nn.RMSNorm"
            )
        rows = token_rows(context, value.operand)
        assert rows is not None
        return Statistic("variance", rows, drop_dims(rows.layout, [rank - 1], keep), centred=False)
    if isinstance(value, Statistic):
        return (
            replace(value, kind="variance", layout=drop_dims(layout, [rank - 1], keep))
            if value.kind == "square"
            else None
        )
    rows = token_rows(context, value)
    return None if rows is None else Statistic("mean", rows, drop_dims(rows.layout, [rank - 1], keep))


def read_length(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The length of a token's vector (`F.normalize`)."""
    value = inputs[0]
    rows = token_rows(context, value) if isinstance(value, TOKENS) else None
    if rows is None:
        return None
    rank = len(rows.layout.dims)
    axes = node.attributes["axes"].value if "axes" in node.attributes else integers(inputs[1])
    if axes is None or [axis % rank for axis in axes] != [rank - 1]:
        raise LayoutError("it is the length of something else than the channels of a token")
    layout = drop_dims(rows.layout, [rank - 1], bool(attribute(node, "keepdims", 1)))
    return Statistic("deviation", rows, layout, centred=False, factor=float(np.sqrt(rows.layout.shape[-1])))


def read_guard(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A length that is at least some small number, repeated over the channels it divides."""
    value = inputs[0]
    if not isinstance(value, Statistic) or value.kind != "deviation":
        return None
    if node.op_type == "Expand":
        return value if integers(inputs[1]) == value.rows.layout.shape else None
    bounds = [other.array for other in inputs[1:] if isinstance(other, Constant) and other.array.size]
    if len(bounds) != 1 or (len(inputs[1:]) > 1 and not _is_empty(inputs[2])) or bounds[0].size != 1:
        return None
    least = float(bounds[0].reshape(-1)[0])
    if not 0 <= least <= _SMALL:
        return None
    return replace(value, epsilon=max(value.epsilon, (least / value.factor) ** 2))


def _is_empty(value: Value) -> bool:
    return isinstance(value, Constant) and value.array.size == 0


def read_binary(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    left, right = inputs[:2]
    op = node.op_type
    squared = (op == "Pow" and _is(right, Constant(np.full(1, 2.0)))) or (op == "Mul" and left is right)
    if squared and isinstance(left, TOKENS) and not isinstance(left, (Affine, Pointwise)):
        return Pointwise(context.builder.materialise(left), np.square)
    for value, other in ((left, right), (right, left)) if op == "Mul" else ((left, right),):
        wanted = "inverse" if op == "Mul" else "deviation"
        scales = isinstance(other, Statistic) and not other.centred and other.kind == wanted and op in ("Mul", "Div")
        if scales and isinstance(other, Statistic) and isinstance(value, TOKENS):
            return _root_mean_square(context, value, other)
    if isinstance(right, Statistic) and right.kind == "mean" and op == "Sub" and isinstance(left, TOKENS):
        plain = context.builder.materialise(left)
        if plain.base == right.rows.base and len(right.layout.dims) == len(plain.layout.dims):
            return Statistic("centred", right.rows, plain.layout)
        return None
    if not isinstance(left, Statistic):
        left, right = (right, left) if op in ("Mul", "Add") else (left, right)
    if op == "Div" and isinstance(right, Statistic) and right.kind == "deviation" and _is(left, Constant(np.ones(1))):
        return replace(right, kind="inverse")
    if not isinstance(left, Statistic):
        return None
    if (
        op in ("Mul", "Div")
        and isinstance(right, Statistic)
        and (right.rows.base, right.centred)
        == (
            left.rows.base,
            left.centred,
        )
    ):
        kinds = {left.kind, right.kind}
        if op == "Mul" and kinds == {"centred"}:
            return replace(left, kind="square")
        if (op == "Mul" and kinds == {"centred", "inverse"}) or (
            op == "Div" and (left.kind, right.kind) == ("centred", "deviation")
        ):
            return _normalised(left if left.kind == "centred" else right, left.epsilon + right.epsilon)
    if op == "Pow" and left.kind == "centred" and _is(right, Constant(np.full(1, 2.0))):
        return replace(left, kind="square")
    if op == "Pow" and left.kind == "variance" and isinstance(right, Constant) and right.array.size == 1:
        power = float(right.array.reshape(-1)[0])
        return replace(left, kind="deviation" if power == 0.5 else "inverse") if abs(power) == 0.5 else None
    if op == "Add" and left.kind == "variance" and isinstance(right, Constant) and right.array.size == 1:
        return replace(left, epsilon=left.epsilon + float(right.array.reshape(-1)[0]))
    return None


def _is(value: Value, constant: Constant) -> bool:
    return isinstance(value, Constant) and value.array.size == 1 and value.array.reshape(-1)[0] == constant.array[0]


def _is_square(function: RealFunction) -> bool:
    x = np.linspace(-4, 4, 65)
    with np.errstate(all="ignore"):
        return bool(np.allclose(function(x), x * x, rtol=1e-6, atol=0))


def _root_mean_square(context: Context, value: Value, statistic: Statistic) -> Normalised | None:
    """Rows times the inverse of their own root mean square."""
    plain = token_rows(context, value)
    if plain is None or plain.base != statistic.rows.base or plain.layout != statistic.rows.layout:
        raise LayoutError("rows are divided by the root mean square of other rows")
    if len(statistic.layout.dims) != len(plain.layout.dims):
        return None
    weight = np.full(plain.layout.shape[-1], 1 / statistic.factor, np.float32)
    return Normalised(plain.layout, plain.base, statistic.epsilon, weight, np.zeros_like(weight), False)


def _normalised(centred: Statistic, epsilon: float) -> Normalised:
    channels = centred.rows.layout.shape[-1]
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    return Normalised(centred.rows.layout, centred.rows.base, epsilon, ones, zeros)


def read_unary(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    value = inputs[0]
    if not isinstance(value, Statistic):
        return None
    if node.op_type == "Sqrt" and value.kind == "variance":
        return replace(value, kind="deviation")
    if node.op_type == "Reciprocal" and value.kind == "deviation":
        return replace(value, kind="inverse")
    return None


def read_affine(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Gain and offset after a decomposed normalisation: one vector over the channels."""
    for token, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if not isinstance(token, Normalised) or table is None:
            continue
        vector = table[0].reshape(-1)
        if table[0].shape[-2:] == token.layout.shape[-2:] and token.layout.tokens > 1 and node.op_type == "Add":
            raise UnsupportedError(
                "a constant that differs from token to token is added to a normalisation of something else than the stream",
                "add positions to the embedded patches, or to a normalisation of them, before the first block",
            )
        if table.shape[0] != 1 or not _over_channels(token.layout, table[0].shape):
            return None
        if node.op_type == "Mul":
            return replace(token, weight=token.weight * vector, bias=token.bias * vector, grid=None)
        return replace(token, bias=token.bias + vector, grid=None)
    return None


def _over_channels(layout: Layout, shape: tuple[int, ...]) -> bool:
    return len(shape) <= len(layout.dims) and np.prod(shape, dtype=int) in (1, shape[-1] if shape else 1)


RULES: Rules = (
    ("LayerNormalization RMSNormalization SimplifiedLayerNormalization", read_operator),
    ("ReduceMean", read_mean),
    ("ReduceL2", read_length),
    ("Clip Max Expand", read_guard),
    ("Sub Mul Div Pow Add", read_binary),
    ("Sqrt Reciprocal", read_unary),
    ("Mul Add", read_affine),
)
