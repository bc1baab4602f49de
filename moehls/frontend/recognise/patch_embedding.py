"""Patch embedding: a convolution whose stride is its kernel, or reshaped pixels times a matrix; class tokens and
positions."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.contraction import labels_of
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.layout import (
    Array,
    Axis,
    Layout,
    LayoutError,
    align,
    axes_of,
    expand,
    invariant,
    matrix_layout,
    merge_dim,
)
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.linear import table_of
from moehls.frontend.recognise.structure import chosen_indices
from moehls.frontend.values import Constant, Patches, Pixels, Value

_REMEDY = "embed non-overlapping patches: a Conv2d with stride equal to its kernel and no padding"
_MOVES = "Reshape Flatten Squeeze Unsqueeze Transpose Slice Gather Identity Concat Split Expand SpaceToDepth"
_ALONE = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"))


def read_convolution(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    image = inputs[0]
    if not isinstance(image, Pixels) or not all(isinstance(value, Constant) for value in inputs[1:]):
        return None
    weight, *rest = (value.array for value in inputs[1:] if isinstance(value, Constant))
    channels, height, width = image.index.shape[-3:]
    kernel = weight.shape[2:]
    plain = (
        weight.ndim == image.index.ndim == 4
        and weight.shape[1] == channels
        and attribute(node, "group", 1) == 1
        and tuple(attribute(node, "strides", (1, 1))) == kernel
        and not any(attribute(node, "pads", ()))
        and set(attribute(node, "dilations", (1,))) == {1}
        and attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
        and height % kernel[0] == 0
        and width % kernel[1] == 0
    )
    if not plain:
        raise UnsupportedError(f"a convolution with kernel {list(weight.shape)} that is not a patch embedding", _REMEDY)
    features, grid = weight.shape[0], (height // kernel[0], width // kernel[1])

    def patches(array: Array) -> Array:
        cells = array.reshape(channels, grid[0], kernel[0], grid[1], kernel[1])
        return cells.transpose(1, 3, 0, 2, 4).reshape(grid[0] * grid[1], -1)

    layout = Layout(((), axes_of(features, False), axes_of(grid[0], True), axes_of(grid[1], True)))
    rows = replace(image, index=patches(image.index), scale=patches(image.scale), offset=patches(image.offset))
    bias = rest[0] if rest else np.zeros(features)
    return _embedded(context, rows, weight.reshape(features, -1), bias, layout)


def _embedded(context: Context, pixels: Pixels, weight: Array, bias: Array, layout: Layout) -> Patches:
    """Rows of pixels, the patches one after the other, times `weight` `[features, pixels]`."""
    patch, places = _patch_of(pixels.index, pixels.image)
    scale, offset = pixels.scale, pixels.offset
    if not (np.all(scale == scale[0]) and np.all(offset == offset[0])):
        raise UnsupportedError("the image is normalised differently from patch to patch", _REMEDY)
    context.builder.note_image(pixels, patch)
    ordered = np.zeros(weight.shape, np.float64)
    ordered[:, places] = weight.astype(np.float64) * scale[0]
    total = (bias + weight.astype(np.float64) @ offset[0]).astype(np.float32)
    return _patches(layout, patch, _features(layout, ordered.astype(np.float32)), _features(layout, total))


def _features(layout: Layout, array: Array) -> Array:
    """`[features, …]` as `[*axes, …]` of a layout with one feature axis."""
    return array.reshape(*(1 if axis.token else axis.size for axis in layout.axes), *array.shape[1:])


def _patches(layout: Layout, patch: tuple[int, int, int], weight: Array, bias: Array) -> Patches:
    return Patches(layout, patch, weight, bias, _zeros(layout), _zeros(layout), 0)


def token_matrix(tokens: int, channels: int) -> Patches:
    """An input `[1, tokens, channels]`: patches of one row of an image of one channel, embedded as they are."""
    layout = matrix_layout((1, tokens, channels), 1)
    return _patches(layout, (1, 1, channels), _features(layout, np.eye(channels, dtype=np.float32)), _zeros(layout))


def _zeros(layout: Layout) -> Array:
    return np.zeros([1] * len(layout.axes), np.float32)


def read_move(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Any data movement of the image's elements, done on their numbers."""
    if not isinstance(inputs[0], Pixels) or not all(isinstance(value, (Constant, Pixels)) for value in inputs):
        return None
    evaluate = NodeEvaluator(node, context.opset)
    fields = []
    for name in ("index", "scale", "offset"):
        arrays = [
            getattr(value, name) if isinstance(value, Pixels) else value.array
            for value in inputs
            if isinstance(value, (Pixels, Constant))
        ]
        fields.append(evaluate(arrays))
    return [
        replace(inputs[0], index=index.astype(np.int64), scale=scale, offset=offset)
        for index, scale, offset in zip(*fields, strict=True)
    ]


def read_cast(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Pixels as another type that holds their values."""
    image = inputs[0]
    if not isinstance(image, Pixels):
        return None
    integer = ir.DataType(attribute(node, "to", 1)).is_integer()
    if integer and not image.integer:
        raise UnsupportedError("pixels are rounded to integers", "give the graph pixels of the type it computes with")
    return replace(image, integer=integer)


def read_normalisation(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Pixels scaled or shifted by constants."""
    swapped = isinstance(inputs[1], Pixels)
    image, table = (inputs[1], table_of(inputs[0])) if swapped else (inputs[0], table_of(inputs[1]))
    if not isinstance(image, Pixels) or table is None or table.shape[0] != 1 or (swapped and node.op_type == "Div"):
        return None
    if image.integer:
        raise UnsupportedError("integer pixels are computed with as integers", "cast the image to float32 first")
    constant = table[0].astype(np.float64)
    shape = np.broadcast_shapes(constant.shape, image.index.shape)
    if prod(shape) != image.index.size:
        return None
    factor, shift = np.ones(()), np.zeros(())
    match node.op_type:
        case "Add":
            shift = constant
        case "Sub":
            factor, shift = (-factor, constant) if swapped else (factor, -constant)
        case "Mul":
            factor = constant
        case _:
            factor = 1 / constant
    return replace(
        image,
        index=image.index.reshape(shape),
        scale=image.scale.reshape(shape) * factor,
        offset=image.offset.reshape(shape) * factor + shift,
    )


def read_patch_norm(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Layer normalisation of raw patches (vit-pytorch): the host normalises them, its gain and offset go on."""
    image = inputs[0]
    if not isinstance(image, Pixels) or not all(isinstance(value, Constant) for value in inputs[1:]):
        return None
    if attribute(node, "axis", -1) not in (-1, image.index.ndim - 1) or image.patch_norm is not None:
        raise UnsupportedError("the image is normalised over something else than its patches", _REMEDY)
    rows = image.index.reshape(-1, image.index.shape[-1])
    _patch_of(rows, image.image)
    scale = float(image.scale.reshape(-1)[0])
    if not (image.scale == scale).all() or (image.offset != image.offset.reshape(-1)[0]).any() or scale <= 0:
        raise UnsupportedError(
            "patches are normalised whose channels were scaled each by itself",
            "normalise the image before the model, or its patches in it, not both",
        )
    gain, *shift = (value.array.astype(np.float64) for value in inputs[1:] if isinstance(value, Constant))
    offset = shift[0] if shift else np.zeros(1)
    epsilon, shifted = float(attribute(node, "epsilon", 1e-5)) / scale**2, float(image.offset.reshape(-1)[0])
    shape = image.index.shape
    scales, offsets = np.broadcast_to(gain, shape), np.broadcast_to(offset, shape)
    return replace(image, scale=scales, offset=offsets, patch_norm=(epsilon, scale, shifted))


def read_product(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Pixels cut into patches times a matrix."""
    image, matrix = inputs[0], inputs[1]
    if not isinstance(image, Pixels) or not isinstance(matrix, Constant) or matrix.array.ndim != 2:
        return None
    labels = labels_of(node, image.index.ndim, 2)
    inner = labels.right.index(labels.left[-1])
    weight = matrix.array.T if inner == 0 else matrix.array
    index, scale, offset = (
        array.reshape(-1, image.index.shape[-1]) for array in (image.index, image.scale, image.offset)
    )
    shape = [*image.index.shape[:-1], weight.shape[0]]
    layout = Layout(tuple(axes_of(size, dim < len(shape) - 1) for dim, size in enumerate(shape)))
    rows = replace(image, index=index, scale=scale, offset=offset)
    result = _embedded(context, rows, weight, np.zeros(len(weight)), layout)
    if len(inputs) > 2:
        table = table_of(inputs[2])
        return None if table is None else add_rows(result, table)
    return result


def read_projection(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Embedded tokens times a matrix: another embedding, unless they go on beside it as the residual stream."""
    value, matrix = inputs[0], inputs[1]
    if not isinstance(value, Patches) or not isinstance(matrix, Constant) or matrix.array.ndim != 2:
        return None
    if _goes_on(node.inputs[0]):
        return None
    labels = labels_of(node, len(value.layout.dims), 2)
    inner = labels.right.index(labels.left[-1])
    last = value.layout.dims[-1]
    plain = len(last) == 1 and not last[0].token and value.layout.features == last[0].size
    if inner not in (0, 1) or labels.out[:-1] != labels.left[:-1] or not plain:
        return None
    weight = (matrix.array if inner == 0 else matrix.array.T).astype(np.float32) * np.float32(
        attribute(node, "alpha", 1.0)
    )
    place, size = len(value.layout.axes) - 1, last[0].size

    def projected(array: Array) -> Array:
        wide = np.broadcast_to(array, (*array.shape[:place], size, *array.shape[place + 1 :]))
        return np.moveaxis(np.moveaxis(wide, place, -1) @ weight, -1, place)

    layout = Layout((*value.layout.dims[:-1], axes_of(weight.shape[1], False)))
    if weight.shape[1] == 1:
        return None
    result = replace(
        value,
        layout=layout,
        weight=projected(value.weight),
        bias=projected(value.bias),
        prefix=projected(value.prefix),
        position=projected(value.position),
    )
    if len(inputs) == 2:
        return result
    table = table_of(inputs[2])
    return None if table is None else add_rows(result, table * np.float32(attribute(node, "beta", 1.0)))


def _goes_on(value: ir.Value | None) -> bool:
    """Whether several nodes read the value, or what it was moved from: the first block of post-norm encoders has no norm."""
    while value is not None:
        if len({use.node for use in value.uses() if use.node.op_type not in ("Shape", "Size")}) > 1:
            return True
        mover = value.producer()
        value = mover.inputs[0] if mover is not None and mover.op_type in _ALONE else None
    return False


def read_slice(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Leading tokens alone, which are constants, or the embedding with fewer of them."""
    value = inputs[0]
    if not isinstance(value, Patches) or not all(isinstance(item, Constant) for item in inputs[1:]):
        return None
    dims = [dim for dim, group in enumerate(value.layout.dims) if any(axis.token for axis in group)]
    if len(dims) != 1 or len(value.layout.dims[dims[0]]) != 1:
        return None
    dim, count = dims[0], value.layout.shape[dims[0]]
    places = chosen_indices(node, inputs, dim, count, context.opset)
    start, stop = int(places[0]), int(places[-1]) + 1
    if not np.array_equal(places, np.arange(start, stop)):
        return None
    position = value.layout.positions(dim).start

    def rows(array: Array) -> Array:
        return array[(slice(None),) * position + (slice(start, stop),)] if array.shape[position] != 1 else array

    if stop <= value.leading:
        sizes = [stop - start if axis.token else axis.size for axis in value.layout.axes]
        shape = [stop - start if i == dim else size for i, size in enumerate(value.layout.shape)]
        constant = np.broadcast_to(rows(value.prefix), sizes) + rows(value.position)
        return Constant(np.asarray(constant, np.float32).reshape(shape))
    if stop < count or start > value.leading:
        return None
    layout = Layout((*value.layout.dims[:dim], axes_of(stop - start, True), *value.layout.dims[dim + 1 :]))
    if stop - start == 1:
        return None
    prefix, kept = rows(value.prefix), rows(value.position)
    return replace(value, layout=layout, prefix=prefix, position=kept, leading=value.leading - start)


def _patch_of(rows: Array, image: tuple[int, int, int]) -> tuple[tuple[int, int, int], Array]:
    """The patch `(channels, height, width)` the rows of element numbers hold, and each element's place in the patch.

    Raises:
        UnsupportedError: the rows are not the image's patches in row-major order.
    """
    channels, height, width = image
    y, x = np.divmod(rows[0] % (height * width), width)
    patch = (channels, int(y.max()) + 1, int(x.max()) + 1)
    places = (rows[0] // (height * width)) * patch[1] * patch[2] + y * patch[2] + x
    whole = prod(patch) == rows.shape[1] and len(set(places.tolist())) == rows.shape[1]
    if whole and height % patch[1] == 0 and width % patch[2] == 0:
        top, left = np.meshgrid(np.arange(0, height, patch[1]), np.arange(0, width, patch[2]), indexing="ij")
        corners = (top * width + left).reshape(-1, 1)
        if rows.shape[0] == len(corners) and np.array_equal(rows, rows[:1] + corners):
            return patch, places
    raise UnsupportedError("the rows of pixels are not the image's patches, row by row", _REMEDY)


def add_rows(value: Patches, table: Array) -> Patches:
    """Add a constant: a bias before the class token joins, a position otherwise."""
    if table.shape[0] != 1:
        raise LayoutError("positions depend on the task")
    if not table.any():
        return value
    shape = np.broadcast_shapes(value.layout.shape, table.shape[1:])
    value = restructure(value, *expand(value.layout, shape))
    if value.leading == 0:
        try:
            return replace(value, bias=value.bias + invariant(value.layout, table)[..., 0])
        except LayoutError:
            pass
    return replace(value, position=value.position + align(value.layout, table[0]))


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if isinstance(value, Patches) and table is not None:
            if node.op_type == "Sub":
                return add_rows(value, -table) if other is inputs[1] else None
            return add_rows(value, table)
    return None


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A constant, or one a channel, that the embedded tokens are multiplied with or divided by."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if not isinstance(value, Patches) or table is None or table.shape[0] != 1:
            continue
        shape = value.layout.shape
        if np.broadcast_shapes(shape, table.shape[1:]) != shape or (node.op_type == "Div" and other is inputs[0]):
            return None
        scale = invariant(value.layout, 1 / table if node.op_type == "Div" else table)[..., 0]
        prefix, position = value.prefix * scale, value.position * scale
        return replace(
            value, weight=value.weight * scale[..., None], bias=value.bias * scale, prefix=prefix, position=position
        )
    return None


def read_concat(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Constant tokens put before the patches."""
    value = inputs[-1]
    if not isinstance(value, Patches):
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    if not any(axis.token for axis in value.layout.dims[dim]):
        return None
    if not all(isinstance(item, Constant) for item in inputs[:-1]):
        raise UnsupportedError(
            "tokens are joined to the patches that are not constants", "put constant tokens before the patches"
        )
    value = restructure(value, *merge_dim(value.layout, dim))
    if sum(axis.token for axis in value.layout.axes) != 1:
        raise LayoutError("tokens are joined along one of several token dimensions")
    constants = np.concatenate([item.array for item in inputs[:-1] if isinstance(item, Constant)], axis=dim)
    return _prepend(value, constants.astype(np.float32), dim)


def _prepend(value: Patches, constants: Array, dim: int) -> Patches:
    """`constants` (of the tensor's rank) as tokens before all others."""
    count, tokens = constants.shape[dim], value.layout.tokens
    dims = value.layout.dims
    layout = Layout((*dims[:dim], (Axis(count + tokens, True),), *dims[dim + 1 :]))
    head = Layout((*dims[:dim], axes_of(count, True), *dims[dim + 1 :]))
    position = layout.positions(dim).start

    def stack(top: Array, bottom: Array) -> Array:
        sizes = [axis.size for axis in layout.axes]
        parts = []
        for part, extent in ((top, count), (bottom, tokens)):
            parts.append(np.broadcast_to(part, [extent if i == position else size for i, size in enumerate(sizes)]))
        return np.concatenate(parts, axis=position)

    rows = align(head, constants)
    rows = np.expand_dims(rows, position) if count == 1 else rows
    zeros = np.zeros([1] * len(layout.axes), np.float32)
    return replace(
        value,
        layout=layout,
        prefix=stack(rows, value.prefix),
        position=stack(zeros, value.position) if value.position.any() else zeros,
        leading=value.leading + count,
    )


RULES: Rules = (
    ("Conv", read_convolution),
    (_MOVES, read_move),
    ("Cast", read_cast),
    ("Add Sub Mul Div", read_normalisation),
    ("LayerNormalization", read_patch_norm),
    ("MatMul Gemm", read_product),
    ("MatMul Gemm", read_projection),
    ("Slice", read_slice),
    ("Add Sub", read_add),
    ("Mul Div", read_scale),
    ("Concat", read_concat),
)
