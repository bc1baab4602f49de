"""What the conversions of the operations share: the precision, the scales chosen so far and the calibration data.

Each conversion reads it, adds the grids of the values it makes and gives back one integer operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import Format, IntArray, RealArray, Scaling, TensorKind, WeightArray
from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm, Experts, Lattice, Linear
from moehls.quantize.calibrate import Trajectories
from moehls.quantize.fixed_point import Grid, factor, rounded
from moehls.quantize.steps import Structure
from moehls.quantize.weights import compensation, lattice_steps, round_weights, second_moments, weight_steps

Number = TypeVar("Number", np.int64, np.float64)


@dataclass
class Builder:
    precision: Precision
    structure: Structure
    data: Trajectories
    residual: float
    """real value of one residual unit"""
    grids: dict[str, Grid] = field(default_factory=dict)
    """of operands and fine values"""
    formats: dict[str, Format] = field(default_factory=dict)
    given: Mapping[str, Lattice] = field(default_factory=dict)
    """the graph's own lattices, by value; matrices that read one keep the graph's bias"""
    turns: dict[str, RealArray] = field(default_factory=dict)
    """`[channels, channels]` by which the real value of that name is multiplied (`x · turnᵀ`) before it is quantised"""

    least_steps: dict[str, float] = field(default_factory=dict)
    """of operands made of a residual value: its unit"""

    @property
    def weight_limit(self) -> int:
        return (1 << (self.precision.weight_bits - 1)) - 1

    def form(self, form: ActivationForm) -> int:
        """Its number among the network's activations."""
        return self.structure.activations.index(form)

    def add(self, name: str, kind: TensorKind, bits: int, signed: bool, grid: Grid) -> None:
        """Record the grid and the format of a new value."""
        self.grids[name] = grid
        self.formats[name] = Format(kind, bits, signed, grid.scale, grid.offset)

    def add_residual(self, name: str, channels: int) -> None:
        self.add(
            name,
            "residual",
            self.precision.residual_bits,
            True,
            Grid(np.full(channels, self.residual), np.zeros(channels)),
        )

    def target(self, name: str) -> RealArray:
        """Real values `[runs · tokens, channels]` of the float network, turned where the quantiser turns them."""
        x = flat(self.data.real(self.structure.sources.get(name, name)))
        return x @ self.turns[name].T if name in self.turns else x

    def readers(self, name: str) -> list[RealArray]:
        """The matrices `[out, channels]` of the linears and experts that read the value `name`."""
        found = []
        for operation in self.structure.readers[name]:
            if isinstance(operation, Linear):
                found.append(self.weight(operation))
            elif isinstance(operation, Experts):
                for weight in (operation.first_weight, operation.up_weight):
                    if weight is not None:
                        found.append(weight.reshape(-1, weight.shape[-1]).astype(np.float64))
        return found

    def weight(self, linear: Linear) -> RealArray:
        """The weight of a linear between its turned input and its turned output."""
        weight = linear.weight.astype(np.float64)
        if linear.output in self.turns:
            weight = self.turns[linear.output] @ weight
        if linear.input in self.turns:
            weight = weight @ np.linalg.inv(self.turns[linear.input])
        return weight

    def bias(self, linear: Linear) -> RealArray:
        bias = linear.bias.astype(np.float64)
        return self.turns[linear.output] @ bias if linear.output in self.turns else bias


@dataclass(frozen=True)
class Rows:
    """A quantised matrix: `real output = (integers · x + bias) · step`, a row."""

    weight: WeightArray
    step: RealArray
    scaling: Scaling


def flat(x: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """`[runs, tokens, channels]` to `[runs · tokens, channels]`."""
    return x.reshape(-1, x.shape[-1])


def quantise_rows(
    weight: RealArray,
    bias: RealArray,
    grid: Grid,
    inputs: IntArray,
    unit: RealArray,
    largest: int,
    precision: Precision,
    offset: RealArray | float = 0.0,
    target: RealArray | None = None,
    trust: float = 1.0,
) -> Rows:
    """A real matrix and bias as integers, with a requantisation to integers of `unit`.

    Args:
        weight: `[out, in]`.
        bias: `[out]`.
        grid: of the input.
        inputs: `[rows, in]` input integers of the calibration data.
        unit: `[out]`, real value of one output integer.
        largest: largest magnitude of an input integer.
        precision: bit widths.
        offset: output integer of the real 0, fractional.
        target: `[rows, out]`, output whose mean the bias is to meet; without it the bias stays as it is.
        trust: how much of the correction to the mean to take, 0 … 1.
    """
    mean, covariance = second_moments(inputs)
    limit = (1 << (precision.weight_bits - 1)) - 1
    room = 1 << (precision.accumulator_bits - 1)
    scaled = weight * grid.scale
    plain = bias + weight @ grid.base
    own = lattice_steps(scaled, limit)
    step = np.where(own > 0, own, weight_steps(scaled, np.diag(covariance), limit))
    step = np.maximum(step, np.maximum(np.abs(plain + offset * unit) * 4 / room, np.ldexp(unit, -30)))
    columns = compensation(covariance)
    integers, rows = np.zeros(weight.shape, np.int64), np.arange(len(weight))
    while True:
        chosen = factor(step / unit, precision.multiplier_bits)
        step = chosen.value * unit
        integers[rows] = round_weights(scaled[rows], step[rows], columns, limit)
        correct = plain
        if target is not None:
            reached = integers @ mean * step
            correct = plain + trust * (target.mean(axis=0) - reached - plain)
        integer_bias = rounded((correct + offset * unit) / step)
        peak = np.abs(integer_bias) + np.abs(integers).sum(axis=1) * largest
        rows = np.flatnonzero(peak >= room)
        if not len(rows):
            return Rows(narrow(integers, precision), step, Scaling(integer_bias, chosen.multiplier, chosen.shift))
        step[rows] *= 1.25


def narrow(weight: npt.NDArray[np.integer], precision: Precision) -> WeightArray:
    """Weights in the integer type of the precision."""
    if precision.weight_bits <= 8:
        return weight.astype(np.int8, copy=False)
    return weight.astype(np.int16, copy=False)
