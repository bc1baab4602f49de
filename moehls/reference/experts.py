"""Experts: the chosen MLPs, scaled by their gates, added to the residual in the order of the experts."""

from __future__ import annotations

import numpy as np

from moehls.integer.arithmetic import requantise, rs, sat
from moehls.integer.operations import GeluRequantise, IntArray, IntegerExperts, Scaling
from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm
from moehls.reference.linear import gated_requantise, gelu_requantise, requantised
from moehls.reference.product import product
from moehls.reference.route import Routing


def experts(
    operation: IntegerExperts,
    x: IntArray,
    routing: Routing,
    residual: IntArray,
    precision: Precision,
    form: ActivationForm,
) -> IntArray:
    """Operand `[tokens, channels]` and the residual `[tokens, channels]` to the new residual."""
    result = residual.copy()
    for e in range(len(operation.first_weight)):
        tokens, rank = np.nonzero(routing.chosen == e)
        first, second = _of_expert(operation.first_scaling, e), _of_expert(operation.second_scaling, e)
        multiplier, shift = operation.gelu.multiplier[e], operation.gelu.shift
        gates, own = routing.gates[tokens, rank, None], x[tokens]
        if operation.weigh_inputs:
            own, gates = weighed(own, gates, precision), np.full_like(gates, 1 << precision.gate_fraction)
        accumulator = product(own, operation.first_weight[e])
        if operation.up_weight is not None and operation.up_scaling is not None:
            up = requantised(product(own, operation.up_weight[e]), _of_expert(operation.up_scaling, e), precision)
            h = gated_requantise(accumulator, first, up, multiplier, shift, precision, form)
        else:
            epilogue = GeluRequantise(multiplier, shift, operation.gelu.offset)
            h = gelu_requantise(accumulator, first, epilogue, precision, form)
        z = requantise(product(h, operation.second_weight[e]), second.bias, second.multiplier, second.shift, precision)
        scaled = rs(z * gates, precision.gate_fraction + precision.expert_fraction)
        result[tokens] = sat(result[tokens] + scaled, precision.residual_bits)
    return result


def weighed(x: IntArray, gates: IntArray, precision: Precision) -> IntArray:
    """Operands `[rows, channels]` times gates `[rows, 1]`."""
    return sat(rs(x * gates, precision.gate_fraction), precision.activation_bits)


def _of_expert(scaling: Scaling, e: int) -> Scaling:
    return Scaling(scaling.bias[e], scaling.multiplier[e], scaling.shift[e])
