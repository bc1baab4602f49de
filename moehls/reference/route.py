"""Route: logits of one task's gate, top-k and the softmax gate weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moehls.integer.arithmetic import exp2, exp2_at, reciprocal, rs, sat, sigmoid
from moehls.integer.operations import IntArray, IntegerRoute
from moehls.integer.precision import Precision
from moehls.reference.product import product


@dataclass(frozen=True)
class Routing:
    """The experts a token chose, by descending logit, and their gate weights (`1.0 = 2^gate_fraction`).

    A choice that is left out is `~expert`, its gate 0.
    """

    logits: IntArray
    """[tokens, experts], accumulator scale"""
    chosen: IntArray
    """[tokens, k], expert indices"""
    gates: IntArray
    """[tokens, k]"""

    def tokens(self, experts: int) -> IntArray:
        """`[experts]`: how many tokens each expert gets, of the first `experts`."""
        taken = self.chosen[(self.chosen >= 0) & (self.chosen < experts)]
        return np.bincount(taken, minlength=experts).astype(np.int64)


def route(operation: IntegerRoute, fine: IntArray, task: int, precision: Precision) -> Routing:
    """Fine `[tokens, channels]` to the routing of `task`."""
    logits = product(fine, operation.weight[task]) + operation.bias[task]
    t = sat(rs(logits * operation.multiplier[task], operation.shift[task]), precision.logit_bits)
    rank = logits
    if operation.selection is not None:
        rank = sigmoid(t, precision.logit_fraction) + operation.selection[task]
    ranked = np.where(_eligible(operation, rank), rank, np.iinfo(np.int64).min + 1)
    chosen = np.argsort(-ranked, axis=1, kind="stable")[:, : operation.k]  # stable: ties to the lower index
    if operation.normalisation == "chosen":
        t = np.take_along_axis(t, chosen, axis=1)
    if operation.score == "sigmoid":
        value = sigmoid(t, precision.logit_fraction)
    else:
        value, c = exp2(t, precision.logit_fraction, 65535)
        value = exp2_at(value, c, c.max(axis=1, keepdims=True))
    total = np.maximum(value.sum(axis=1, keepdims=True), 1)
    if operation.normalisation == "none":
        total = np.full_like(total, 65535)
    if operation.normalisation != "chosen":
        value = np.take_along_axis(value, chosen, axis=1)
    taken = np.ones(chosen.shape, bool)
    if operation.threshold:
        taken = value << precision.gate_fraction > operation.threshold * total
    if operation.renormalise:
        total = np.maximum((value * taken).sum(axis=1, keepdims=True), 1)
    if operation.capacity:
        taken = _within_capacity(operation, chosen, taken)
    if operation.room:
        total = np.maximum((value * taken).sum(axis=1, keepdims=True), 1)
    r, length = reciprocal(total)
    gates = np.minimum(rs(value * r, length + 1), 1 << precision.gate_fraction)
    return Routing(logits, np.where(taken, chosen, ~chosen), gates * taken)


def _eligible(operation: IntegerRoute, rank: IntArray) -> npt.NDArray[np.bool_]:
    """`[tokens, experts]`: whether an expert is of a group that its token keeps."""
    if not operation.group:
        return np.ones(rank.shape, bool)
    grouped = np.sort(rank.reshape(len(rank), -1, operation.group), axis=2)
    best = grouped[..., -2:].sum(axis=2) if operation.pairs else grouped[..., -1]
    kept = np.zeros(best.shape, bool)
    order = np.argsort(-best, axis=1, kind="stable")[:, : operation.kept_groups]
    np.put_along_axis(kept, order, True, axis=1)
    return np.repeat(kept, operation.group, axis=1)


def _within_capacity(operation: IntegerRoute, chosen: IntArray, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of the `wanted` choices `[tokens, k]` find room, one after the other in the order of priority."""
    tokens, k = chosen.shape
    taken = np.zeros(chosen.shape, bool)
    count = np.zeros(operation.weight.shape[1], np.int64)
    places = [(n, i) for n in range(tokens) for i in range(k)]
    if operation.priority == "choice":
        places = [(n, i) for i in range(k) for n in range(tokens)]
    for place in places:
        expert = chosen[place]
        taken[place] = wanted[place] and count[expert] < operation.capacity
        count[expert] += taken[place]
    return taken
