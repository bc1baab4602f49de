"""How large the numbers of the epilogue become, so that the machine adds, multiplies and shifts no wider.

In go the steps of a program, out come `Bounds`: of every sum that is requantised, over all inputs, by the weights
themselves (docs/numbers.md, section 5), and of every shift. They hold by construction: the same steps are what the machine runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from moehls.integer.operations import HIDDEN
from moehls.integer.precision import Precision
from moehls.plan.instruction import NO_SPLIT, Flag, Instruction, Kind, Mode
from moehls.plan.payload import Biases, Matrix, Parameters
from moehls.plan.steps import Step

_RAW_SHIFT = 16
"""raw values pass a multiplier of 17 bits as they are, shifted up by the smallest shift"""


@dataclass(frozen=True)
class Bounds:
    """Bits of a sum with its bias (`scaled`) and of what is multiplied again (`second`); smallest and largest shifts of both.

    The bias shifts are those of the biases of scores.
    """

    scaled_bits: int
    shift_low: int
    shift_high: int
    second_bits: int
    second_shift_low: int
    second_shift_high: int
    bias_shift_low: int
    bias_shift_high: int


@dataclass(frozen=True)
class _Range:
    magnitude: int
    low: int
    high: int


def epilogue_bounds(steps: Iterable[Step], block: int, precision: Precision) -> Bounds:
    """Of all LINEAR steps, for blocks of `block` channels."""
    engine = [s for s in steps if s.instruction.kind == Kind.LINEAR and s.instruction.mode != Mode.RAW]
    first = _union(_first(s, block, precision) for s in engine)
    second = _union(r for s in engine for r in _second(s, precision))
    biases = [s.instruction.offset for s in engine if isinstance(s.payload, Biases)] or [0]
    return Bounds(
        max(_bits(first.magnitude), precision.requantised_bits), min(first.low, _RAW_SHIFT), first.high,
        _bits(second.magnitude), second.low, second.high, min(biases), max(biases),
    )  # fmt: skip


def _first(step: Step, block: int, p: Precision) -> _Range:
    i, operand = step.instruction, 1 << (p.activation_bits - 1)
    if i.mode == Mode.SOFTMAX:
        return _Range(i.n2 * block * operand * operand + _largest_bias(step), i.shift, i.shift)
    unsigned = (1 << p.activation_bits) - 1
    if i.mode == Mode.CONTEXT:  # the largest key's probability is at least half of the largest there is
        offset = 16 - p.context_fraction
        return _Range(
            i.rows * unsigned * operand, p.activation_bits + offset, (i.rows * unsigned).bit_length() + offset
        )
    assert isinstance(step.payload, Matrix)
    if i.split != NO_SPLIT:
        operand = 1 << (p.fine_bits - 1)
    largest = unsigned if i.flags & Flag.X_UNSIGNED else operand
    assert step.payload.magnitudes is not None
    sums = step.payload.magnitudes * largest
    return _of_channels(step.payload.parameters, int((sums + np.abs(step.payload.parameters.bias)).max()))


def _largest_bias(step: Step) -> int:
    """Of a SOFTMAX step, in units of its sums; the sum of a hidden key is not used."""
    if not isinstance(step.payload, Biases):
        return 0
    entries = step.payload.entries.astype(np.int64)
    return int(np.abs(np.where(entries == HIDDEN, 0, entries)).max()) << step.instruction.offset


def _second(step: Step, p: Precision) -> Iterator[_Range]:
    i: Instruction = step.instruction
    if i.mode in (Mode.GELU, Mode.GATED):
        activated = 1 << (p.gelu_bits - 1 + p.delta_fraction - p.gelu_fraction)
        yield _Range(2 * activated + abs(i.offset), i.shift, i.shift)
    elif i.mode == Mode.CONTEXT:
        assert isinstance(step.payload, Parameters)
        bias = int(np.abs(step.payload.bias).max())
        yield _of_channels(step.payload, (1 << (p.requantised_bits - 1)) + bias)


def _of_channels(parameters: Parameters, magnitude: int) -> _Range:
    assert parameters.shift is not None
    return _Range(magnitude, int(parameters.shift.min()), int(parameters.shift.max()))


def _union(ranges: Iterable[_Range]) -> _Range:
    found = list(ranges) or [_Range(1, 0, 0)]
    return _Range(max(r.magnitude for r in found), min(r.low for r in found), max(r.high for r in found))


def _bits(magnitude: int) -> int:
    """Of a signed number."""
    return magnitude.bit_length() + 1
