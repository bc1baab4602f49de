"""What every simulator of the accelerator gives: the C simulation and the RTL implement `Simulator`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from moehls.integer.operations import IntArray


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


class Simulator(Protocol):
    """An accelerator that computes single images."""

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        """Quantised pixels `[patches, pixels a patch]` to outputs, and with `trace` the stages it can observe."""
        ...
