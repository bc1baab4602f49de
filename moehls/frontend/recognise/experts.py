"""Expert layers: feed-forward networks weighed by routed coefficients and summed.

Styles differ only in how the coefficients are made (sampled, see `routing.py`) and in where the experts lie: on an
axis of one tensor (einsum, batched matmul, stacked loop), in one branch each (loop with mask), or in weights gathered
by expert index. A sum over that axis, or over the branches, is a `Mixture`: one term an expert with the coefficient
each sampled token gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import Context, Result, Rules, UnsupportedError, attribute, integers
from moehls.frontend.contraction import Labels, joint_selector, labels_of
from moehls.frontend.layout import (
    Array,
    Axis,
    Layout,
    LayoutError,
    align,
    component,
    drop_dims,
    expand,
    invariant,
    transpose,
)
from moehls.frontend.maps import folded, full_features
from moehls.frontend.moves import restructure
from moehls.frontend.recognise.linear import table_of
from moehls.frontend.values import (
    Affine,
    Constant,
    ExpertTerm,
    FeedForward,
    Gathered,
    Mixture,
    Routed,
    Selector,
    Value,
    Weighing,
)


def weigh(value: FeedForward, routed: Routed) -> FeedForward:
    """Multiply by a coefficient a token (and expert or slot)."""
    shape = np.broadcast_shapes(value.layout.shape, routed.shape)
    value = restructure(value, *expand(value.layout, shape))
    samples = tuple(align(value.layout, sample) for sample in routed.samples)
    if value.source not in (None, routed.source):
        raise UnsupportedError("an expert's output is weighed by two routers", "let each expert layer use one router")
    if value.coefficient is not None:
        samples = tuple(a * b for a, b in zip(value.coefficient, samples, strict=True))
    return replace(value, coefficient=samples, source=routed.source)


def read_weigh(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if isinstance(value, FeedForward) and isinstance(other, Routed):
            return weigh(value, other)
        if isinstance(value, Mixture) and isinstance(other, Routed):
            return weigh_sum(value, other)
        if isinstance(value, Affine) and isinstance(other, Routed) and not value.bias.any():
            return weigh_inputs(value, other)
    return None


def read_where(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The output of an expert for the tokens that chose it, zeros for the others."""
    mask, *sides = inputs
    if not isinstance(mask, Routed):
        return None
    for place, (value, other) in enumerate(((sides[0], sides[1]), (sides[1], sides[0]))):
        if isinstance(value, FeedForward) and isinstance(other, Constant) and not other.array.any():
            samples = tuple((sample != bool(place)).astype(np.float32) for sample in mask.samples)
            return weigh(value, replace(mask, samples=samples))
    return None


def weigh_sum(value: Mixture, routed: Routed) -> Mixture | None:
    """A sum of experts times a number a token, as the one probability of a top-1 router."""
    if routed.source is not value.source or np.broadcast_shapes(value.layout.shape, routed.shape) != value.layout.shape:
        return None
    factor = _rows(value.layout, [align(value.layout, sample) for sample in routed.samples])
    return replace(value, terms=tuple(replace(term, coefficient=term.coefficient * factor) for term in value.terms))


def weigh_inputs(value: Affine, routed: Routed) -> Affine | None:
    """Tokens times a gate weight each (Llama 4), in the place of the experts' outputs."""
    if value.base.stand_in or value.weighing is not None or value.selector is not None:
        return None
    shape = np.broadcast_shapes(value.layout.shape, routed.shape)
    wide = restructure(value, *expand(value.layout, shape))
    samples = tuple(align(wide.layout, sample) for sample in routed.samples)
    return replace(wide, weighing=Weighing(routed.source, samples), grid=None)


def read_gathered_bias(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A bias gathered by expert index."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if not isinstance(other, Gathered) or not isinstance(value, (Affine, FeedForward)):
            continue
        shape = np.broadcast_shapes(value.layout.shape, other.shape)
        wide = restructure(value, *expand(value.layout, shape))
        bias = component(wide.layout, other.table)
        trailing = (1,) * (other.table.ndim - 1)
        samples = tuple(align(wide.layout, sample.reshape(*sample.shape, *trailing)) for sample in other.index.samples)
        selector = joint_selector(wide.selector, Selector(other.index.source, samples))
        if isinstance(wide, Affine):
            wide = folded(wide)
            return replace(wide, bias=wide.bias + bias, selector=selector, grid=None)
        if wide.coefficient is not None:
            return None
        return replace(wide, second_bias=wide.second_bias + bias, selector=selector)
    return None


def read_sum(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """ReduceSum over the experts or over the chosen slots."""
    value = inputs[0]
    if not isinstance(value, FeedForward):
        return None
    rank = len(value.layout.dims)
    axes = (
        node.attributes["axes"].value if "axes" in node.attributes else integers(inputs[1]) if len(inputs) > 1 else None
    )
    if axes is None:
        raise LayoutError("it sums over all dimensions")
    return sum_dims(value, [axis % rank for axis in axes], bool(attribute(node, "keepdims", 1)))


def sum_dims(value: FeedForward, dims: list[int], keep: bool) -> Mixture:
    """The sum over feature dimensions as a mixture of experts."""
    positions = [p for dim in dims for p in value.layout.positions(dim)]
    if any(value.layout.axes[p].token for p in positions):
        raise LayoutError("it sums over the tokens")
    source = value.source or (value.selector.source if value.selector is not None else None)
    source = source or (value.weighing.source if value.weighing is not None else None)
    if source is None or source == "task":
        raise LayoutError("networks side by side are summed without a router that weighs them")
    layout = drop_dims(value.layout, dims, keep)
    terms = tuple(_terms(value, positions, layout, len(source.samples)))
    return Mixture(layout, value.base, value.form, terms, source)


def _terms(value: FeedForward, positions: list[int], layout: Layout, count: int) -> Iterator[ExpertTerm]:
    """One term for each expert: each place along the summed axes, each variant of gathered weights."""
    gated = () if value.up is None or value.up_bias is None else (value.up, value.up_bias)
    arrays = (value.first, value.first_bias, value.second, value.second_bias, *gated)
    ones = np.ones([1] * len(value.layout.axes), np.float32)
    coefficient = value.coefficient or (ones,) * count
    selector = value.selector.samples if value.selector is not None else None
    variants = max(array.shape[len(value.layout.axes)] for array in arrays)
    varying = [p for p in positions if any(array.shape[p] != 1 for array in arrays)]
    shared = [p for p in positions if p not in varying]
    for place in product(*(range(value.layout.axes[p].size) for p in varying)):
        for variant in range(variants):
            weighed: list[Array] = []
            for number, sample in enumerate(coefficient):
                if selector is not None:
                    sample = sample * (selector[number] == variant)
                full = [value.layout.axes[p].size if p in shared else extent for p, extent in enumerate(sample.shape)]
                sample = np.broadcast_to(sample, full).sum(axis=tuple(shared), keepdims=True)
                weighed.append(_cut(sample, varying, place, positions))
            own = (_variant(_cut(array, varying, place, positions), len(layout.axes), variant) for array in arrays)
            term = replace(_term(layout, weighed, *own), grid=value.grid, up_grid=value.up_grid)
            if value.weighing is not None:
                if any(sample.shape[p] != 1 for sample in value.weighing.samples for p in shared):
                    raise LayoutError("one expert reads a token several times, weighed differently")
                given = [_cut(sample, varying, place, positions) for sample in value.weighing.samples]
                term = replace(term, inputs=_rows(layout, given))
            yield term


def _cut(array: Array, varying: list[int], place: tuple[int, ...], positions: list[int]) -> Array:
    """The array at one place of the summed axes, without them."""
    chosen = dict(zip(varying, place, strict=True))
    index = [min(chosen.get(p, 0), array.shape[p] - 1) if p in positions else slice(None) for p in range(array.ndim)]
    return np.asarray(array[tuple(index)])


def _variant(array: Array, position: int, variant: int) -> Array:
    return np.asarray(np.moveaxis(array, position, 0)[min(variant, array.shape[position] - 1)])


def _term(
    layout: Layout,
    coefficient: list[Array],
    first: Array,
    first_bias: Array,
    second: Array,
    second_bias: Array,
    up: Array | None = None,
    up_bias: Array | None = None,
) -> ExpertTerm:
    """A term from components `[*axes, …]` of the sum's layout."""
    count = len(layout.axes)
    inner = [array for array in (first, first_bias, up, up_bias) if array is not None]
    if any(extent != 1 for array in inner for extent in array.shape[:count]):
        raise LayoutError("an expert's hidden layer differs from output to output")
    hidden, channels = first.shape[-2:]
    return ExpertTerm(
        np.ascontiguousarray(first.reshape(hidden, channels)),
        np.broadcast_to(first_bias.reshape(-1), (hidden,)),
        full_features(layout, second),
        full_features(layout, second_bias),
        _rows(layout, coefficient),
        None if up is None else np.ascontiguousarray(up.reshape(hidden, channels)),
        None if up_bias is None else np.broadcast_to(up_bias.reshape(-1), (hidden,)),
    )


def _rows(layout: Layout, samples: list[Array]) -> Array:
    """`[samples · tokens]` of what each token has `[*axes]`."""
    if any(sample.shape[p] != 1 for sample in samples for p in layout.feature_positions):
        raise LayoutError("an expert's weight differs from channel to channel")
    tokens = [axis.size if axis.token else 1 for axis in layout.axes]
    return np.concatenate([np.broadcast_to(sample, tokens).reshape(-1) for sample in samples])


def as_mixture(value: Value) -> Mixture | None:
    """A mixture, or a weighed network that is one term of a sum, or one of several that routing picks from."""
    if isinstance(value, FeedForward) and (value.coefficient is not None or value.weighing is not None):
        return sum_dims(value, [], False)
    return value if isinstance(value, Mixture) else None


def read_add(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """The sum of expert branches, one after the other."""
    left, right = as_mixture(inputs[0]), as_mixture(inputs[1])
    if left is None or right is None or left.source is not right.source:
        return None
    if (left.layout, left.base, left.form) != (right.layout, right.base, right.form):
        return None
    return replace(left, terms=left.terms + right.terms)


def read_product(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """Einsum or MatMul of the experts' outputs with the gate weights: weigh and sum in one."""
    if len(inputs) != 2:
        return None
    for swap, (value, other) in enumerate(((inputs[0], inputs[1]), (inputs[1], inputs[0]))):
        if not isinstance(value, FeedForward) or not isinstance(other, Routed):
            continue
        ranks = (len(value.layout.dims), len(other.shape))
        labels = labels_of(node, *(reversed(ranks) if swap else ranks))
        return _weigh_and_sum(value, other, labels.swapped if swap else labels)
    return None


def _weigh_and_sum(value: FeedForward, routed: Routed, labels: Labels) -> Mixture | FeedForward:
    summed = [label for label in labels.left if label not in labels.out]
    if any(label not in labels.out and label not in summed for label in labels.right):
        raise LayoutError("it sums the gate weights alone")
    wanted = (*labels.out, *summed)
    have = [label for label in wanted if label in labels.left]
    value = restructure(value, *transpose(value.layout, [labels.left.index(label) for label in have]))
    dims = iter(value.layout.dims)
    layout = Layout(tuple(next(dims) if label in labels.left else () for label in wanted))
    value = replace(value, layout=layout)
    order = [labels.right.index(label) for label in wanted if label in labels.right]
    sizes = dict(zip(labels.right, routed.shape, strict=True))
    samples = tuple(
        sample.transpose(order).reshape([sizes.get(label, 1) for label in wanted]) for sample in routed.samples
    )
    weighed = weigh(value, replace(routed, samples=samples))
    return sum_dims(weighed, list(range(len(labels.out), len(wanted))), False) if summed else weighed


def read_choice(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """GatherElements along stacked experts, with expert indices repeated over the channels."""
    value, index = inputs[0], inputs[1]
    if not isinstance(value, FeedForward) or not isinstance(index, Routed):
        return None
    if value.selector is not None or value.weighing is not None:
        return None
    dim = attribute(node, "axis", 0) % len(value.layout.dims)
    group = value.layout.dims[dim]
    if len(group) != 1 or group[0].token or value.coefficient is not None:
        return None
    position, count = value.layout.positions(dim).start, len(value.layout.axes)
    slots = index.shape[dim]
    slot_axis = (Axis(slots, False),) if slots != 1 else ()
    layout = Layout((*value.layout.dims[:dim], slot_axis, *value.layout.dims[dim + 1 :]))

    def choose(array: Array) -> Array:
        moved = np.moveaxis(array, position, count - 1)  # beside the variants axis, which has size 1
        moved = moved.squeeze(count)
        return np.expand_dims(moved, position) if slot_axis else moved

    samples = tuple(_constant_channels(layout, align(layout, sample)) for sample in index.samples)
    return replace(
        value,
        layout=layout,
        first=choose(value.first),
        first_bias=choose(value.first_bias),
        second=choose(value.second),
        second_bias=choose(value.second_bias),
        up=None if value.up is None else choose(value.up),
        up_bias=None if value.up_bias is None else choose(value.up_bias),
        selector=Selector(index.source, samples),
    )


def _constant_channels(layout: Layout, sample: Array) -> Array:
    """Indices that are the same for all channels of the last dimension, with size 1 there."""
    for position in layout.positions(len(layout.dims) - 1):
        head = np.take(sample, [0], axis=position)
        if not np.array_equal(np.broadcast_to(head, sample.shape), sample):
            raise LayoutError("channels of one token come from different experts")
        sample = head
    return sample


def read_zero(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """A sum that starts from zeros."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if isinstance(value, (FeedForward, Mixture)) and table is not None and not table.any():
            return value if np.broadcast_shapes(value.layout.shape, table.shape[1:]) == value.layout.shape else None
    return None


def read_scale(context: Context, node: ir.Node, inputs: list[Value]) -> Result:
    """LayerScale on a sum of experts: a factor a channel goes to every expert's second layer."""
    for value, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        table = table_of(other)
        if not isinstance(value, Mixture) or table is None or table.shape[0] != 1:
            continue
        if np.broadcast_shapes(value.layout.shape, table.shape[1:]) != value.layout.shape:
            return None
        scale = full_features(value.layout, invariant(value.layout, table))[:, 0].astype(np.float32)
        terms = tuple(
            replace(term, second=term.second * scale[:, None], second_bias=term.second_bias * scale)
            for term in value.terms
        )
        return replace(value, terms=terms)
    return None


RULES: Rules = (
    ("Mul", read_weigh),
    ("Where", read_where),
    ("Add", read_zero),
    ("Add", read_gathered_bias),
    ("Add", read_add),
    ("ReduceSum", read_sum),
    ("MatMul Einsum", read_product),
    ("GatherElements", read_choice),
    ("Mul", read_scale),
)
