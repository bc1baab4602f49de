"""Experts: two matrices each, quantised on the tokens that chose the expert and, where these are few, on all tokens."""

from __future__ import annotations

import numpy as np

from moehls.integer.operations import GeluRequantise, IntArray, IntegerExperts, RealArray, Scaling
from moehls.quantize.builder import Builder, Rows, flat, narrow, quantise_rows
from moehls.quantize.calibrate import gelu as gelu_real
from moehls.quantize.fixed_point import Grid
from moehls.quantize.linear import gelu_grid, gelu_steps
from moehls.quantize.structure import ExpertsStep
from moehls.reference.linear import gelu_requantise
from moehls.reference.product import product

_FEW = 64
"""tokens below which an expert's own statistics are joined by those of all tokens"""
_SAMPLE = 256
"""tokens that stand for all of them"""


def convert_experts(step: ExpertsStep, builder: Builder) -> IntegerExperts:
    """Each expert is quantised by itself; the hidden grids of all share one shift, so they come between the matrices."""
    precision, experts, data = builder.precision, step.experts, builder.data
    real, integer = flat(data.real(experts.input)), flat(data.integer(experts.input))
    chosen = np.concatenate([routing.chosen for routing in data.routing(experts.routing)])
    tokens = [_tokens(chosen, e) for e in range(len(experts.first_weight))]
    unit = np.full(experts.first_weight.shape[1], 2.0**-precision.gelu_fraction)
    first, steps = [], []
    for e, (rows, own) in enumerate(tokens):
        weight, bias = experts.first_weight[e].astype(np.float64), experts.first_bias[e].astype(np.float64)
        hidden = real[rows] @ weight.T + bias
        trust = own / (own + _FEW)
        grid, largest = builder.grids[experts.input], (1 << precision.activation_bits) - 1
        first.append(quantise_rows(weight, bias, grid, integer[rows], unit, largest, precision, 0.0, hidden, trust))
        steps.append(gelu_steps(hidden, [experts.second_weight[e].astype(np.float64)], experts.form, precision))
    epilogue, grids = gelu_grid(np.stack(steps), experts.form, precision)
    second = [
        _second(step, e, rows, own, first[e], epilogue, Grid(grids.scale[e], grids.offset[e]), real, integer, builder)
        for e, (rows, own) in enumerate(tokens)
    ]
    builder.add_residual(step.output, experts.second_weight.shape[1])
    return IntegerExperts(
        experts.name,
        experts.input,
        experts.routing,
        step.residual,
        step.output,
        narrow(np.stack([rows.weight for rows in first]), precision),
        _stacked(first),
        epilogue,
        narrow(np.stack([rows.weight for rows in second]), precision),
        _stacked(second),
    )


def _second(
    step: ExpertsStep,
    e: int,
    rows: IntArray,
    own: int,
    first: Rows,
    epilogue: GeluRequantise,
    grid: Grid,
    real: RealArray,
    integer: IntArray,
    builder: Builder,
) -> Rows:
    """The second matrix of expert e, on the hidden integers that its first matrix really gives."""
    precision, experts = builder.precision, step.experts
    weight, bias = experts.second_weight[e].astype(np.float64), experts.second_bias[e].astype(np.float64)
    of_expert = GeluRequantise(epilogue.multiplier[e], epilogue.shift, epilogue.offset)
    accumulator = product(integer[rows], first.weight)
    hidden = gelu_requantise(accumulator, first.scaling, of_expert, precision, experts.form)
    exact = gelu_real(real[rows] @ experts.first_weight[e].T.astype(np.float64) + experts.first_bias[e], experts.form)
    target = exact @ weight.T + bias
    unit = np.full(len(bias), builder.residual * 2.0**-precision.expert_fraction)
    largest = (1 << precision.activation_bits) - 1
    trust = own / (own + _FEW)
    return quantise_rows(weight, bias, grid, hidden, unit, largest, precision, 0.0, target, trust)


def _tokens(chosen: IntArray, e: int) -> tuple[IntArray, int]:
    """The rows to calibrate expert e on, and how many of them really chose it."""
    own = np.nonzero((chosen == e).any(axis=1))[0]
    if len(own) >= _FEW:
        return own, len(own)
    sample = np.arange(0, len(chosen), max(len(chosen) // _SAMPLE, 1))
    return np.concatenate([own, sample]), len(own)


def _stacked(rows: list[Rows]) -> Scaling:
    scalings = [r.scaling for r in rows]
    return Scaling(
        np.stack([s.bias for s in scalings]),
        np.stack([s.multiplier for s in scalings]),
        np.stack([s.shift for s in scalings]),
    )
