"""Kernels that prefetch the chosen experts alone: C simulation and RTL equal the reference, and nothing else is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from moehls.plan.instruction import ANY_TASK, NO_EXPERT
from moehls.project import Project
from moehls.reference import Execution, Routing, run
from moehls.simulate.csim import Memories, build
from moehls.simulate.places import weight_stream
from moehls.simulate.rtl import RtlSimulator, dram_of
from moehls.simulate.rtl_frame import Dram
from moehls.simulate.rtl_kernel import kernel_frame, run_kernel_bench
from moehls.simulate.simulator import Simulation
from moehls.simulate.verify import compare
from tests.support.random_networks import random_image
from tests.tb.projects import SMALL_SHAPE, TINY, pixels_of, write_random_project
from tests.tb.test_frames import KERNEL_TESTS

SIZES = replace(TINY, experts=11, k=1, layers=4)
"""many experts, one a token: some of them without tokens"""
PREFETCHED = SMALL_SHAPE | {"experts": "prefetched"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return write_random_project(tmp_path_factory.mktemp("prefetch"), 4, SIZES, PREFETCHED)


@pytest.fixture(scope="module")
def simulator(project: Project) -> Iterator[RtlSimulator]:
    made = RtlSimulator(project, dram_of(project))
    yield made
    made.close()


def simulate(simulator: RtlSimulator, seed: int, task: int) -> tuple[Simulation, Execution]:
    """A frame, every stage and output of it compared with the reference."""
    project = simulator.project
    found = simulator.run(pixels_of(project.integer, seed), task, trace=True)
    execution = run(project.integer, random_image(project.integer, seed), task)
    assert compare(project.integer, project.program, execution, found, 0, task) is None
    assert set(found.stages) == {n for n, s in enumerate(project.plan.stages) if s.task in (ANY_TASK, task)}
    return found, execution


def chosen_experts(project: Project, execution: Execution) -> set[tuple[str, int]]:
    """(operation, expert) of every expert that got tokens."""
    routes = {op.name: op.routing for op in project.integer.operations if hasattr(op, "routing")}
    found: set[tuple[str, int]] = set()
    for operation, routing in routes.items():
        values = execution.values[routing]
        assert isinstance(values, Routing)
        found |= {(operation, int(expert)) for expert in np.unique(values.chosen[values.chosen >= 0])}
    return found


def words_read(project: Project, execution: Execution) -> int:
    """Words of the stream that such a frame needs: all headers, and the payload of all but experts without tokens."""
    program, chosen = project.program, chosen_experts(project, execution)
    idle = [
        step.instruction.payload_words
        for step in program.steps
        if step.instruction.expert != NO_EXPERT and (step.operation, step.instruction.expert) not in chosen
    ]
    assert len(idle) >= 3
    return program.words - sum(idle)


@pytest.mark.parametrize("task", [0, 1])
def test_the_rtl_equals_the_reference_and_reads_no_expert_without_tokens(simulator: RtlSimulator, task: int) -> None:
    """The total, and of every step: all words up to it are there when its header is taken, and no expert's that has no token."""
    found, execution = simulate(simulator, 5, task)
    project = simulator.project
    plan, shape = project.plan, project.plan.shape
    beats = words_read(project, execution) * shape.word_bits // 128
    assert found.beats[-1] == beats + plan.input_beats
    assert beats < plan.weight_beats * shape.ports


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slow_and_stalling_memory_changes_only_the_cycles(simulator: RtlSimulator, seed: int) -> None:
    fast, _ = simulate(simulator, 7, seed % 2)
    dram = Dram(latency=150 * seed, beats=0.5 * seed, refresh_interval=500, refresh_length=90, stall=0.2 * seed)
    for setting, value in dram.settings().items():
        simulator.bench.command("dram", setting, value)
    slow, _ = simulate(simulator, 7, seed % 2)
    for setting, value in dram_of(simulator.project).settings().items():
        simulator.bench.command("dram", setting, value)
    assert (slow.cycles or 0) > (fast.cycles or 0)
    assert slow.beats[-1] == fast.beats[-1]


def test_kernel_at_its_ports(project: Project) -> None:
    """Registers, interrupt, frames of both tasks back to back, stalls, reset within a frame, read errors."""
    frames = [kernel_frame(project, random_image(project.integer, 20 + n), task) for n, task in enumerate((0, 1, 1, 0))]
    assert run_kernel_bench(project, frames, limit=600).tests == KERNEL_TESTS


@pytest.mark.parametrize("bounded", [False, True])
def test_the_c_simulation_reads_no_expert_without_tokens(project: Project, bounded: bool) -> None:
    """Its payload is overwritten in DRAM, and the results stay."""
    image = random_image(project.integer, 9)
    wanted, execution = kernel_frame(project, image, 1), run(project.integer, image, 1)
    plan, shape, program = project.plan, project.plan.shape, project.program
    chosen, stream = chosen_experts(project, execution), weight_stream(project)
    words = stream.swapaxes(0, 1).reshape(program.words, -1).copy()
    position = 0
    for step, headers, count in zip(program.steps, program.own_header_words, program.step_words, strict=True):
        expert = step.instruction.expert
        if expert != NO_EXPERT and (step.operation, expert) not in chosen:
            words[position + headers : position + count] = 0xA5
        position += count
    ran: list[bool] = []

    def watch(step: int, did: bool, memories: Memories) -> None:
        ran.append(did)

    library = build(project.path, bounded=bounded)
    library.load(words.reshape(-1, shape.ports, 16).swapaxes(0, 1), plan.first_beats)
    np.testing.assert_array_equal(library.run(wanted.input, plan.output_beats, 1, watch), wanted.expected)
    assert len(ran) == len(program.steps)
