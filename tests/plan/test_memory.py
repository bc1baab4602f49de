"""Blocks a memory takes, and the storage and FIFO that a board leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehls.boards import load_board
from moehls.errors import MoehlsError
from moehls.integer.precision import W8A8
from moehls.plan.memory import LIMIT, bram36_count, fit_memories, lutram_count, memory_map, totals, uram_count
from moehls.plan.steps import Requirements

NEED = Requirements(
    activation_depth=528,
    residual_depth=132,
    raw_depth=129,
    kept_depth=48,
    norm_depth=12,
    parameter_depth=2,
    max_tokens=129,
    max_experts=16,
)
PARALLEL = 12, 16, 2, 4
BOARD = load_board("zcu104")


@pytest.mark.parametrize(
    ("width", "depth", "count"),
    [
        (72, 512, 1),
        (36, 512, 0.5),
        (73, 512, 1.5),
        (36, 1024, 1),
        (136, 512, 2),
        (136, 528, 4),
        (1, 32768, 1),
        (9, 4096, 1),
    ],
)
def test_block_ram(width: int, depth: int, count: float) -> None:
    assert bram36_count(width, depth) == count


@given(st.integers(1, 5000), st.integers(1, 70000))
def test_block_ram_holds_the_bits(width: int, depth: int) -> None:
    assert bram36_count(width, depth) * 36 * 1024 >= width * depth
    assert uram_count(width, depth) * 288 * 1024 >= width * depth
    assert bram36_count(width, depth) <= bram36_count(width + 1, depth)
    assert bram36_count(width, depth) <= bram36_count(width, depth + 1)


def test_lut_ram() -> None:
    assert [lutram_count(*size) for size in ((14, 32), (7, 64), (8, 64), (7, 65))] == [8, 8, 16, 16]


def test_everything_in_block_ram_where_it_fits() -> None:
    shape = fit_memories(NEED, BOARD, W8A8, PARALLEL, 80000)
    assert (shape.activation_storage, shape.residual_storage, shape.fifo_storage) == ("bram", "bram", "uram")
    by_name = {memory.name: memory for memory in memory_map(shape)}
    assert by_name["m0"].bram36 == 12 * 4
    assert by_name["residual"].bram36 == 12 * 4
    assert shape.fifo_beats == 12 * 4096
    assert by_name["stream"].uram == 87  # 29 for 2048 bits, 3 deep


def test_activations_move_to_uram_and_the_fifo_takes_the_rest() -> None:
    shape = fit_memories(replace(NEED, activation_depth=1632), BOARD, W8A8, (8, 16, 2, 4), 80000)
    assert shape.activation_storage == "uram"
    by_name = {memory.name: memory for memory in memory_map(shape)}
    assert by_name["m0"].uram == 16
    assert by_name["stream"].uram == 29
    assert shape.fifo_beats == 4 * 4096


def test_the_fifo_is_no_deeper_than_the_stream() -> None:
    assert fit_memories(NEED, BOARD, W8A8, PARALLEL, 100).fifo_beats == 4 * 4096


def test_boards_without_uram_have_a_fifo_in_block_ram() -> None:
    shape = fit_memories(NEED, load_board("zcu102"), W8A8, PARALLEL, 80000)
    assert shape.fifo_storage == "bram"
    assert shape.fifo_beats % 512 == 0


@given(st.integers(1, 4096), st.sampled_from([(4, 8, 1, 1), (8, 16, 4, 2), (7, 16, 2, 4)]))
def test_what_fits_is_within_the_board(depth: int, parallel: tuple[int, int, int, int]) -> None:
    shape = fit_memories(replace(NEED, activation_depth=depth), BOARD, W8A8, parallel, 80000)
    bram, uram = totals(memory_map(shape))
    assert bram <= LIMIT * BOARD.bram36
    assert uram <= BOARD.uram
    assert shape.activation_depth == depth
    assert shape.fifo_beats % 512 == 0
    assert shape.fifo_beats > 0


def test_what_does_not_fit_is_named() -> None:
    message = r"do not fit ultra96v2, which has 194.4 BRAM36 .* 12 tokens .* m0 .* 12 banks of 9000 words"
    with pytest.raises(MoehlsError, match=message):
        fit_memories(replace(NEED, activation_depth=9000), load_board("ultra96v2"), W8A8, PARALLEL, 80000)


def test_fixed_choices_are_kept() -> None:
    shape = fit_memories(
        NEED, BOARD, W8A8, (4, 8, 1, 1), 80000, fifo_beats=777, activation_storage="uram", residual_storage="uram"
    )
    assert (shape.fifo_beats, shape.activation_storage, shape.residual_storage) == (777, "uram", "uram")
