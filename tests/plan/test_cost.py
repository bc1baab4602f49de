"""The cost model: expected token groups, the stream as a fluid, and the steps' own times."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehls.boards import load_board
from moehls.integer.precision import W8A8
from moehls.plan.cost import (
    against_stream,
    bytes_a_cycle,
    estimate,
    frame_cycles,
    frame_macs,
    occupancy,
    pixel_beats_a_cycle,
    step_cycles,
    uniform_load,
)
from moehls.plan.instruction import Flag, Instruction, Kind, Mode
from moehls.plan.steps import Step
from tests.plan.support import bare_shape, program_and_shape, small_network
from tests.support.random_networks import Sizes, random_integer_network

BOARD = load_board("zcu104")


def test_a_queue_that_every_token_joins() -> None:
    assert occupancy(129, 129, 12).groups == 11


def test_an_empty_queue() -> None:
    assert (occupancy(0, 129, 12).busy, occupancy(0, 129, 12).groups) == (0, 0)


@given(st.floats(0.01, 30), st.integers(1, 16))
def test_an_expected_queue_is_poisson(tokens: float, token_parallel: int) -> None:
    chances = [math.exp(n * math.log(tokens) - tokens - math.lgamma(n + 1)) for n in range(400)]
    found = occupancy(tokens, 399, token_parallel)
    assert found.busy == pytest.approx(1 - chances[0])
    assert found.tokens == pytest.approx(tokens)
    assert found.groups == pytest.approx(sum(math.ceil(n / token_parallel) * p for n, p in enumerate(chances)))


def test_the_stream_is_the_ports_or_the_dram() -> None:
    assert bytes_a_cycle(bare_shape(W8A8, 4, 16, ports=1), BOARD, 300) == 16
    assert bytes_a_cycle(bare_shape(W8A8, 4, 16, ports=4), BOARD, 300) == pytest.approx(48)
    assert bytes_a_cycle(bare_shape(W8A8, 4, 16, ports=4), BOARD, 100) == 64


def test_a_step_waits_for_its_words() -> None:
    shape = replace(bare_shape(W8A8, 4, 8), fifo_beats=4096)  # a word has 64 bytes: 4 cycles at 16 a cycle
    first, second = against_stream([10.0, 10.0], [100, 100], shape, 16)
    assert first == pytest.approx(99 * 4)  # a header is what a step begins with
    assert second == pytest.approx(400)


def test_a_deep_fifo_hides_the_stream_behind_a_long_step() -> None:
    deep = replace(bare_shape(W8A8, 4, 8), fifo_beats=4096)
    assert against_stream([5000.0, 10.0], [1, 500], deep, 16)[1] == 10
    shallow = replace(deep, fifo_beats=400)  # 100 words
    assert against_stream([5000.0, 10.0], [1, 500], shallow, 16)[1] == pytest.approx(400 * 4)


@given(st.lists(st.tuples(st.floats(1, 500), st.integers(1, 200)), min_size=1, max_size=30), st.integers(64, 5000))
def test_no_frame_beats_the_compute_or_the_stream(steps: list[tuple[float, int]], beats: int) -> None:
    shape = replace(bare_shape(W8A8, 4, 8), fifo_beats=beats)
    own, words = [s[0] for s in steps], [s[1] for s in steps]
    total = sum(against_stream(own, words, shape, 16))
    assert total >= sum(own) - 1e-6
    assert total >= (sum(words) - 1) * 4 - 1e-6
    deeper = replace(shape, fifo_beats=2 * beats)
    assert sum(against_stream(own, words, deeper, 16)) <= total + 1e-6


def linear_step(name: str, token_parallel: int = 4) -> Step:
    program, _ = program_and_shape(small_network(), token_parallel, 8)
    return next(step for step in program.steps if step.name == name)


def test_a_linear_step_reads_each_word_and_each_repetition_of_it() -> None:
    """3 heads in are 6 blocks, 30 channels out 4, 11 tokens 3 groups: 24 weights, 3 words of parameters, 48 kept words."""
    cycles, bound = step_cycles(linear_step("layer0.projection"), bare_shape(W8A8, 4, 8, lanes=8), {})
    assert bound == "multiply"
    assert cycles == 24 + 3 + 48 + 1 + 38  # and the last tile through the chain


def test_few_lanes_make_the_epilogue_the_bound() -> None:
    cycles, bound = step_cycles(linear_step("layer0.projection"), bare_shape(W8A8, 4, 8, lanes=1), {})
    assert bound == "epilogue"
    assert cycles == 1 + 6 + 4 * 3 * 8 + 39  # from the words of the first tile on


def test_a_scatter_writes_token_by_token() -> None:
    load = {"layer1.experts": [11.0] * 5}
    step = linear_step("layer1.experts.expert0.second")
    cycles, bound = step_cycles(step, bare_shape(W8A8, 4, 8, lanes=4), load)
    assert bound == "write"
    assert cycles == 1 + 3 + 4 * 3 * (2 + 4) + 41


def test_experts_without_tokens_are_drained() -> None:
    step = linear_step("layer1.experts.expert0.second")
    cycles, _ = step_cycles(step, bare_shape(W8A8, 4, 8), {"layer1.experts": [0.0] * 5})
    assert cycles == 7 + step.instruction.payload_words


LINEAR, MEMORY = Kind.LINEAR, Flag.W_MEMORY
CONTEXT = {"mode": Mode.CONTEXT, "flags": MEMORY | Flag.PARAMETERS}
SCORES = {"mode": Mode.SOFTMAX, "flags": MEMORY}


@pytest.mark.parametrize(
    ("parallel", "fields", "cycles"),
    [
        ((4, 16, 4), {"kind": Kind.LOAD, "n2": 6, "rows": 26}, 166),
        ((4, 16, 4), {"kind": Kind.NORM, "n2": 6, "rows": 26}, 127),
        ((4, 16, 4), {"kind": Kind.NORM, "flags": Flag.PLANES, "n2": 6, "rows": 26}, 205),
        ((4, 16, 4), {"kind": Kind.ROUTE, "n0": 6, "n1": 2, "n2": 1, "rows": 26}, 93),
        ((4, 16, 4), {"kind": LINEAR, "payload_words": 39, "n0": 6, "n1": 7, "n2": 6}, 301),
        ((4, 16, 4), {"kind": LINEAR, "mode": Mode.RESIDUAL, "payload_words": 21, "n0": 6, "n1": 7, "n2": 3}, 216),
        ((4, 16, 4), {"kind": LINEAR, "mode": Mode.GELU, "payload_words": 65, "n0": 10, "n1": 7, "n2": 6}, 471),
        (
            (4, 16, 4),
            {"kind": LINEAR, "mode": Mode.RAW, "payload_words": 7, "n0": 1, "n1": 7, "n2": 12, "split": 6},
            137,
        ),
        ((4, 16, 4), {"kind": LINEAR, **CONTEXT, "payload_words": 1, "n0": 7, "n1": 2, "n2": 7}, 147),
        ((4, 16, 4), {"kind": LINEAR, **SCORES, "n0": 7, "n1": 7, "n2": 2}, 249),
        ((2, 16, 8), {"kind": Kind.NORM, "n2": 2}, 63),
        ((2, 16, 8), {"kind": LINEAR, "payload_words": 5, "n0": 2, "n1": 9, "n2": 2}, 90),
        ((2, 16, 8), {"kind": LINEAR, "mode": Mode.GELU, "payload_words": 10, "n0": 4, "n1": 9, "n2": 2}, 138),
        ((2, 16, 8), {"kind": LINEAR, **SCORES, "n0": 9, "n1": 9, "n2": 1}, 235),
        ((4, 8, 2), {"kind": Kind.LOAD, "n2": 4}, 77),
        ((4, 8, 2), {"kind": Kind.NORM, "n2": 4}, 80),
        ((4, 8, 2), {"kind": Kind.ROUTE, "n0": 8, "n1": 2, "n2": 1}, 76),
        ((4, 8, 2), {"kind": LINEAR, "payload_words": 20, "n0": 4, "n1": 5, "n2": 4}, 127),
        ((4, 8, 2), {"kind": LINEAR, "mode": Mode.RAW, "payload_words": 10, "n0": 2, "n1": 1, "n2": 4, "rows": 1}, 62),
        ((4, 8, 2), {"kind": LINEAR, **CONTEXT, "payload_words": 2, "n0": 5, "n1": 2, "n2": 5}, 97),
        ((4, 8, 2), {"kind": LINEAR, **SCORES, "n0": 5, "n1": 5, "n2": 2}, 149),
        ((4, 8, 2), {"kind": LINEAR, "task": 1, "payload_words": 5}, 12),
        ((3, 8, 8), {"kind": LINEAR, "payload_words": 20, "n0": 4, "n1": 6, "n2": 4}, 139),
        ((3, 8, 8), {"kind": LINEAR, **CONTEXT, "payload_words": 2, "n0": 6, "n1": 2, "n2": 6}, 114),
        ((3, 8, 8), {"kind": LINEAR, **SCORES, "n0": 6, "n1": 6, "n2": 2}, 130),
        ((8, 8, 4), {"kind": LINEAR, **CONTEXT, "payload_words": 2, "n0": 3, "n1": 2, "n2": 3}, 71),
        ((8, 8, 4), {"kind": LINEAR, **SCORES, "n0": 3, "n1": 3, "n2": 2}, 68),
    ],
)
def test_a_step_takes_what_it_took_in_rtl(parallel: tuple[int, int, int], fields: dict[str, Any], cycles: int) -> None:
    """Steps of models with 17 and 26 tokens on tokens × block and lanes of the epilogue: cycles from Verilator."""
    token_parallel, block, lanes = parallel
    shape = replace(bare_shape(W8A8, token_parallel, block, lanes=lanes), max_experts=8)
    step = replace(linear_step("layer0.projection"), instruction=Instruction(**{"rows": 17} | fields))
    assert step_cycles(step, shape, {})[0] == pytest.approx(cycles, rel=0.02)


def test_a_counted_queue_has_whole_groups() -> None:
    step = linear_step("layer1.experts.expert0.first")
    shape = bare_shape(W8A8, 4, 8, lanes=8)
    one, two = (step_cycles(step, shape, {"layer1.experts": [n] * 5}, counted=True)[0] for n in (4.0, 5.0))
    assert step_cycles(step, shape, {"layer1.experts": [1.0] * 5}, counted=True)[0] == one
    assert two == one + step.instruction.n0 * max(step.instruction.n2, 4)


def test_pixels_share_the_dram_with_the_stream() -> None:
    assert pixel_beats_a_cycle(bare_shape(W8A8, 4, 16, ports=4), BOARD, 300) == pytest.approx(0.6)
    assert pixel_beats_a_cycle(bare_shape(W8A8, 4, 16, ports=1), BOARD, 300) == 1


def test_experts_of_a_soft_mixture_share_its_slots() -> None:
    network = random_integer_network(0, sizes=Sizes(slots=6))
    assert uniform_load(network) == {"layer1.experts": [6 * 2 / 5] * 5}


def test_the_frame_is_the_sum_of_its_steps() -> None:
    network = small_network()
    program, shape = program_and_shape(network, 4, 8)
    load = uniform_load(network)
    assert load == {"layer1.experts": [11 * 2 / 5] * 5}
    costs = estimate(program, shape, BOARD, 300, load)
    assert [cost.start for cost in costs[1:]] == [cost.start + cost.cycles for cost in costs[:-1]]
    assert costs[-1].start + costs[-1].cycles == round(frame_cycles(program, shape, BOARD, 300, load))
    assert sum(cost.macs for cost in costs) == pytest.approx(frame_macs(program, load), abs=len(costs))
    assert sum(cost.weight_bytes for cost in costs) == program.words * shape.word_bits // 8
    assert all(0 <= cost.utilisation <= 1 for cost in costs)
    other_task = [cost for cost in costs if "task1" in cost.name]
    assert [(cost.bound, cost.macs) for cost in other_task] == [("skipped", 0)] * 2
