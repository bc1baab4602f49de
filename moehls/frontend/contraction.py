"""Matrix products as index sums: MatMul, Gemm and Einsum of a token value with weights, in any order of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import UnsupportedError, attribute
from moehls.frontend.layout import Array, Layout, LayoutError, align, axes_of
from moehls.frontend.maps import with_weight
from moehls.frontend.values import Affine, Constant, Gathered, PerTask, Selector, Value, Weighing

VARIANT, CHANNEL, HIDDEN = -1, -2, -3
"""Axis numbers of the trailing component axes."""


@dataclass(frozen=True)
class Labels:
    """`left, right -> out`, one label a tensor dimension; a label in both operands and not in `out` is summed."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    out: tuple[str, ...]

    @property
    def swapped(self) -> Labels:
        return Labels(self.right, self.left, self.out)


def matmul_labels(left_rank: int, right_rank: int) -> Labels:
    """Labels of MatMul by NumPy's rules."""
    batch = max(left_rank, right_rank) - 2
    names = [f"b{i}" for i in range(max(batch, 0))]
    left = (*names[len(names) - max(left_rank - 2, 0) :], *(("i", "k") if left_rank > 1 else ("k",)))
    right = (*names[len(names) - max(right_rank - 2, 0) :], *(("k", "j") if right_rank > 1 else ("k",)))
    out = (*names, *(("i",) if left_rank > 1 else ()), *(("j",) if right_rank > 1 else ()))
    return Labels(left, right, out)


def labels_of(node: ir.Node, left_rank: int, right_rank: int) -> Labels:
    """Labels of a MatMul, Gemm or two-operand Einsum node.

    Raises:
        UnsupportedError: an Einsum of another form.
    """
    if node.op_type == "MatMul":
        return matmul_labels(left_rank, right_rank)
    if node.op_type == "Gemm":
        left = ("k", "i") if attribute(node, "transA", 0) else ("i", "k")
        right = ("j", "k") if attribute(node, "transB", 0) else ("k", "j")
        return Labels(left, right, ("i", "j"))
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    terms, arrow, out = equation.partition("->")
    operands = terms.split(",")
    plain = all(term.isalpha() and len(set(term)) == len(term) for term in [*operands, out or "a"])
    if not arrow or len(operands) != 2 or not plain or (len(operands[0]), len(operands[1])) != (left_rank, right_rank):
        raise UnsupportedError(f"the equation {equation!r} is not a plain product of two tensors", "write it as matmul")
    return Labels(tuple(operands[0]), tuple(operands[1]), tuple(out))


@dataclass(frozen=True)
class Weights:
    """A weight operand: `array[variant, …]`; the first `index_rank` labels are those of the index that picks the
    variant."""

    array: Array
    shape: tuple[int, ...]
    """tensor shape, the index dimensions included"""
    index_rank: int = 0
    selector: Selector | None = None


def weights_of(value: Value) -> Weights | None:
    """A constant, a per-task table or weights gathered by expert index; None for anything else."""
    if isinstance(value, Constant) and np.issubdtype(value.array.dtype, np.floating):
        return Weights(value.array[None], value.array.shape)
    if isinstance(value, PerTask):
        return Weights(value.table, value.table.shape[1:], 0, Selector("task"))
    if isinstance(value, Gathered):
        index = value.index
        return Weights(value.table, value.shape, len(index.shape), Selector(index.source, index.samples))
    return None


@dataclass(frozen=True)
class Plan:
    """Axis numbers of a product: those of the left operand, of the weights and of the result."""

    left: tuple[int, ...]
    right: tuple[int, ...]
    out: tuple[int, ...]
    summed: tuple[int, ...]
    array: Array
    """the weights as `[variant, *right]`"""
    layout: Layout
    selector: Selector | None


def plan(layout: Layout, weights: Weights, labels: Labels) -> Plan:
    """Number the axes of `left · weights`.

    Raises:
        LayoutError: the sum runs over tokens, or the weights differ from token to token.
    """
    axes = list(layout.axes)
    ids: dict[str, list[int]] = {label: list(layout.positions(dim)) for dim, label in enumerate(labels.left)}
    for label, size in zip(labels.right, weights.shape, strict=True):
        known = ids.setdefault(label, [])
        if size != 1 and not known:
            axes += axes_of(size, False)
            known.append(len(axes) - 1)
        elif size not in (1, prod(axes[i].size for i in known)):
            raise LayoutError(f"sizes differ along a dimension of {size}")
    table_labels = labels.right[weights.index_rank :]
    table_shape = weights.shape[weights.index_rank :]
    right = [i for label, size in zip(table_labels, table_shape, strict=True) if size != 1 for i in ids[label]]
    summed = tuple(i for label in labels.left if label not in labels.out for i in ids[label])
    if any(axes[i].token for i in summed):
        raise LayoutError("it sums over the tokens, as mean pooling does")
    if any(axes[i].token for i in right):
        raise LayoutError("its weight differs from token to token")
    if set(summed) - set(right) or any(label not in labels.out and label not in labels.left for label in labels.right):
        raise LayoutError("it sums one operand alone")
    out_layout = Layout(tuple(tuple(axes[i] for i in ids[label]) for label in labels.out))
    array = weights.array.reshape(weights.array.shape[0], *(axes[i].size for i in right))
    selector = weights.selector
    if selector is not None and selector.samples:
        index_labels = labels.right[: weights.index_rank]
        samples = tuple(_placed(sample, index_labels, labels.out, out_layout) for sample in selector.samples)
        selector = replace(selector, samples=samples)
    out = tuple(i for label in labels.out for i in ids[label])
    return Plan(tuple(range(len(layout.axes))), tuple(right), out, summed, array, out_layout, selector)


def _placed(sample: Array, labels: Sequence[str], out: Sequence[str], layout: Layout) -> Array:
    """A tensor with dimensions `labels` as a component array of a result with dimensions `out`."""
    if any(label not in out for label in labels):
        raise LayoutError("it sums over the chosen experts before they are weighed")
    kept = [label for label in out if label in labels]
    moved = sample.transpose([list(labels).index(label) for label in kept])
    sizes = iter(moved.shape)
    return align(layout, moved.reshape([next(sizes) if label in labels else 1 for label in out]))


def product(left: Array, left_ids: Sequence[int], right: Array, right_ids: Sequence[int], out: Sequence[int]) -> Array:
    """Sum of products over the axes not in `out`; an axis of size 1 is taken as constant along that axis."""
    squeezed: list[Any] = []
    present: dict[int, int] = {}
    for array, ids in ((left, left_ids), (right, right_ids)):
        keep = [(i, size) for i, size in zip(ids, array.shape, strict=True) if size != 1]
        present |= dict(keep)
        squeezed += [array.reshape([size for _, size in keep]), [_letter(i) for i, _ in keep]]
    target = [_letter(i) for i in out if i in present]
    result = np.einsum(*squeezed, target, optimize=True)
    return np.asarray(result).reshape([present.get(i, 1) for i in out])


def _letter(number: int) -> int:
    """einsum takes small non-negative axis numbers."""
    return number + 3


def arrange(array: Array, ids: Sequence[int], out: Sequence[int]) -> Array:
    """Transpose an array with axes `ids` to the order `out`, with size 1 for axes it lacks."""
    present = [i for i in out if i in ids]
    moved = array.transpose([list(ids).index(i) for i in present])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if i in ids else 1 for i in out])


def joint_selector(first: Selector | None, second: Selector | None) -> Selector | None:
    """The selector of a combination.

    Raises:
        LayoutError: two different selections meet.
    """
    if first is None or second is None or first is second:
        return first or second
    same = first.source is second.source and all(
        _equal(a, b) for a, b in zip(first.samples, second.samples, strict=True)
    )
    if not same:
        raise LayoutError("weights selected in two different ways meet in one product")
    return first


def _equal(a: Array, b: Array) -> bool:
    first, second = np.broadcast_arrays(a, b)
    return np.array_equal(first, second)


def contract(left: Affine, weights: Weights, labels: Labels) -> Affine:
    """The affine map `left · weights`.

    Raises:
        LayoutError: it is not an affine map of each token.
    """
    p = plan(left.layout, weights, labels)
    selector = joint_selector(_spread(left.selector, p), p.selector)
    bias = np.zeros([1] * (len(p.out) + 1), np.float32)
    if left.bias.any():
        bias = product(left.bias, (*p.left, VARIANT), p.array, (VARIANT, *p.right), (*p.out, VARIANT))
    weight = _picked(left, p)
    if weight is None:
        dense = with_weight(left).weight
        assert dense is not None
        weight = product(dense, (*p.left, VARIANT, CHANNEL), p.array, (VARIANT, *p.right), (*p.out, VARIANT, CHANNEL))
    return Affine(
        p.layout, left.base, weight, None, bias, left.factor, selector, weighing=spread_weighing(left.weighing, p)
    )


def spread_weighing(weighing: Weighing | None, p: Plan) -> Weighing | None:
    """The gate weights of the weighed tokens along the axes of a product of their maps."""
    if weighing is None:
        return None
    if any(sample.shape[i] != 1 for sample in weighing.samples for i in p.summed):
        raise LayoutError("channels of one token are weighed differently")
    kept = [i for i in p.left if i not in p.summed]
    return replace(
        weighing, samples=tuple(arrange(sample.squeeze(p.summed), kept, p.out) for sample in weighing.samples)
    )


def _spread(selector: Selector | None, p: Plan) -> Selector | None:
    if selector is None or not selector.samples:
        return selector
    if any(sample.shape[i] != 1 for sample in selector.samples for i in p.summed):
        raise LayoutError("it sums over the chosen experts before they are weighed")
    moved = tuple(
        arrange(sample.squeeze(p.summed), [i for i in p.left if i not in p.summed], p.out)
        for sample in selector.samples
    )
    return replace(selector, samples=moved)


def _picked(left: Affine, p: Plan) -> Array | None:
    """The weight where the left operand is plain channels, all taken along the summed axes: a transpose of the
    weights."""
    index = left.index
    if index is None or any(size != 1 and i not in p.summed for i, size in enumerate(index.shape)):
        return None
    order = [p.left.index(i) for i in p.summed]
    flat = index.transpose(order + [i for i in p.left if i not in p.summed]).reshape(-1)
    rest = [i for i in p.right if i not in p.summed]
    moved = arrange(p.array, (VARIANT, *p.right), (*p.summed, *rest, VARIANT))
    moved = moved.reshape(len(flat), *moved.shape[len(p.summed) :])
    if len(flat) != left.base.channels or not np.array_equal(flat, np.arange(len(flat))):
        table = np.zeros((left.base.channels, *moved.shape[1:]), np.float32)
        np.add.at(table, flat, moved)
        moved = table
    return arrange(moved, (CHANNEL, *rest, VARIANT), (*p.out, VARIANT, CHANNEL))
