"""Experts that work on a fixed number of slots: dispatch einsum, experts on the slots, combine einsum.

Slots are read as features of one token without a place in the image, so that whatever runs on them (an expert a block, a loop,
an einsum over stacked weights) is read as it is elsewhere. What a slot holds and where its output goes is known from the samples:
where each slot holds one token at most and gives its output back to that token (a capacity), experts are weighed as by a gate;
where it holds a softmax of all tokens they are a soft mixture.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.builder import Slots
from moehls.frontend.context import Context, Result, Rules, UnsupportedError
from moehls.frontend.contraction import Labels, labels_of
from moehls.frontend.layout import Array, Axis, Layout, axes_of, transpose
from moehls.frontend.maps import identity_index
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.experts import sum_dims
from moehls.frontend.recognise.soft import soft_mixture
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.values import Affine, FeedForward, Routed, Tokens, Value

_REMEDY = (
    "let each slot of an expert hold one token, dispatched by a 0/1 tensor and combined by the gate weights of the same "
    "tokens (V-MoE, GShard), or be the softmax over all tokens (soft MoE); expert choice has no place on the accelerator"
)


def _operands(node: ir.Node, inputs: list[Value]) -> tuple[Routed, Tokens, Labels] | None:
    """The routed operand and the other, with the labels in this order; None for anything else."""
    if len(inputs) != 2:
        return None
    left, right = inputs
    if isinstance(left, Routed) and isinstance(right, TOKENS):
        return left, right, labels_of(node, len(left.shape), len(right.layout.dims))
    if isinstance(right, Routed) and isinstance(left, TOKENS):
        return right, left, labels_of(node, len(left.layout.dims), len(right.shape)).swapped
    return None


def read_dispatch(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Einsum or MatMul of a routed tensor with the tokens, summed over the tokens."""
    found = _operands(node, inputs)
    if found is None or isinstance(found[1], FeedForward):
        return None
    routed, tokens, labels = found
    dims = dict(zip(labels.right, tokens.layout.dims, strict=True))
    sizes = dict(zip(labels.left, routed.shape, strict=True))
    summed = [label for label in labels.left if label in dims and label not in labels.out and dims[label]]
    if len(summed) != 1 or not all(axis.token for axis in dims[summed[0]]):
        return None
    rows = context.builder.materialise(tokens)
    own = [label for label in labels.right if label in labels.out and dims[label]]
    if len(own) != 1 or any(axis.token for axis in dims[own[0]]) or rows.layout.tokens != sizes[summed[0]]:
        raise UnsupportedError(
            "tokens are mixed by weights that a softmax makes of them, neither as attention does nor into slots of experts",
            f"pool by a class token or the tokens' mean in place of a query that is learned; of experts, {_REMEDY}",
        )
    slots = [label for label in labels.out if label != own[0] and sizes.get(label, 1) != 1]
    order = [labels.left.index(label) for label in (summed[0], *slots)]
    rest = [i for i in range(len(labels.left)) if i not in order]
    dispatch = tuple(_matrix(sample, order, rest) for sample in routed.samples)
    base = context.builder.slots(Slots(rows.base, routed.source, dispatch), rows.base.channels)
    layout = Layout(
        tuple(dims[label] if label == own[0] else axes_of(sizes.get(label, 1), False) for label in labels.out)
    )
    places = layout.positions(labels.out.index(own[0]))
    channels = Layout((dims[own[0]],))
    index = identity_index(channels).reshape([axis.size if i in places else 1 for i, axis in enumerate(layout.axes)])
    return Affine(layout, base, None, index, np.zeros([1] * (len(layout.axes) + 1), np.float32))


def _matrix(sample: Array, order: list[int], rest: list[int]) -> Array:
    """`[first of order, the others flattened]`; `rest` are dimensions of size 1."""
    moved = sample.transpose(*order, *rest)
    return np.asarray(moved.reshape(moved.shape[0], -1), np.float64)


def read_combine(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Einsum or MatMul of the slots' outputs with a routed tensor, summed over the slots."""
    found = _operands(node, inputs)
    if found is None:
        return None
    routed, value, labels = found
    if not isinstance(value, FeedForward):
        return None
    slots = context.builder.slots_of(value.base)
    if slots is None:
        return None
    soft = any(not np.isin(held, (0, 1)).all() or (held.sum(axis=0) > 1).any() for held in slots.dispatch)
    if not soft and routed.source is not slots.source:
        raise UnsupportedError("slots are filled by one router and combined by another", _REMEDY)
    dims = dict(zip(labels.right, value.layout.dims, strict=True))
    summed = [label for label in labels.right if label not in labels.out and dims[label]]
    own = [label for label in labels.right if label in labels.out and dims[label]]
    sizes = dict(zip(labels.left, routed.shape, strict=True))
    token = [label for label in labels.left if label in labels.out and label not in labels.right and sizes[label] != 1]
    if len(own) != 1 or len(token) != 1 or any(label not in sizes for label in summed):
        raise UnsupportedError("the outputs of slots are combined in another way than token by token", _REMEDY)
    order = [labels.left.index(label) for label in (token[0], *summed)]
    rest = [i for i in range(len(labels.left)) if i not in order]
    combine = [_matrix(sample, order, rest) for sample in routed.samples]
    if combine[0].shape != slots.dispatch[0].shape:
        raise UnsupportedError(f"{combine[0].shape[1]} of {slots.dispatch[0].shape[1]} slots are combined", _REMEDY)
    wanted = [labels.right.index(label) for label in (*summed, own[0])]
    wanted += [i for i in range(len(labels.right)) if i not in wanted]
    ordered = restructure(value, *transpose(value.layout, wanted))
    layout = Layout(
        tuple(
            dims[own[0]] if label == own[0] else (Axis(sizes[label], True),) if label == token[0] else ()
            for label in labels.out
        )
    )
    experts = _by_expert(ordered, prod(sizes[label] for label in summed))
    if soft:
        return soft_mixture(context.builder, experts, slots, routed.source, combine, layout)
    return _capacity(experts, slots, combine, layout)


def _by_expert(value: FeedForward, slots: int) -> FeedForward:
    """Slots and channels `[*slot axes, *channel axes]` as `[experts, channels]`: slots of one expert follow each other."""
    axes = value.layout.axes
    count, product = 0, 1
    while product < slots:
        product *= axes[count].size
        count += 1
    every = (value.first, value.first_bias, value.second, value.second_bias, value.up, value.up_bias)
    arrays = [array for array in every if array is not None]
    if product != slots or value.selector is not None or value.coefficient is not None:
        raise UnsupportedError("slots and channels are mixed before they are combined", _REMEDY)
    varying = [i for i in range(count) if any(array.shape[i] != 1 for array in arrays)]
    leading = max(varying, default=-1) + 1
    experts = prod(axis.size for axis in axes[:leading])

    def move(array: Array) -> Array:
        inner = array.shape[count:]
        full = np.broadcast_to(array, (*(axis.size for axis in axes[:leading]), *array.shape[leading:]))
        return (
            full.reshape(experts, *inner)
            if any(array.shape[i] != 1 for i in range(leading))
            else array.reshape(1, *inner)
        )

    layout = Layout(((Axis(experts, False),), axes[count:]))
    if experts == 1:
        raise UnsupportedError("all slots go through one network", _REMEDY)
    return restructure(value, layout, move)


def _capacity(value: FeedForward, slots: Slots, combine: list[Array], layout: Layout) -> Value:
    """Each slot holds one token at most, and its output goes to that token: a coefficient a token and expert."""
    experts = value.layout.dims[0][0].size
    coefficients: list[Array] = []
    for held, given in zip(slots.dispatch, combine, strict=True):
        if given[held == 0].any():
            raise UnsupportedError("the output of a slot goes to another token than it holds", _REMEDY)
        coefficients.append(given.reshape(len(given), experts, -1).sum(axis=2))
    tokens = Axis(len(combine[0]), True)
    wide = Layout(((tokens,), *value.layout.dims))
    ones = [1] * (len(wide.axes) - 2)
    weighed = replace(
        restructure(value, wide, lambda array: array[None]),
        base=slots.base,
        coefficient=tuple(c.astype(np.float32).reshape(*c.shape, *ones) for c in coefficients),
        source=slots.source,
    )
    return replace(sum_dims(weighed, [1], False), layout=layout)


RULES: Rules = (
    ("MatMul Einsum", read_dispatch),
    ("MatMul Einsum", read_combine),
)
