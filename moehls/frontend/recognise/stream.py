"""Class tokens and positions that join behind a normalisation of the embedded patches (vit-pytorch's second `nn.LayerNorm`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute
from moehls.frontend.recognise.linear import table_of
from moehls.frontend.starts import start_of, with_leading, with_positions
from moehls.frontend.values import Affine, Constant, Normalised, Value


def read_positions(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A constant that differs from token to token."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if not isinstance(value, Normalised | Affine) or table is None or table.shape[0] != 1:
            continue
        shape = value.layout.shape
        if np.broadcast_shapes(shape, table[0].shape) != shape or not _differs(table[0]):
            continue
        found = start_of(context.builder, value)
        if found is not None:
            return with_positions(context.builder, *found, table[0])
    return None


def _differs(constant: np.ndarray) -> bool:
    """Whether it is not the same along the dimensions before the last."""
    rows = constant.reshape(-1, constant.shape[-1]) if constant.ndim > 1 else constant[None]
    return bool((rows != rows[0]).any())


def read_concat(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Constant tokens before the others."""
    value = inputs[-1]
    constants = [item.array for item in inputs[:-1] if isinstance(item, Constant)]
    if not isinstance(value, Normalised | Affine) or not constants or len(constants) + 1 != len(inputs):
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    if not any(axis.token for axis in value.layout.dims[dim]):
        return None
    found = start_of(context.builder, value)
    if found is None:
        raise UnsupportedError(
            "constant tokens are put before tokens that are no longer the embedded patches",
            "join class and register tokens to the embedded patches, or to a normalisation of them, before the first block",
        )
    return with_leading(context.builder, *found, dim, np.concatenate(constants, axis=dim))


RULES: Rules = (
    ("Add", read_positions),
    ("Concat", read_concat),
)
