"""Every unit of the step machine alone: its steps of a random network, in Verilator under cocotb, against the reference.

The code of `make sim`, on a network that has every kind of step.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from moehls.errors import CheckFailed
from moehls.plan.instruction import Kind, Mode
from moehls.simulate.rtl_units import NAMES, STEPS, UnitBenches, prepare
from tests.support.random_networks import random_image
from tests.tb.projects import TINY, write_random_project

TESTS = 2
"""without stalls and with"""
ALL_STEPS = 1_000_000


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> UnitBenches:
    project = write_random_project(
        tmp_path_factory.mktemp("units"),
        1,
        replace(
            TINY,
            layers=4,
            pooled=True,
            threshold=12000,
            renormalise=True,
            capacity=2,
            priority="choice",
            score="sigmoid",
            group=2,
            kept_groups=1,
            slots=6,
            biased=True,
            normalised=True,
        ),
    )
    frames = [(random_image(project.integer, 3 + task), task) for task in range(project.integer.tasks)]
    return prepare(project, frames, cycles=ALL_STEPS)


def test_every_step_is_in_a_bench(benches: UnitBenches) -> None:
    """A kind or mode of steps without a bench would pass unseen."""
    for step in benches.project.program.steps:
        if step.instruction.kind != Kind.END:
            assert sum(wanted(step) for _, wanted in STEPS.values()) == 1, step.name
    modes = {s.instruction.mode for s in benches.project.program.steps if s.instruction.kind == Kind.LINEAR}
    assert modes == set(Mode) - {Mode.GATED}  # of another network: test_frames.py


@pytest.mark.parametrize("name", NAMES)
def test_unit(benches: UnitBenches, name: str) -> None:
    found = benches.run(name)
    assert found is not None
    assert found.tests == TESTS
    assert found.runs >= 1


def test_the_array_of_primitives_is_the_array_that_is_simulated(benches: UnitBenches, tmp_path: Path) -> None:
    """Synthesis takes DSP48E2 where simulation takes what `dsp_slice` says they do."""
    library = next(path for path in benches.sources if path.name == "dsp_slice.sv")
    synthesised = tmp_path / "dsp_slice.sv"
    synthesised.write_text(f"`define SYNTHESIS\n{library.read_text()}\n`undef SYNTHESIS\n")
    others = tuple(path for path in benches.sources if path != library)
    model = Path(__file__).parent / "dsp48e2.sv"
    found = replace(benches, sources=(*others, synthesised, model)).run("MAC engine")
    assert found is not None
    assert found.tests == TESTS


def test_a_broken_unit_is_seen(benches: UnitBenches, tmp_path: Path) -> None:
    """One word of the queues at a wrong place: the message names step, memory, address, expected and found."""
    path = benches.project.path / "rtl/copy_tokens.sv"
    good = path.read_text()
    broken = re.sub(r"(assign to_0_write_address = )(.*);", r"\1(\2) + 1'b1;", good)
    assert broken != good
    path.write_text(broken)
    try:
        with pytest.raises(CheckFailed, match=r"gather.*: to\[0\]\[\d+\]: expected [0-9a-f]+, found"):
            benches.run("gather")
    finally:
        path.write_text(good)
