"""The simulator of a level for a project: in go a project and a level's name, out comes a `Simulator`, built and ready."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray
from moehls.plan.instruction import ANY_TASK
from moehls.plan.layout import (
    CHUNK_BYTES,
    activation_tensor,
    input_bytes,
    output_tensors,
    port_chunks,
    queue_gates,
    raw_tensor,
    residual_tensor,
)
from moehls.plan.payload import Bytes
from moehls.plan.shape import Shape
from moehls.plan.steps import Place
from moehls.project import Project
from moehls.simulate import csim
from moehls.simulate.simulator import Simulation, Simulator

_ACTIVATIONS = {"m0": 0, "m1": 1, "m2": 2, "m3": 3}


@dataclass(frozen=True)
class CSimulator:
    """The C++ of a project, compiled; it observes every stage of the plan."""

    project: Project
    library: csim.Library

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        """One image; `trace` reads every stage from the machine's memories."""
        plan = self.project.plan
        at: dict[int, list[int]] = {}
        for number, stage in enumerate(plan.stages):
            if stage.task in (ANY_TASK, task):
                at.setdefault(stage.step, []).append(number)
        stages: dict[int, IntArray] = {}

        def on_step(index: int, _ran: bool, memories: csim.Memories) -> None:
            for number in at.get(index, ()):
                stages[number] = read_place(plan.stages[number].place, memories, plan.shape)

        data = input_bytes(pixels, plan.input, plan.shape)
        results = self.library.run(data, plan.output_beats, task, on_step if trace else None)
        return Simulation(output_tensors(results, plan.outputs), stages)


def read_place(place: Place, memories: csim.Memories, shape: Shape) -> IntArray:
    """The value at `place`: `[rows, channels]`, of a routing the gates `[tokens, experts]`."""
    if place.memory == "residual":
        return residual_tensor(place, memories.residual(), shape)
    if place.memory == "raw":
        return raw_tensor(place, memories.raw(), shape)
    if place.memory == "queue":
        return queue_gates(place, memories.queue(), memories.count(), shape)
    return activation_tensor(place, memories.activation(_ACTIVATIONS[place.memory]), shape)


def weight_stream(project: Project) -> Bytes:
    """data/weights.bin, `[ports, chunks, 16]`.

    Raises:
        MoehlsError: the file is missing or has another size than the plan says.
    """
    path, plan = project.path / "data/weights.bin", project.plan
    if not path.is_file() or path.stat().st_size != plan.weight_beats * plan.shape.ports * CHUNK_BYTES:
        raise MoehlsError(f"{path}: missing or of another size than planned; compile the model again")
    return port_chunks(np.fromfile(path, np.uint8), plan.shape.ports)


def simulator(project: Project, level: str, *, seed: int = 0, stall: float = 0.0) -> Simulator:
    """The simulator of `csim` or `rtl`; it is built when the project's sources are newer than the last build.

    Raises:
        MoehlsError: the level cannot run here; the message says what is missing.
    """
    if level == "csim":
        library = csim.build(project.path)
        library.load(weight_stream(project))
        return CSimulator(project, library)
    raise MoehlsError(f"the level {level} is not available in this version; the levels are reference and csim")
