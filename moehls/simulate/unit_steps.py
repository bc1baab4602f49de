"""Steps of a frame as the step bench takes them (`tb/step_bench.py`).

In go a project and an image; out come the steps that ran, with the memories of their units before and after, from the C
simulation, whose every stage and output is compared with the NumPy reference on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moehls import reference
from moehls.errors import CheckFailed
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntArray
from moehls.network.operations import FloatArray
from moehls.plan.check import ENGINE
from moehls.plan.instruction import ANY_TASK, NO_EXPERT, NO_SPLIT, Binding, Kind, Mode, encode
from moehls.plan.layout import CHUNK_BYTES, input_bytes, output_tensors
from moehls.plan.payload import Bytes
from moehls.plan.steps import Step
from moehls.project import Project
from moehls.simulate import csim
from moehls.simulate.places import read_place, weight_stream
from moehls.simulate.simulator import Simulation
from moehls.simulate.verify import compare

Wanted = Callable[[Step], bool]
_UNITS: dict[int, tuple[str, dict[str, str]]] = {
    Kind.INPUT: ("input_pixels", {"memory": "m3"}),
    Kind.LOAD: ("load", {"residual": "residual"}),
    Kind.NORM: ("norm", {"residual": "residual", "operands": "m0", "planes": "m2"}),
    Kind.POOL: ("pool", {"residual": "residual", "operands": "m0", "planes": "m2"}),
    Kind.ROUTE: ("route", {"raw": "raw", "queue": "queue", "count": "count"}),
    Kind.GATHER: ("gather", {"queue": "queue", "from": "m0", "to": "m1"}),
    Kind.STORE: ("store", {"residual": "residual", "planes": "m2", "raw": "raw"}),
}


@dataclass(frozen=True)
class Recorded:
    """A step that ran: its header as its unit gets it, its streams, and its unit's memories by formal parameter.

    Memories are `[banks, depth, word bytes]`, streams `[values, bytes]`.
    """

    name: str
    header: int
    words: Bytes
    pixels: Bytes
    results: Bytes
    before: dict[str, Bytes]
    after: dict[str, Bytes]


def formals(step: Step, norm_targets: bool) -> tuple[str, dict[str, str]]:
    """The unit that runs a step, and the memory behind each of its array parameters; `norm_targets` as in `Shape`."""
    instruction = step.instruction
    if instruction.kind != Kind.LINEAR:
        unit, memories = _UNITS[instruction.kind]
        return unit, memories | ({"queries": "m1"} if instruction.kind == Kind.NORM and norm_targets else {})
    x, w, y = ENGINE[Binding(instruction.binding)]
    return "engine", {"x": x, "w": w, "y": y, "residual": "residual", "raw": "raw", "queue": "queue"}


def is_mode(*modes: Mode) -> Wanted:
    """LINEAR steps of these modes."""
    return lambda step: step.instruction.kind == Kind.LINEAR and step.instruction.mode in modes


def is_kind(kind: Kind) -> Wanted:
    """Steps of a kind."""
    return lambda step: step.instruction.kind == kind


def steps_that_run(project: Project, image: FloatArray, task: int) -> list[int]:
    """Numbers of the steps that a frame runs; not those that end it or a section, of other tasks or experts without tokens."""
    ran: list[int] = []
    steps = project.program.steps

    def on_step(index: int, runs: bool, _: csim.Memories) -> None:
        if runs and steps[index].instruction.kind not in (Kind.SECTION, Kind.END):
            ran.append(index)

    data, _ = _frame(project, image)
    _library(project).run(data, project.plan.output_beats, task, on_step)
    return ran


def choose(project: Project, numbers: Sequence[int], wanted: Wanted, cycles: int) -> list[int]:
    """Steps for a bench: of every form the shortest, then the shortest of all while estimated cycles are left."""
    steps, costs = project.program.steps, project.plan.costs
    forms: set[tuple[int | bool, ...]] = set()
    first: list[int] = []
    more: list[int] = []
    for n in sorted((n for n in numbers if wanted(steps[n])), key=lambda n: (costs[n].cycles, n)):
        i = steps[n].instruction
        form = (i.kind, i.mode, i.flags, i.binding, i.split == NO_SPLIT, i.expert == NO_EXPERT, i.task == ANY_TASK)
        (more if form in forms else first).append(n)
        forms.add(form)
    left = cycles - sum(costs[n].cycles for n in first)
    for n in more:
        left -= costs[n].cycles
        if left < 0:
            break
        first.append(n)
    return sorted(first)


def record(project: Project, image: FloatArray, task: int, chosen: Collection[int]) -> dict[int, Recorded]:
    """Run a frame in the C simulation, compare it with the reference, and keep the `chosen` steps.

    Raises:
        CheckFailed: the C simulation differs from the reference; the message names stage, index, expected and found.
    """
    program, plan = project.program, project.plan
    targets = plan.shape.norm_targets
    before: dict[int, dict[str, Bytes]] = {}
    after: dict[int, dict[str, Bytes]] = {}
    rows: dict[int, int] = {}
    stages: dict[int, IntArray] = {}

    def on_step(index: int, _: bool, memories: csim.Memories) -> None:
        if index in chosen:
            after[index] = _images(program.steps[index], memories, targets)
            expert = program.steps[index].instruction.expert
            if expert != NO_EXPERT:
                rows[index] = int(memories.count()[expert])
        if index + 1 in chosen:
            before[index + 1] = _images(program.steps[index + 1], memories, targets)
        for number, stage in enumerate(plan.stages):
            if stage.step == index and stage.task in (ANY_TASK, task):
                stages[number] = read_place(stage.place, memories, plan.shape)

    data, execution = _frame(project, image, task)
    assert execution is not None
    library = _library(project)
    if 0 in chosen:
        before[0] = _images(program.steps[0], library.memories, targets)
    results = library.run(data, plan.output_beats, task, on_step)
    simulation = Simulation(output_tensors(results, plan.outputs), stages)
    difference = compare(project.integer, program, execution, simulation, 0, task)
    if difference is not None:
        raise CheckFailed(f"csim: {difference}")
    return {
        n: Recorded(
            program.steps[n].name,
            _header(project, program.steps[n], rows.get(n)),
            program.steps[n].words(plan.shape),
            data.reshape(-1, CHUNK_BYTES)[: None if program.steps[n].instruction.kind == Kind.INPUT else 0],
            _results(project, program.steps[n], results),
            before[n],
            after[n],
        )
        for n in sorted(after)
    }


def bench_data(steps: Sequence[Recorded], latency: Callable[[str], int], path: Path) -> Mapping[str, Any]:
    """Settings of `step_bench` for steps of one unit; arrays go to `path`. `latency` is of the memory behind a formal."""
    arrays: dict[str, Bytes] = {}
    for k, step in enumerate(steps):
        arrays |= {f"{k}.words": step.words, f"{k}.pixels": step.pixels, f"{k}.results": step.results}
        arrays |= {f"{k}.before.{formal}": image for formal, image in step.before.items()}
        arrays |= {f"{k}.after.{formal}": image for formal, image in step.after.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {
        "data": str(path),
        "scalar": "h",
        "steps": [{"scalar": f"{step.header:x}", "name": step.name} for step in steps],
        "inputs": ["words", "pixels"],
        "outputs": ["results"],
        "memories": {
            formal: {"banks": image.shape[0], "latency": latency(formal)} for formal, image in steps[0].before.items()
        },
    }


def _library(project: Project) -> csim.Library:
    library = csim.build(project.path)
    library.load(weight_stream(project), project.plan.first_beats)
    return library


def _frame(project: Project, image: FloatArray, task: int | None = None) -> tuple[Bytes, reference.Execution | None]:
    """The frame's input bytes and, of a task, the reference's execution."""
    execution = None if task is None else reference.run(project.integer, image, task)
    return input_bytes(quantise_image(project.integer, image), project.plan.input, project.plan.shape), execution


def _images(step: Step, memories: csim.Memories, norm_targets: bool) -> dict[str, Bytes]:
    """The memories of a step's unit, by formal parameter."""
    return {formal: _image(memory, memories) for formal, memory in formals(step, norm_targets)[1].items()}


def _image(memory: str, memories: csim.Memories) -> Bytes:
    if memory == "residual":
        return memories.residual()
    if memory == "raw":
        return memories.raw()[None]
    if memory == "queue":
        return memories.queue().reshape(1, -1, 1).view(np.uint8)[:, :, :5]
    if memory == "count":
        return memories.count().astype(np.uint16).reshape(1, -1, 1).view(np.uint8)
    return memories.activation(int(memory.removeprefix("m")))


def _header(project: Project, step: Step, rows: int | None) -> int:
    """The header as `compute` passes it on: a queued step has the rows its queue holds."""
    instruction, tokens = step.instruction, project.plan.shape.token_parallel
    if rows is not None:
        instruction = replace(instruction, rows=rows, n1=-(-rows // tokens))
    return encode(instruction)


def _results(project: Project, step: Step, results: Bytes) -> Bytes:
    """The beats a STORE step sends."""
    beats: Bytes = results.reshape(-1, CHUNK_BYTES)
    if step.instruction.kind != Kind.STORE:
        return beats[:0]
    output = next(o for o in project.program.outputs if f"store {o.value}" == step.name)
    return beats[output.beat : output.beat + output.beats]
