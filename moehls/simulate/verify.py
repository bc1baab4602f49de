"""Verification: the integer reference against the float model, and every simulator against the reference.

In: the float network, the integer network, its program, samples and the simulators to check. Out: `Verification`. A
simulator passes only where every output integer of every sample equals the reference's; on the first sample every stage
it traces is compared as well, in the order of computation, so that the first stage and index that differ are named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moehls import reference
from moehls.errors import CheckFailed
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntArray, IntegerExperts, IntegerNetwork
from moehls.network.operations import FloatArray, Network
from moehls.plan.instruction import ANY_TASK
from moehls.plan.layout import chosen_gates
from moehls.plan.steps import Program, Stage
from moehls.samples import Samples
from moehls.simulate.compare import Fidelity, FidelityMeter
from moehls.simulate.fidelity import first_difference
from moehls.simulate.simulator import Simulation, Simulator

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Difference:
    """The first value that differs: in which sample, stage (or output) and index, what was expected and found.

    Where there are no two values to show (a shape that differs, a kernel that hangs), `stage` says what is wrong.
    """

    sample: int
    stage: str
    index: tuple[int, ...] = ()
    expected: int | None = None
    found: int | None = None

    def __str__(self) -> str:
        if self.expected is None:
            return f"sample {self.sample}, {self.stage}"
        place = "".join(f"[{i}]" for i in self.index)
        return f"sample {self.sample}, {self.stage}{place}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class Level:
    """One row of the table: a level, and for a simulator whether it is exact."""

    name: str
    samples: int
    stages: int
    """stages compared on the first sample"""
    seconds: float
    """a sample"""
    difference: Difference | None
    cycles: int | None
    """most cycles of a sample, where the level counts them"""
    step_cycles: tuple[int, ...] = ()
    """cycles of each step in that sample"""
    step_beats: tuple[int, ...] = ()
    """128-bit beats that all ports read during each step in that sample"""
    expert_tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """tokens each expert got in that sample, by the name of the experts operation"""


@dataclass(frozen=True)
class Verification:
    """All levels that ran; `fidelity` is there where the level `reference` was asked for."""

    levels: tuple[Level, ...]
    fidelity: Fidelity | None

    @property
    def passed(self) -> bool:
        """Whether no level differs from the reference."""
        return all(level.difference is None for level in self.levels)

    def failure(self) -> str:
        """Where each level that failed differs."""
        return "; ".join(f"{level.name}: {level.difference}" for level in self.levels if level.difference is not None)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        levels = [
            {
                "level": level.name,
                "samples": level.samples,
                "stages": level.stages,
                "seconds": round(level.seconds, 6),
                "cycles": level.cycles,
                "step_cycles": list(level.step_cycles),
                "step_beats": list(level.step_beats),
                "expert_tokens": {name: list(tokens) for name, tokens in level.expert_tokens.items()},
                "exact": None if level.name == "reference" else level.difference is None,
                "difference": None if level.difference is None else str(level.difference),
            }
            for level in self.levels
        ]
        return {
            "passed": self.passed,
            "levels": levels,
            "fidelity": None if self.fidelity is None else self.fidelity.as_json(),
        }


def verify(
    network: Network,
    integer: IntegerNetwork,
    program: Program,
    samples: Samples,
    simulators: Mapping[str, Simulator],
    *,
    fidelity: bool,
    progress: Progress,
) -> Verification:
    """Run every sample at every level.

    The reference always runs, as every other level is compared with it; `fidelity` also runs the float model.
    """
    meter = FidelityMeter(network, integer) if fidelity else None
    seconds = dict.fromkeys(["reference", *simulators], 0.0)
    slowest: dict[str, Simulation] = {}
    loads: dict[str, Mapping[str, tuple[int, ...]]] = {}
    differences: dict[str, Difference] = {}
    compared = dict.fromkeys(simulators, 0)
    for index in range(len(samples)):
        image, task = samples.images[index], int(samples.tasks[index])
        start = time.perf_counter()
        execution = reference.run(integer, image, task)
        seconds["reference"] += time.perf_counter() - start
        if meter is not None:
            meter.add(image, task, execution, {name: labels[index] for name, labels in samples.labels.items()})
        for name, simulator in simulators.items():
            if name in differences:
                continue
            start = time.perf_counter()
            try:
                simulation, difference = _check(simulator, integer, program, execution, index, image, task)
            except CheckFailed as failure:
                differences[name] = Difference(index, str(failure))
                continue
            seconds[name] += time.perf_counter() - start
            if name not in slowest or (simulation.cycles or 0) > (slowest[name].cycles or 0):
                slowest[name], loads[name] = simulation, _expert_tokens(integer, execution)
            compared[name] = max(compared[name], len(simulation.stages))
            if difference is not None:
                differences[name] = difference
        progress(f"sample {index + 1} of {len(samples)}", (index + 1) / len(samples))
    levels = [Level("reference", len(samples), 0, seconds["reference"] / len(samples), None, None)] if fidelity else []
    for name in simulators:
        difference = differences.get(name)
        ran = len(samples) if difference is None else difference.sample + 1
        longest = slowest.get(name, Simulation({}))
        level = Level(
            name,
            ran,
            compared[name],
            seconds[name] / ran,
            difference,
            longest.cycles,
            longest.step_cycles(),
            longest.step_beats(),
            loads.get(name, {}),
        )
        levels.append(level)
    return Verification(tuple(levels), meter.result() if meter is not None else None)


def _expert_tokens(integer: IntegerNetwork, execution: reference.Execution) -> dict[str, tuple[int, ...]]:
    """Tokens each expert gets, by the name of the experts operation."""
    return {
        op.name: tuple(execution.routing(op.routing).tokens(len(op.first_weight)).tolist())
        for op in integer.operations
        if isinstance(op, IntegerExperts)
    }


def _check(
    simulator: Simulator,
    integer: IntegerNetwork,
    program: Program,
    execution: reference.Execution,
    sample: int,
    image: FloatArray,
    task: int,
) -> tuple[Simulation, Difference | None]:
    """Run a sample. A later sample than the first is traced where an output differs, to name the first stage that does."""
    pixels = quantise_image(integer, image)
    simulation = simulator.run(pixels, task, trace=sample == 0)
    difference = compare(integer, program, execution, simulation, sample, task)
    if difference is not None and sample > 0:
        traced = simulator.run(pixels, task, trace=True)
        difference = compare(integer, program, execution, traced, sample, task) or difference
    return simulation, difference


def compare(
    integer: IntegerNetwork,
    program: Program,
    execution: reference.Execution,
    simulation: Simulation,
    sample: int,
    task: int,
) -> Difference | None:
    """The first stage, then the first output, in which a simulation differs from the reference."""
    for number, found in sorted(simulation.stages.items()):
        stage = program.stages[number]
        if stage.task in (ANY_TASK, task):
            expected = _expected(execution, stage)
            index = first_difference(expected, found)
            if index is not None:
                place = f"stage {number} ({stage.name}, {_after(program, simulation, stage.step)})"
                return _difference(sample, place, index, expected, found)
    for output in integer.outputs:
        expected = execution.array(output.value)
        found = simulation.outputs[output.name]
        index = first_difference(expected, found)
        if index is not None:
            step = next(n for n, step in enumerate(program.steps) if step.name == f"store {output.value}")
            place = f"output {output.name} ({_after(program, simulation, step)})"
            return _difference(sample, place, index, expected, found)
    return None


def _after(program: Program, simulation: Simulation, step: int) -> str:
    """The step that made a value and, where the simulator counts cycles, the cycle in which it had ended."""
    cycle = f", in cycle {simulation.steps[step + 1]}" if step + 1 < len(simulation.steps) else ""
    return f"after step {program.steps[step].name}{cycle}"


def _expected(execution: reference.Execution, stage: Stage) -> IntArray:
    if stage.kind != "routing":
        return stage.part(execution.array(stage.value))
    routing = execution.routing(stage.value)
    return chosen_gates(routing.chosen, routing.gates, stage.place.channels.count)


def _difference(sample: int, stage: str, index: tuple[int, ...], expected: IntArray, found: IntArray) -> Difference:
    if index == () and expected.shape != ():
        return Difference(sample, f"{stage}: other shape than the reference")
    return Difference(sample, stage, index, int(np.asarray(expected)[index]), int(np.asarray(found)[index]))
