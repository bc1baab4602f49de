"""What every simulator of the accelerator gives: the C simulation and the RTL implement `Simulator`."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray
from moehls.plan.payload import Bytes


@dataclass(frozen=True)
class Simulation:
    """One image through the accelerator."""

    outputs: dict[str, IntArray]
    """integers `[rows, channels]` by output name"""
    stages: dict[int, IntArray] = field(default_factory=dict)
    """traced values by index into `Program.stages`: `[rows, channels]`; of a routing the gates `[tokens, experts]`, -1
    where an expert was not chosen"""
    cycles: int | None = None
    """clock cycles from start to done, where the simulator counts them"""
    steps: tuple[int, ...] = ()
    """cycle in which each step began, where the simulator counts them"""
    beats: tuple[int, ...] = ()
    """128-bit beats that all ports had read when each step began, and in all"""

    def step_cycles(self) -> tuple[int, ...]:
        """Cycles of each step: from its begin to that of the next, or to the end."""
        if self.cycles is None:
            return ()
        return tuple(end - start for start, end in zip(self.steps, (*self.steps[1:], self.cycles), strict=True))

    def step_beats(self) -> tuple[int, ...]:
        """Beats read during each step, whoever they are for: the stream runs ahead."""
        return tuple(end - start for start, end in pairwise(self.beats))


class MemoryImages(Protocol):
    """The memories of the machine at one moment, as bytes of the C++'s words."""

    def activation(self, number: int) -> Bytes:
        """Memory M`number`: `[Tt, depth, B·AB/8 + 1]`, operands and, last, the exponent."""
        ...

    def residual(self) -> Bytes:
        """`[Tt, depth, B·2]`."""
        ...

    def raw(self) -> Bytes:
        """`[depth, B·accumulator_bits/8]`."""
        ...

    def queue(self) -> npt.NDArray[np.uint64]:
        """`[experts, tokens]`: lane (8 bits), group (16), gate (16) from bit 0."""
        ...

    def count(self) -> IntArray:
        """`[experts]`: tokens in each queue."""
        ...


class Simulator(Protocol):
    """An accelerator that computes single images."""

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        """Quantised pixels `[patches, pixels a patch]` to outputs, and with `trace` the stages it can observe."""
        ...
