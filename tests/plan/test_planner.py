"""The search and the plan: limits, fixed settings, errors, determinism, and what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.boards import board_names, load_board
from moehls.errors import MoehlsError
from moehls.integer.operations import IntegerAttention, IntegerLinear, IntegerOutput, Requantise
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan import build_program, load_plan, plan, save_plan, weights_bytes
from moehls.plan.layout import input_bytes, output_tensors, port_chunks
from moehls.plan.memory import DSP_LIMIT, LIMIT, LUT_LIMIT
from tests.plan.support import small_network
from tests.support.random_networks import Sizes, random_integer_network

BOARD = load_board("zcu104")
SMALL = {"block": "8"}


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("name", board_names())
def test_a_plan_is_within_its_board(name: str, precision: Precision) -> None:
    board = load_board(name)
    found = plan(small_network(precision), board, board.clock_mhz, {})
    assert found.resources.dsp <= DSP_LIMIT * board.dsp
    assert found.resources.bram36 <= LIMIT * board.bram36
    assert found.resources.uram <= board.uram
    assert found.resources.lut <= LUT_LIMIT * board.lut
    assert found.shape.ports <= board.hp_ports
    assert found.latency_ms == pytest.approx(found.cycles / board.clock_mhz / 1000)


@settings(max_examples=15, deadline=None)
@given(
    block=st.sampled_from([8, 16]),
    token_parallel=st.integers(1, 6),
    lanes=st.sampled_from([1, 2, 4, 8]),
    ports=st.sampled_from([1, 2, 4]),
)
def test_settings_are_kept(block: int, token_parallel: int, lanes: int, ports: int) -> None:
    fixed = {"block": block, "token_parallel": token_parallel, "epilogue_lanes": lanes, "ports": ports}
    shape = plan(small_network(), BOARD, 300, {key: str(value) for key, value in fixed.items()}).shape
    assert {key: getattr(shape, key) for key in fixed} == fixed


def test_the_search_finds_the_best_token_parallelism() -> None:
    best = plan(small_network(), BOARD, 300, SMALL)
    every = [plan(small_network(), BOARD, 300, SMALL | {"token_parallel": str(tt)}).cycles for tt in range(1, 9)]
    assert best.cycles == min(every)


def test_a_smaller_board_has_a_smaller_shape() -> None:
    few = replace(BOARD, dsp=300)
    assert (
        plan(small_network(), few, 300, {}).shape.macs_a_cycle
        < plan(small_network(), BOARD, 300, {}).shape.macs_a_cycle
    )


def test_expert_load_changes_the_estimate() -> None:
    network = small_network()
    empty = plan(network, BOARD, 300, SMALL, {"layer1.experts": [11.0, 11.0, 0.0, 0.0, 0.0]})
    assert empty.cycles != plan(network, BOARD, 300, SMALL).cycles
    assert [cost.macs for cost in empty.costs if "expert3" in cost.name] == [0, 0, 0]


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        (
            {"tokens": "4"},
            "unknown setting 'tokens'; known are token_parallel, block, epilogue_lanes, ports, fifo_beats",
        ),
        ({"block": "eight"}, "block = 'eight' is not a positive whole number"),
        ({"block": "0"}, "block = '0' is not a positive whole number"),
        ({"block": "12"}, "block is a multiple of 8"),
        ({"block": "32"}, "at most 4096 bits"),
        ({"block": "8", "token_parallel": "9"}, "token_parallel at most block"),
        ({"epilogue_lanes": "3"}, "epilogue_lanes divides block"),
        ({"ports": "3"}, "divide the word"),
        ({"ports": "8"}, r"ports \(at most 4\)"),
        ({"residual_storage": "disk"}, "a memory is one of bram, uram, lutram"),
    ],
)
def test_wrong_settings_are_errors(given_settings: dict[str, str], message: str) -> None:
    with pytest.raises(MoehlsError, match=message):
        plan(small_network(), BOARD, 300, given_settings)


@pytest.mark.parametrize("clock", [0.0, -1.0, 5000.0])
def test_an_impossible_clock_is_an_error(clock: float) -> None:
    with pytest.raises(MoehlsError, match="clock"):
        plan(small_network(), BOARD, clock, {})


def test_a_wrong_expert_load_is_an_error() -> None:
    with pytest.raises(MoehlsError, match=r"expert load of 'layer1.experts': the network has \{'layer1.experts': 5\}"):
        plan(small_network(), BOARD, 300, {}, {"layer1.experts": [1.0]})


def test_a_network_too_large_for_a_board_says_what_would_fit() -> None:
    board = replace(BOARD, bram36=3, uram=1)
    with pytest.raises(MoehlsError, match=r"do not fit zcu104.*would fit"):
        plan(small_network(), board, 300, {})


def test_a_board_with_too_few_dsps_says_so() -> None:
    with pytest.raises(MoehlsError, match="99% of 50"):
        plan(small_network(), replace(BOARD, dsp=50), 300, {})


def test_the_same_network_gives_the_same_plan_and_bytes(tmp_path: Path) -> None:
    network = small_network()
    first, second = (plan(network, BOARD, 300, {}) for _ in range(2))
    assert first == second
    assert np.array_equal(weights_bytes(network, first), weights_bytes(network, second))
    for name in ("a", "b"):
        save_plan(tmp_path / name, first)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_plan(tmp_path / "a") == first


def test_a_damaged_plan_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "plan.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(MoehlsError, match="not a file written by moehls"):
        load_plan(tmp_path / "plan.npz")


def test_sizes_agree() -> None:
    network = small_network()
    found = plan(network, BOARD, 300, {"ports": "2", "block": "8"})
    data = weights_bytes(network, found)
    assert data.size == found.weight_words * 64 == found.weight_beats * 2 * 16
    chunks = port_chunks(data, 2)
    assert chunks.shape == (2, found.weight_beats, 16)
    assert np.array_equal(chunks[1, 3], data[7 * 16 : 8 * 16])
    assert len(found.costs) == len(build_program(network, found.shape).steps)


def test_pixels_of_the_wrong_shape_are_an_error() -> None:
    found = plan(small_network(), BOARD, 300, SMALL)
    with pytest.raises(MoehlsError, match=r"shape \[2, 3\]; the accelerator takes \[10, 45\]"):
        input_bytes(np.zeros((2, 3), np.int64), found.input, found.shape)


def test_results_cut_short_are_an_error() -> None:
    found = plan(small_network(), BOARD, 300, SMALL)
    with pytest.raises(MoehlsError, match="too few for the output"):
        output_tensors(np.zeros(16, np.uint8), found.outputs)


def test_what_the_machine_cannot_run_is_named() -> None:
    network = small_network()
    attention = next(op for op in network.operations if isinstance(op, IntegerAttention))
    twice = replace(attention, key=attention.query)
    shared = replace(network, operations=tuple(twice if op is attention else op for op in network.operations))
    with pytest.raises(MoehlsError, match=r"layer0.attention: 'layer0.q.out' already is a query, key or value"):
        plan(shared, BOARD, 300, SMALL)

    projection = next(op for op in network.operations if op.name == "layer0.projection")
    assert isinstance(projection, IntegerLinear)
    from_query = replace(projection, input="layer0.q.out", epilogue=Requantise(), output="other", name="odd")
    index = network.operations.index(attention)
    odd = replace(network, operations=(*network.operations[:index], from_query, *network.operations[index:]))
    with pytest.raises(MoehlsError, match=r"odd: 'layer0.q.out' must be read by one attention and by nothing else"):
        plan(odd, BOARD, 300, SMALL)

    operand_shown = replace(network, outputs=(IntegerOutput("q", "layer0.q.out", (11, 30)),))
    with pytest.raises(MoehlsError, match=r"output 'q': 'layer0.q.out' is not a residual, fine or raw value"):
        plan(operand_shown, BOARD, 300, SMALL)


def test_an_old_residual_cannot_be_read() -> None:
    network = small_network()
    late = tuple(
        replace(op, input="embed.tokens") if op.name == "layer0.norm2" else op  # type: ignore[call-arg]
        for op in network.operations
    )
    with pytest.raises(MoehlsError, match=r"layer0.norm2: reads the residual 'embed.tokens', which was replaced by"):
        plan(replace(network, operations=late), BOARD, 300, SMALL)


def test_a_large_network_is_planned_in_time() -> None:
    sizes = Sizes(tokens=197, width=96, heads=6, layers=4, mlp=384, experts=4, hidden=96, k=2, head=0)
    network = random_integer_network(1, W8A8, sizes)
    found = plan(network, BOARD, 300, {})
    assert found.resources.dsp > BOARD.dsp // 2
    ideal = found.macs / found.shape.macs_a_cycle
    assert ideal < found.cycles
