"""What the campaigns of faults share: breaks, and checks that run on the C simulation or the RTL and go red or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from moehls import reference
from moehls.errors import CheckFailed
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntArray
from moehls.network.operations import FloatArray
from moehls.project import Project
from moehls.simulate.csim import Library
from moehls.simulate.places import weight_stream
from moehls.simulate.rtl import RtlSimulator
from moehls.simulate.simulator import Simulation
from moehls.simulate.simulators import CSimulator
from moehls.simulate.verify import Difference, compare

KINDS = ("operator", "constant", "width", "index", "condition")


@dataclass(frozen=True)
class Fault:
    """One break: line `line` (from 0) of `file`, whose expression (RTL, of `target`) or text (C++) becomes `broken`."""

    file: str
    line: int
    kind: str
    good: str
    broken: str
    target: str = ""

    def __str__(self) -> str:
        of = f" {self.target}" if self.target else ""
        return f"{self.file}:{self.line + 1} ({self.kind}){of}: {self.good} → {self.broken.strip()}"


@dataclass(frozen=True)
class Checked:
    """A check on the RTL: what is wrong, if anything, and its cycles."""

    difference: str | None
    cycles: int
    steps: tuple[int, ...]


class Check(Protocol):
    """Something that verification runs."""

    def csim(self, library: Library) -> str | None:
        """On the C simulation: what is wrong, if anything."""
        ...

    def rtl(self, simulator: RtlSimulator) -> Checked:
        """On the RTL."""
        ...


@dataclass(frozen=True)
class Frame:
    """A frame of a network, every stage and output against the reference."""

    project: Project
    pixels: IntArray
    execution: reference.Execution
    task: int

    def difference(self, found: Simulation) -> Difference | None:
        """The first stage or output in which a simulation differs from the reference."""
        return compare(self.project.integer, self.project.program, self.execution, found, 0, self.task)

    def csim(self, library: Library) -> str | None:
        """Run it on the C simulation."""
        library.load(weight_stream(self.project), self.project.plan.first_beats)
        difference = self.difference(CSimulator(self.project, library).run(self.pixels, self.task, trace=True))
        return None if difference is None else str(difference)

    def rtl(self, simulator: RtlSimulator) -> Checked:
        """Run it on the RTL of a project of the same shape."""
        simulator.load(self.project)
        try:
            found = simulator.run(self.pixels, self.task, trace=True)
        except CheckFailed as failure:
            return Checked(str(failure), 0, ())
        difference = self.difference(found)
        return Checked(None if difference is None else str(difference), found.cycles or 0, found.steps)


def frames_of(project: Project, images: Sequence[tuple[FloatArray, int]]) -> list[Frame]:
    """Frames from (image, task)."""
    found = []
    for image, task in images:
        execution = reference.run(project.integer, image, task)
        found.append(Frame(project, quantise_image(project.integer, image), execution, task))
    return found
