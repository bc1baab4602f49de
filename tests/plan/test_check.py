"""The proof of memory safety accepts what the builder makes and refuses every damage done to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.errors import MoehlsError
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan.check import check_program
from moehls.plan.steps import Access, Program, Step
from moehls.plan.uses import most_blocks
from tests.plan.support import program_and_shape, small_network
from tests.support.random_networks import Sizes, random_integer_network


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@given(block=st.sampled_from([8, 16]), data=st.data())
@settings(max_examples=10, deadline=None)
def test_built_programs_are_safe(precision: Precision, block: int, data: st.DataObject) -> None:
    check_program(*program_and_shape(small_network(precision), data.draw(st.integers(1, block)), block))


def test_many_tokens_are_safe() -> None:
    network = random_integer_network(2, W8A8, Sizes(tokens=50, width=24, heads=2, layers=3))
    check_program(*program_and_shape(network, 7, 8))


def changed(program: Program, index: int, step: Step) -> Program:
    return replace(program, steps=(*program.steps[:index], step, *program.steps[index + 1 :]))


def named(program: Program, name: str) -> int:
    return next(index for index, step in enumerate(program.steps) if step.name == name)


def test_a_value_written_over_another_is_found() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    index = named(program, "layer0.v")
    step = program.steps[index]
    value = step.writes[0]
    onto_query = replace(value, place=replace(value.place, base=0))
    moved = replace(step, instruction=replace(step.instruction, y_base=0), writes=(onto_query,))
    stages = tuple(s for s in program.stages if s.value != "layer0.v.out")
    with pytest.raises(MoehlsError, match=r"scores0.*reads 'layer0.q.out' in m1, where 'layer0.v.out' lies"):
        check_program(replace(changed(program, index, moved), stages=stages), shape)


def test_a_stage_that_shows_something_else_is_found() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    late = tuple(replace(s, step=len(program.steps) - 1) if s.value == "layer0.hidden" else s for s in program.stages)
    with pytest.raises(MoehlsError, match=r"'end' shows 'layer0.hidden' in m3, where"):
        check_program(replace(program, stages=late), shape)


def test_steps_in_the_wrong_order_are_found() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    index = named(program, "layer0.first")
    steps = list(program.steps)
    steps[index], steps[index + 1] = steps[index + 1], steps[index]
    with pytest.raises(MoehlsError, match=r"layer0.second.*reads 'layer0.hidden'"):
        check_program(replace(program, steps=tuple(steps), stages=()), shape)


@pytest.mark.parametrize("field", ["x_base", "x_s1", "x_s2", "y_base", "y_s0", "y_s1", "n0", "n1", "n2"])
@pytest.mark.parametrize("name", ["layer0.q", "layer0.attention.scores1", "layer0.attention.context1"])
def test_addresses_beyond_the_declared_places_are_found(name: str, field: str) -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    index = named(program, name)
    instruction = program.steps[index].instruction
    wrong = replace(instruction, **{field: getattr(instruction, field) + 100})
    with pytest.raises(MoehlsError, match=f"'{name}' (leaves|reads|writes)"):
        check_program(changed(program, index, replace(program.steps[index], instruction=wrong)), shape)


@pytest.mark.parametrize(
    "sizes", [Sizes(normalised=True), Sizes(pooled=True), Sizes(slots=3)], ids=["q, k", "pool", "soft"]
)
@pytest.mark.parametrize(("token_parallel", "block"), [(4, 8), (3, 16)])
def test_memories_hold_what_steps_count(sizes: Sizes, token_parallel: int, block: int) -> None:
    """Heads of normalised queries are padded one by one: they have more blocks than the residual. The search knows how many."""
    network = random_integer_network(3, W8A8, sizes)
    program, shape = program_and_shape(network, token_parallel, block)
    check_program(program, shape)
    assert most_blocks(network, block) == shape.norm_depth


SMALL = ("kept_depth", "norm_depth", "parameter_depth", "max_tokens", "max_experts")


@pytest.mark.parametrize("memory", SMALL)
def test_a_memory_that_is_too_small_is_found(memory: str) -> None:
    program, shape = program_and_shape(random_integer_network(3, W8A8, Sizes(normalised=True)), 4, 8)
    least = getattr(shape, memory)
    check_program(program, shape)
    with pytest.raises(MoehlsError, match=rf"has {least} [\w ]+, the machine {least - 1}"):
        check_program(program, replace(shape, **{memory: least - 1}))


def test_a_step_that_may_not_run_is_no_writer_for_one_that_does() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    index = named(program, "layer1.experts.expert1.first")
    step = program.steps[index]
    always = replace(step, instruction=replace(step.instruction, expert=0xFFFF))
    with pytest.raises(MoehlsError, match="which only task and expert"):
        check_program(changed(program, index, always), shape)


def test_an_undeclared_write_is_found() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    index = named(program, "layer0.norm1")
    step = program.steps[index]
    with pytest.raises(MoehlsError, match="writes words of m0 that it does not declare"):
        check_program(changed(program, index, replace(step, writes=(Access("other", step.reads[0].place),))), shape)


def test_a_memory_too_large_for_the_addresses_is_refused() -> None:
    program, shape = program_and_shape(small_network(), 4, 8)
    large = replace(program.requirements, raw_depth=70000)
    with pytest.raises(MoehlsError, match="the raw memory needs 70000 words a bank"):
        check_program(replace(program, requirements=large), shape)
