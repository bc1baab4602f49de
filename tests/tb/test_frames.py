"""Whole kernels of random networks in Verilator: at their AXI ports under cocotb, and frame by frame on the DRAM model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from moehls.errors import CheckFailed
from moehls.plan.instruction import ANY_TASK
from moehls.project import Project
from moehls.reference import run
from moehls.simulate.rtl import RtlSimulator, dram_of
from moehls.simulate.rtl_frame import Dram
from moehls.simulate.rtl_kernel import kernel_frame, run_kernel_bench
from moehls.simulate.simulator import Simulation
from moehls.simulate.verify import compare
from tests.support.random_networks import random_image
from tests.tb.projects import TINY, pixels_of, write_random_project

KERNEL_TESTS = 7


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Gated MLPs and experts, shared experts, RMS normalisation, of queries and keys too, and experts in groups, chosen by
    sigmoids with a bias, beside a softmax, whose gates multiply their inputs; `test_digits.py` has the plain ones."""
    sizes = replace(TINY, gated=True, centred=False, normalised=True)
    chosen = replace(sizes, score="sigmoid", group=2, kept_groups=1, selects=True, weigh_inputs=True)
    return write_random_project(tmp_path_factory.mktemp("frames"), 2, chosen)


@pytest.fixture(scope="module")
def simulator(project: Project) -> Iterator[RtlSimulator]:
    made = RtlSimulator(project, dram_of(project))
    yield made
    made.close()


def simulate(simulator: RtlSimulator, seed: int, task: int) -> Simulation:
    """A frame, every stage and output of it compared with the reference."""
    project = simulator.project
    found = simulator.run(pixels_of(project.integer, seed), task, trace=True)
    execution = run(project.integer, random_image(project.integer, seed), task)
    assert compare(project.integer, project.program, execution, found, 0, task) is None
    return found


@pytest.mark.parametrize("task", [0, 1])
def test_every_stage_of_a_frame_equals_the_reference(simulator: RtlSimulator, task: int) -> None:
    found = simulate(simulator, 5, task)
    stages = simulator.project.plan.stages
    assert set(found.stages) == {n for n, stage in enumerate(stages) if stage.task in (ANY_TASK, task)}


def test_cycles_of_the_steps_sum_to_the_frame(simulator: RtlSimulator) -> None:
    found = simulate(simulator, 6, 0)
    assert found.cycles is not None
    assert len(found.steps) == len(simulator.project.plan.costs)
    assert list(found.steps) == sorted(found.steps)
    assert sum(found.step_cycles()) == found.cycles - found.steps[0]
    assert len(found.step_beats()) == len(found.step_cycles())
    project = simulator.project
    assert found.beats[-1] == project.plan.weight_beats * project.plan.shape.ports + project.plan.input_beats


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_slow_and_stalling_memory_changes_only_the_cycles(
    project: Project, simulator: RtlSimulator, seed: int
) -> None:
    fast = simulate(simulator, 7, seed % 2)
    dram = Dram(
        latency=150 * seed, beats=0.5 * seed, refresh_interval=500, refresh_length=90, stall=0.2 * seed, seed=seed
    )
    for setting, value in dram.settings().items():
        simulator.bench.command("dram", setting, value)
    slow = simulate(simulator, 7, seed % 2)
    for setting, value in dram_of(project).settings().items():
        simulator.bench.command("dram", setting, value)
    assert (slow.cycles or 0) > (fast.cycles or 0)


def test_a_stream_that_ends_early_is_reported_as_a_hang(project: Project, simulator: RtlSimulator) -> None:
    """The message names the step that waits."""
    weights = project.plan.first_beats
    object.__setattr__(project.plan, "first_beats", weights // 2)
    try:
        with pytest.raises(CheckFailed, match=r"step \d+ \(.*\), entered in cycle \d+: the kernel hangs"):
            simulator.run(pixels_of(project.integer, 1), 0, trace=False)
    finally:
        object.__setattr__(project.plan, "first_beats", weights)
        simulator.bench.command("reset")
    simulate(simulator, 8, 0)


def test_kernel_at_its_ports(project: Project) -> None:
    """Registers, interrupt, frames of both tasks back to back, stalls, reset within a frame, read errors."""
    frames = [kernel_frame(project, random_image(project.integer, 20 + n), task) for n, task in enumerate((0, 1, 1, 0))]
    assert run_kernel_bench(project, frames, limit=600).tests == KERNEL_TESTS
