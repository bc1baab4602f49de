"""`QuantizeLinear` and `DequantizeLinear` around activations: the values stay what they are, their integers are noted.

What the machine holds as integers of `activation_bits` bits keeps the graph's scale and zero point: the image, normalised tokens,
queries, keys, values, contexts, GELU outputs. All else (the residual stream, scores, probabilities, GELU inputs, router logits)
the machine holds finer than 8 bits, and the graph's rounding is left out. Constants are evaluated: the graph's weights are
what it dequantises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from moehls.frontend.activations import match_activation
from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.layout import Array, Layout, LayoutError, align
from moehls.frontend.maps import identity_index
from moehls.frontend.values import (
    Affine,
    Constant,
    Dispatched,
    Grid,
    Hidden,
    Normalised,
    Patches,
    Pixels,
    Pointwise,
    Quantised,
    Unknown,
    Value,
)
from moehls.network.operations import Lattice

_INTEGERS = {np.dtype(kind) for kind in (np.int8, np.uint8, np.int16, np.uint16)}
_REMEDY = "quantise with constant scales, one a tensor or one a channel, to 8 or 16 bits"
_MOVES = "Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Split Expand Identity Concat"


def _parameters(node: ir.Node, inputs: list[Value]) -> tuple[Array, Array]:
    """Scale and zero point of a node.

    Raises:
        UnsupportedError: they are not constants, of another type, or in blocks.
    """
    scale, zero = inputs[1], inputs[2] if len(inputs) > 2 and node.inputs[2] is not None else None
    if not isinstance(scale, Constant) or not (zero is None or isinstance(zero, Constant)):
        raise UnsupportedError("its scale or zero point is computed from the image (dynamic quantisation)", _REMEDY)
    points = np.zeros(scale.array.shape, np.uint8) if zero is None else zero.array
    if points.dtype not in _INTEGERS or attribute(node, "block_size", 0) or scale.array.ndim > 1:
        raise UnsupportedError(f"it quantises to {points.dtype}, or with a scale a block", _REMEDY)
    if not np.isfinite(scale.array).all() or not (scale.array > 0).all():
        raise UnsupportedError("a scale is not positive", _REMEDY)
    return scale.array.astype(np.float64), points


def read_quantise(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    if isinstance(inputs[0], (Unknown, Quantised)):
        return Unknown() if isinstance(inputs[0], Unknown) else None
    return Quantised(inputs[0], *_parameters(node, inputs), attribute(node, "axis", 1))


def read_dequantise(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    given = inputs[0]
    if not isinstance(given, Quantised):
        return None
    scale, zero = _parameters(node, inputs)
    if not (np.array_equal(scale, given.scale) and np.array_equal(zero, given.zero) and zero.dtype == given.zero.dtype):
        raise UnsupportedError("it reads integers with another scale than they were written with", _REMEDY)
    if scale.size > 1 and attribute(node, "axis", 1) != given.axis:
        raise UnsupportedError("it reads integers along another axis than they were written", _REMEDY)
    return _noted(context, given)


def read_move(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Integers moved about between the two nodes."""
    first = inputs[0]
    if not isinstance(first, Quantised) or first.scale.size > 1:
        return None
    inner = [value.value if isinstance(value, Quantised) else value for value in inputs]
    result = context.read(node, inner)
    if result is None:
        return None
    found = list(result) if isinstance(result, Sequence) else [result]
    return [replace(first, value=value) for value in found]


def _noted(context: Context, given: Quantised) -> Value:
    """The quantised value, with its integers where the machine has such."""
    value, bits = given.value, given.zero.dtype.itemsize * 8
    signed = given.zero.dtype.kind == "i"
    if isinstance(value, Pixels):
        _note_image(context, value, given, bits, signed)
    elif isinstance(value, Patches) and _is_image(value):
        scale, zero = (array.reshape(-1).astype(np.float64) for array in (given.scale, given.zero))
        if scale.size == 1:
            context.builder.lattices[context.builder.image] = Lattice(scale, zero, bits, signed)
    elif isinstance(value, Dispatched):
        inner = value.rows
        if isinstance(inner, (Hidden, Pointwise)) or (isinstance(inner, Affine) and not _is_whole(inner)):
            noted = _noted(context, replace(given, value=inner))
            return replace(value, rows=noted) if isinstance(noted, (Affine, Hidden, Pointwise)) else value
    elif isinstance(value, Normalised):
        grid = _grid(value.layout, given, bits, signed)
        channels = value.base.channels
        arrays = [np.broadcast_to(array.reshape(-1).astype(np.float64), channels) for array in (grid.scale, grid.zero)]
        return replace(value, grid=Lattice(arrays[0], arrays[1], bits, signed))
    elif isinstance(value, Hidden):
        return replace(value, grid=_grid(value.layout, given, bits, signed))
    elif isinstance(value, Pointwise):
        form = match_activation(value.function)
        if form is not None:
            return Hidden(value.operand, form, grid=_grid(value.layout, given, bits, signed))
    elif isinstance(value, Affine):
        grid = _grid(value.layout, given, bits, signed)
        if _is_whole(value):
            context.builder.quantise(value.base.name, value.layout, grid)
        return replace(value, grid=grid)
    return value


def _is_whole(value: Affine) -> bool:
    """Whether the value is all channels of its base in order, in whatever layout."""
    if value.weight is not None or value.index is None or value.factor != 1 or value.bias.any():
        return False
    return np.array_equal(value.index, identity_index(value.layout))


def _is_image(value: Patches) -> bool:
    """Whether these are the tokens that the model takes."""
    size = value.layout.features
    plain = not (value.bias.any() or value.position.any() or value.leading) and value.patch == (1, 1, size)
    return plain and np.array_equal(value.weight.reshape(size, -1), np.eye(size))


def _note_image(context: Context, value: Pixels, given: Quantised, bits: int, signed: bool) -> None:
    """Pixels are quantised: those of the image itself have a lattice too, where the graph scales them all alike."""
    factor, offset = float(value.scale.flat[0]), float(value.offset.flat[0])
    if given.scale.size == 1 and (value.scale == factor).all() and (value.offset == offset).all() and factor > 0:
        scale = given.scale.reshape(1) / factor
        zero = given.zero.reshape(1).astype(np.float64) - offset / (scale * factor)
        context.builder.lattices[context.builder.image] = Lattice(scale, zero, bits, signed)


def _grid(layout: Layout, given: Quantised, bits: int, signed: bool) -> Grid:
    """Scale and zero point as component arrays.

    Raises:
        LayoutError: they differ from token to token.
    """
    shape = [1] * len(layout.dims)
    if given.scale.size > 1:
        axis = given.axis % len(shape)
        if any(entry.token for entry in layout.dims[axis]):
            raise LayoutError("a scale differs from token to token")
        shape[axis] = given.scale.size
    scale, zero = (
        align(layout, np.broadcast_to(a.reshape(-1), given.scale.size).reshape(shape))
        for a in (given.scale, given.zero)
    )
    return Grid(scale, zero.astype(np.float64), bits, signed)


RULES: Rules = (
    ("QuantizeLinear com.microsoft::QuantizeLinear", read_quantise),
    ("DequantizeLinear com.microsoft::DequantizeLinear", read_dequantise),
    (_MOVES, read_move),
)
