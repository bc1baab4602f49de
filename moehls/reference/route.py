"""Route: logits of one task's gate, top-k and the softmax gate weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moehls.integer.arithmetic import exp2, exp2_at, reciprocal, rs, sat
from moehls.integer.operations import IntArray, IntegerRoute
from moehls.integer.precision import Precision
from moehls.reference.product import product


@dataclass(frozen=True)
class Routing:
    """The experts a token chose, by descending logit, and their gate weights (`1.0 = 2^gate_fraction`)."""

    logits: IntArray
    """[tokens, experts], accumulator scale"""
    chosen: IntArray
    """[tokens, k], expert indices"""
    gates: IntArray
    """[tokens, k]"""


def route(operation: IntegerRoute, fine: IntArray, task: int, precision: Precision) -> Routing:
    """Fine `[tokens, channels]` to the routing of `task`."""
    logits = product(fine, operation.weight[task]) + operation.bias[task]
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, : operation.k]  # stable: ties to the lower index
    t = sat(rs(logits * operation.multiplier[task], operation.shift[task]), precision.logit_bits)
    if operation.normalisation == "chosen":
        t = np.take_along_axis(t, chosen, axis=1)
    value, c = exp2(t, precision.logit_fraction, 65535)
    value = exp2_at(value, c, c.max(axis=1, keepdims=True))
    r, length = reciprocal(value.sum(axis=1, keepdims=True))
    gates = np.minimum(rs(value * r, length + 1), 1 << precision.gate_fraction)
    if operation.normalisation == "all":
        gates = np.take_along_axis(gates, chosen, axis=1)
    return Routing(logits, chosen, gates)
