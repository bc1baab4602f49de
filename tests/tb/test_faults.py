"""Verification sees what is broken: a small campaign of faults in generated C++; `make faults` has large ones, in RTL too."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.integer.tables import exp2_table
from moehls.plan.instruction import NO_EXPERT, Instruction
from moehls.plan.shape import Shape
from moehls.project import Project
from moehls.simulate.rtl_neighbours import bounds, streams
from moehls.simulate.rtl_proofs import Proof, compared
from tests.tb.faults import LEAST, SMALL, frames, run_cpp, run_rtl
from tests.tb.projects import write_family
from tests.tb.step_programs import StepProgram, roomy, step_programs

NUMBER = 25
"""of a sample so small, one survivor is let pass"""
RTL_NUMBER = 12
"""none is"""
EVERY = 4
"""of the programs, for the sample in RTL"""

COUNTS = """module counts (
    input wire clock,
    input wire reset,
    input wire start,
    input wire [511:0] h,
    output wire done,
    output wire [15:0] words_data,
    output wire words_valid
);
    logic [511:0] h_local;
    logic [15:0] limit;
    logic [15:0] n;
    logic [15:0] word;
    logic first;
    logic running;
    always_ff @(posedge clock) begin
        h_local <= h;
        first <= start & ~reset;
        if (first) limit <= h_local[175:160];
        running <= ~reset & (first | (running & ~done));
        n <= first ? 16'h0 : n + 16'h1;
        word <= word + 1;
    end
    assign done = running & (n == limit);
    assign words_data = word;
    assign words_valid = running;
endmodule
"""
"""a process of as many words as the header says"""


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    return write_family(tmp_path_factory.mktemp("faults"), 3, SMALL, roomy)


def legal(instruction: Instruction, shape: Shape) -> bool:
    """Whether a step holds what the proofs assume. A queued step's rows are what its queue holds, and no step runs without."""
    limits = bounds(instruction.kind, shape)
    if instruction.expert != NO_EXPERT:
        limits.pop("rows", None)
    return all(low <= getattr(instruction, name) <= high for name, (low, high) in limits.items())


@pytest.fixture(scope="module")
def programs(projects: list[Project]) -> list[StepProgram]:
    return step_programs(projects[0].plan.shape, projects[0].integer.activations, 1)


def test_steps_hold_what_the_proofs_assume(projects: list[Project], programs: list[StepProgram]) -> None:
    shape = projects[0].plan.shape
    steps = [step.instruction for program in programs for step in program.program]
    steps += [step.instruction for project in projects for step in project.program.steps]
    assert not [step for step in steps if not legal(step, shape)]


def test_sums_of_a_softmax_hold_what_the_proofs_assume(projects: list[Project]) -> None:
    """The largest value of a token, which its sum holds, is shifted by nothing."""
    shape = projects[0].plan.shape
    table, (least, most) = exp2_table(shape.precision.logit_fraction, 65535), streams("enqueue", shape)["sums_data"]
    assert table.min() >= least
    assert table.max() * shape.max_experts <= most


def test_proofs_tell_equal_processes_from_others(projects: list[Project], tmp_path: Path) -> None:
    """A register of the header that is always loaded is equal but for the cycles in which nobody looks; another limit is not."""
    path = tmp_path / "counts.sv"
    path.write_text(COUNTS)
    shape = projects[0].plan.shape
    always, later = COUNTS.replace("if (first) limit", "if (1) limit"), COUNTS.replace("n == limit", "n >= limit - 1")
    assert compared(path, always, shape, tmp_path / "always") == Proof.EQUAL
    assert compared(path, later, shape, tmp_path / "later") == Proof.DIFFERS
    assert compared(path, COUNTS.replace("word + 1", "word + 2"), shape, tmp_path / "word") == Proof.DIFFERS


def test_verification_sees_broken_cpp(projects: list[Project], programs: list[StepProgram]) -> None:
    found = run_cpp(projects, NUMBER, 1, [*frames(projects, 1, 1), *programs])
    assert len(found) == NUMBER
    assert found.share >= LEAST, found.survivors


def test_verification_sees_broken_rtl(projects: list[Project], programs: list[StepProgram]) -> None:
    found = run_rtl(projects[:1], RTL_NUMBER, 1, programs[::EVERY])
    assert len(found) == RTL_NUMBER
    assert found.share >= LEAST, found.survivors
