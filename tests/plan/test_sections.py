"""Programs that prefetch experts: what SECTION steps say of the stream, which design the search takes, what it estimates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moehls.boards import load_board
from moehls.errors import MoehlsError
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan import build_program
from moehls.plan.check import check_program
from moehls.plan.cost import against_stream, estimate
from moehls.plan.instruction import NO_EXPERT, Flag, Kind
from moehls.plan.layout import stream_words
from moehls.plan.payload import headers_together
from moehls.plan.search import parse_settings, search
from moehls.plan.shape import Shape
from tests.support.random_networks import Sizes, random_integer_network

BOARD = load_board("zcu104")
MANY = Sizes(tokens=9, layers=4, experts=24, k=1, hidden=40, gated=False)


def shape_of(precision: Precision, block: int) -> Shape:
    return Shape(precision, 4, block, 4, 2, 512, 256, 64, 64, 8, 8, 32, 24, 64, gated=True, experts="prefetched")


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_sections_say_what_lies_behind_them(precision: Precision, block: int, gated: bool) -> None:
    """The words of every section, all experts chosen, are those of its steps; headers of an expert lie together."""
    if precision is W16A16 and block == 16:
        precision = W8A8
    shape = shape_of(precision, block)
    program = build_program(random_integer_network(1, precision, replace(MANY, gated=gated)), shape)
    check_program(program, shape)
    words, position = program.step_words, program.first_words
    sections = [n for n, step in enumerate(program.steps) if step.instruction.kind == Kind.SECTION]
    assert len(sections) == (4 if gated else 2)
    for n in sections:
        step = program.steps[n].instruction
        payload, dense = step.epsilon >> 32, step.epsilon & 0xFFFFFFFF
        assert position == sum(words[: n + 1])
        assert step.flags & Flag.LAST
        position += step.n0 * (program.header_words + payload) + dense
    assert position == program.words == len(stream_words(program, shape))
    together = headers_together(shape)
    assert together * 512 == program.header_words * shape.word_bits
    experts = [(step.operation, step.instruction.expert) for step in program.steps]
    for n, key in enumerate(experts):
        if key[1] != NO_EXPERT:
            assert (program.headers[n] > 0) == (experts[n - 1] != key)


def test_a_streamed_program_is_one_section() -> None:
    network = random_integer_network(1, sizes=MANY)
    program = build_program(network, replace(shape_of(W8A8, 8), experts="streamed"))
    assert program.first_words == program.words
    assert all(step.instruction.kind != Kind.SECTION for step in program.steps)


def test_the_search_takes_the_faster_design() -> None:
    """Experts that nobody chooses cost a streamed design their words, and a prefetched one their headers."""
    network = random_integer_network(2, sizes=replace(MANY, hidden=160))
    names = {op.name: len(op.first_weight) for op in network.operations if hasattr(op, "first_weight")}
    few = {name: [9.0] + [0.0] * (count - 1) for name, count in names.items()}
    all_used = {name: [9.0] * count for name, count in names.items()}
    fixed = {"token_parallel": "4", "block": "8", "epilogue_lanes": "4", "ports": "1", "fifo_beats": "4096"}
    assert search(network, BOARD, 300, parse_settings(fixed), few)[0].experts == "prefetched"
    assert search(network, BOARD, 300, parse_settings(fixed), all_used)[0].experts == "streamed"
    forced = parse_settings(fixed | {"experts": "prefetched"})
    shape, program = search(network, BOARD, 300, forced, all_used)
    assert shape.experts == "prefetched"
    with pytest.raises(MoehlsError, match="experts are streamed or prefetched"):
        parse_settings({"experts": "some"})

    costs = estimate(program, shape, BOARD, 300, few, counted=True)
    idle = [c.cycles for c, s in zip(costs, program.steps, strict=True) if 0 < s.instruction.expert < NO_EXPERT]
    assert max(idle) < 40
    busy = [c for c, s in zip(costs, program.steps, strict=True) if s.instruction.expert == 0 and s.payload is not None]
    assert all(c.bound == "stream" for c in busy)


def test_without_experts_nothing_is_prefetched() -> None:
    network = random_integer_network(3, sizes=replace(MANY, experts=0, tasks=1))
    fixed = parse_settings({"token_parallel": "4", "block": "8", "ports": "1"})
    assert search(network, BOARD, 300, fixed, {})[0].experts == "streamed"


def test_a_stream_runs_ahead_to_the_end_of_its_section() -> None:
    """The words behind a section's end come only after it, however long the step before took."""
    shape = replace(shape_of(W8A8, 8), fifo_beats=4096)
    interval = shape.word_bits / 8 / 16
    assert against_stream([5000.0, 1.0, 10.0], [1, 0, 100], shape, 16)[2] == 10
    times = against_stream([5000.0, 1.0, 10.0], [1, 0, 100], shape, 16, [1, 2])
    np.testing.assert_allclose(times, [5000, 1, 99 * interval])
