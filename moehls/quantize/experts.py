"""Experts: two matrices each, quantised on the tokens that chose the expert and, where these are few, on all tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moehls.integer.operations import GeluRequantise, IntArray, IntegerExperts, RealArray, Scaling, WeightArray
from moehls.integer.precision import Precision
from moehls.network.operations import Experts, FloatArray, of_experts
from moehls.quantize.builder import Builder, Rows, flat, narrow, quantise_rows
from moehls.quantize.calibrate import activation as activation_real
from moehls.quantize.fixed_point import Grid
from moehls.quantize.given import given_steps, signed_grid
from moehls.quantize.linear import gated_grid, gated_steps, gelu_grid, gelu_steps, up_steps
from moehls.quantize.steps import ExpertsStep
from moehls.reference.experts import weighed
from moehls.reference.linear import gated_requantise, gelu_requantise, requantised
from moehls.reference.product import product

_FEW = 64
"""tokens below which an expert's own statistics are joined by those of all tokens"""
_SAMPLE = 256
"""tokens that stand for all of them"""


@dataclass(frozen=True)
class _Inner:
    """The matrices of one expert before the activation, quantised."""

    first: Rows
    up: Rows | None
    steps: RealArray
    """[hidden], wanted for the operand behind them"""
    hidden: RealArray
    """[rows, hidden], its real values"""


def convert_experts(step: ExpertsStep, builder: Builder) -> IntegerExperts:
    """Each expert is quantised by itself; the hidden grids of all share one shift, so they come between the matrices."""
    precision, experts, data = builder.precision, step.experts, builder.data
    real, integer = flat(data.real(experts.input)), flat(data.integer(experts.input))
    chosen = np.concatenate([routing.chosen for routing in data.routing(experts.routing)])
    gates = np.concatenate([routing.gates for routing in data.routing(experts.routing)])
    inputs = [_inputs(experts, e, chosen, gates, real, integer, precision) for e in range(len(experts.first_weight))]
    inner = [_inner(experts, e, given, builder) for e, given in enumerate(inputs)]
    steps, ups = np.stack([each.steps for each in inner]), [each.up for each in inner if each.up is not None]
    kept = _given(experts, "hidden", builder) is not None
    if ups:
        multiplier, shift, scale = gated_grid(steps, np.stack([_up_scale(up) for up in ups]), precision, kept)
        epilogue, grids = GeluRequantise(multiplier, shift, 0), Grid(scale, np.zeros_like(scale))
    else:
        epilogue, grids = gelu_grid(steps, experts.form, precision, kept)
    epilogue = replace(epilogue, form=builder.form(experts.form))
    second = [
        _second(step, e, given, inner[e], epilogue, Grid(grids.scale[e], grids.offset[e]), builder)
        for e, given in enumerate(inputs)
    ]
    builder.add(step.output, "residual", precision.residual_bits, True, builder.grids[step.residual])
    first = [each.first for each in inner]
    return IntegerExperts(
        experts.name,
        experts.input,
        experts.routing,
        step.residual,
        step.output,
        _weights(first, precision),
        _stacked(first),
        epilogue,
        _weights(second, precision),
        _stacked(second),
        _weights(ups, precision) if ups else None,
        _stacked(ups) if ups else None,
        experts.weigh_inputs,
    )


@dataclass(frozen=True)
class _Inputs:
    """The tokens that an expert is calibrated on, as it reads them; the first `own` really chose it."""

    real: RealArray
    """[rows, channels]"""
    integer: IntArray
    own: int


def _inputs(
    experts: Experts,
    e: int,
    chosen: IntArray,
    gates: IntArray,
    real: RealArray,
    integer: IntArray,
    precision: Precision,
) -> _Inputs:
    """Tokens that did not choose the expert are weighed as those that did are on the mean."""
    rows, own = _tokens(chosen, e)
    if not experts.weigh_inputs:
        return _Inputs(real[rows], integer[rows], own)
    one = 1 << precision.gate_fraction
    mine = (gates * (chosen == e)).sum(axis=1)[rows[:own]]
    mean = int(mine.mean()) if own else one // 2
    gate = np.concatenate([mine, np.full(len(rows) - own, mean)])[:, None]
    return _Inputs(real[rows] * (gate / one), weighed(integer[rows], gate, precision), own)


def _inner(experts: Experts, e: int, inputs: _Inputs, builder: Builder) -> _Inner:
    """What expert e does before the activation."""
    own, integer = inputs.own, inputs.integer
    precision, grid, trust = builder.precision, builder.grids[experts.input], own / (own + _FEW)
    trust = 0.0 if experts.input in builder.given else trust
    largest, second = (1 << precision.activation_bits) - 1, [experts.second_weight[e].astype(np.float64)]

    def layer(weight: FloatArray, bias: FloatArray) -> tuple[RealArray, RealArray, RealArray]:
        wide, offset = weight.astype(np.float64), bias.astype(np.float64)
        return wide, offset, inputs.real @ wide.T + offset

    weight, bias, before = layer(experts.first_weight[e], experts.first_bias[e])
    unit = np.full(len(bias), 2.0**-precision.gelu_fraction)
    first = quantise_rows(weight, bias, grid, integer, unit, largest, precision, 0.0, before, trust)
    hidden = activation_real(before, experts.form)
    given, given_up = (_given(experts, role, builder) for role in ("hidden", "up"))
    if experts.up_weight is None or experts.up_bias is None:
        steps = gelu_steps(before, second, experts.form, precision) if given is None else given[e]
        return _Inner(first, None, steps, hidden)
    weight, bias, other = layer(experts.up_weight[e], experts.up_bias[e])
    scale = up_steps(other, precision) if given_up is None else given_up[e]
    up = quantise_rows(weight, bias, grid, integer, scale, largest, precision, 0.0, other, trust)
    steps = gated_steps(before, other, second, experts.form, precision) if given is None else given[e]
    return _Inner(first, up, steps, hidden * other)


def _given(experts: Experts, role: str, builder: Builder) -> RealArray | None:
    """The graph's steps `[experts, hidden]` of the hidden layers or the up linears, if it has any."""
    name = of_experts(experts.output, role)
    lattice, shape = builder.given.get(name), experts.first_weight.shape[:2]
    if lattice is None:
        return None
    signed = experts.up_weight is not None
    steps = (
        given_steps(lattice, name, builder.precision) if signed else signed_grid(lattice, name, builder.precision).scale
    )
    return steps.reshape(shape)


def _up_scale(up: Rows) -> RealArray:
    """The step of the operand that the rows of an up matrix are requantised to."""
    return up.step / np.ldexp(up.scaling.multiplier.astype(np.float64), -up.scaling.shift)


def _second(
    step: ExpertsStep,
    e: int,
    inputs: _Inputs,
    inner: _Inner,
    epilogue: GeluRequantise,
    grid: Grid,
    builder: Builder,
) -> Rows:
    """The second matrix of expert e, on the hidden integers that the matrices before it really give."""
    precision, experts = builder.precision, step.experts
    weight, bias = experts.second_weight[e].astype(np.float64), experts.second_bias[e].astype(np.float64)
    of_expert = GeluRequantise(epilogue.multiplier[e], epilogue.shift, epilogue.offset)
    accumulator, scaling = product(inputs.integer, inner.first.weight), inner.first.scaling
    if inner.up is None:
        hidden = gelu_requantise(accumulator, scaling, of_expert, precision, experts.form)
    else:
        up = requantised(product(inputs.integer, inner.up.weight), inner.up.scaling, precision)
        multiplier, shift = of_expert.multiplier, of_expert.shift
        hidden = gated_requantise(accumulator, scaling, up, multiplier, shift, precision, experts.form)
    target = inner.hidden @ weight.T + bias
    unit = np.ldexp(builder.grids[step.residual].scale, -precision.expert_fraction)
    largest = (1 << precision.activation_bits) - 1
    trust = 0.0 if of_experts(experts.output, "hidden") in builder.given else inputs.own / (inputs.own + _FEW)
    return quantise_rows(weight, bias, grid, hidden, unit, largest, precision, 0.0, target, trust)


def _weights(rows: list[Rows], precision: Precision) -> WeightArray:
    return narrow(np.stack([each.weight for each in rows]), precision)


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
