"""Steps of a program as the step bench takes them: memories before and after, from the C simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moehls.plan.instruction import ANY_TASK, NO_EXPERT, Binding, Kind, Mode, encode
from moehls.plan.layout import CHUNK_BYTES, chosen_gates, port_chunks, stream_words
from moehls.plan.steps import Step
from moehls.project import Project
from moehls.reference import Routing
from moehls.simulate import csim
from moehls.simulate.places import read_place
from tests.tb.projects import frame

BINDINGS: dict[int, tuple[str, str, str]] = {
    Binding.QUERY_VALUE: ("m0", "m3", "m1"),
    Binding.KEY: ("m0", "m3", "m2"),
    Binding.SCORES: ("m1", "m2", "m3"),
    Binding.CONTEXT: ("m3", "m1", "m0"),
    Binding.PROJECT: ("m0", "m1", "m3"),
    Binding.ROUTER: ("m2", "m1", "m3"),
    Binding.UP: ("m1", "m3", "m2"),
}
UNITS: dict[int, tuple[str, dict[str, str]]] = {
    Kind.INPUT: ("input_pixels", {"memory": "m3"}),
    Kind.LOAD: ("load", {"residual": "residual"}),
    Kind.NORM: ("norm", {"residual": "residual", "operands": "m0", "planes": "m2"}),
    Kind.POOL: ("pool", {"residual": "residual", "operands": "m0", "planes": "m2"}),
    Kind.ROUTE: ("route", {"raw": "raw", "queue": "queue", "count": "count"}),
    Kind.GATHER: ("gather", {"queue": "queue", "from": "m0", "to": "m1"}),
    Kind.STORE: ("store", {"residual": "residual", "planes": "m2", "raw": "raw"}),
}


@dataclass(frozen=True)
class Trace:
    """A frame in the C simulation: the memories after every step, and the frame's input and result."""

    memories: list[dict[str, np.ndarray]]
    ran: list[bool]
    pixels: np.ndarray
    results: np.ndarray


def formals(step: Step) -> tuple[str, dict[str, str]]:
    """The unit that runs a step, and the memory behind each of its array parameters."""
    instruction = step.instruction
    if instruction.kind != Kind.LINEAR:
        return UNITS[instruction.kind]
    x, w, y = BINDINGS[instruction.binding]
    return "engine", {"x": x, "w": w, "y": y, "residual": "residual", "raw": "raw", "queue": "queue"}


def trace(project: Project, seed: int, task: int) -> Trace:
    """Run a random frame; every stage is compared with the NumPy reference on the way."""
    library = csim.build(project.path)
    shape, program = project.plan.shape, project.program
    library.load(port_chunks(stream_words(program, shape), shape.ports))
    data, expected, execution = frame(project, seed, task)
    memories: list[dict[str, np.ndarray]] = []
    ran: list[bool] = []

    def on_step(index: int, runs: bool, images: csim.Memories) -> None:
        ran.append(runs)
        memories.append(_images(images))
        for stage in program.stages:
            if stage.step == index and stage.task in (ANY_TASK, task):
                value = execution.values[stage.value]
                if isinstance(value, Routing):
                    value = chosen_gates(value.chosen, value.gates, stage.place.channels.count)
                np.testing.assert_array_equal(read_place(stage.place, images, shape), value, err_msg=stage.value)

    results = library.run(data, program.output_beats, task, on_step)
    np.testing.assert_array_equal(results, expected)
    return Trace(memories, ran, data, results)


def _images(images: csim.Memories) -> dict[str, np.ndarray]:
    found = {f"m{number}": images.activation(number) for number in range(4)}
    queue, count = images.queue(), images.count()
    return found | {
        "residual": images.residual(),
        "raw": images.raw()[None],
        "queue": queue.reshape(1, -1, 1).view(np.uint8)[:, :, :5],
        "count": count.astype(np.uint16).reshape(1, -1, 1).view(np.uint8),
    }


def bench_data(
    project: Project, trace: Trace, wanted: Callable[[Step], bool], latency: Callable[[str], int], path: Path
) -> Mapping[str, Any]:
    """Settings of `step_bench` for the steps of one unit; arrays go to `path`."""
    shape, steps = project.plan.shape, project.program.steps
    chosen = [n for n, step in enumerate(steps) if trace.ran[n] and step.instruction.kind != Kind.END and wanted(step)]
    assert chosen, "no step of the program is of this kind"
    unit, parameters = formals(steps[chosen[0]])
    arrays: dict[str, np.ndarray] = {}
    for k, n in enumerate(chosen):
        assert formals(steps[n])[0] == unit
        words = steps[n].words(shape)
        arrays[f"{k}.words"] = words
        kind = steps[n].instruction.kind
        arrays[f"{k}.pixels"] = trace.pixels.reshape(-1, CHUNK_BYTES)[: None if kind == Kind.INPUT else 0]
        arrays[f"{k}.results"] = _results(project, steps[n], trace)
        for formal, memory in formals(steps[n])[1].items():
            arrays[f"{k}.before.{formal}"] = trace.memories[n - 1][memory] if n else trace.memories[0][memory] * 0
            arrays[f"{k}.after.{formal}"] = trace.memories[n][memory]
    np.savez(path, **arrays)
    headers = [_header(project, trace, n) for n in chosen]
    return {
        "data": str(path),
        "steps": [{"header": header, "name": steps[n].name} for header, n in zip(headers, chosen, strict=True)],
        "inputs": ["words", "pixels"],
        "outputs": ["results"],
        "memories": {
            formal: {"banks": arrays[f"0.before.{formal}"].shape[0], "latency": latency(formal)}
            for formal in parameters
        },
    }


def _header(project: Project, trace: Trace, n: int) -> str:
    """The header as `compute` passes it on: a queued step has the rows its queue holds."""
    instruction, tokens = project.program.steps[n].instruction, project.plan.shape.token_parallel
    if instruction.expert != NO_EXPERT:
        rows = int(trace.memories[n]["count"].view(np.uint16)[0, instruction.expert, 0])
        instruction = replace(instruction, rows=rows, n1=-(-rows // tokens))
    return f"{encode(instruction):x}"


def _results(project: Project, step: Step, trace: Trace) -> np.ndarray:
    """The beats a STORE step sends."""
    beats = trace.results.reshape(-1, CHUNK_BYTES)
    if step.instruction.kind != Kind.STORE:
        return beats[:0]
    output = next(o for o in project.program.outputs if f"store {o.value}" == step.name)
    return beats[output.beat : output.beat + output.beats]


def is_mode(*modes: Mode) -> Callable[[Step], bool]:
    """LINEAR steps of these modes."""
    return lambda step: step.instruction.kind == Kind.LINEAR and step.instruction.mode in modes


def is_kind(kind: Kind) -> Callable[[Step], bool]:
    """Steps of a kind."""
    return lambda step: step.instruction.kind == kind
