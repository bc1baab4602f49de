"""The Pareto front: no point of it is beaten, nothing better is missing, and its settings give the shape again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehls.boards import load_board
from moehls.errors import MoehlsError
from moehls.plan import plan
from moehls.plan.cost import uniform_load
from moehls.plan.explore import Point, explore, front
from moehls.plan.search import parse_settings
from tests.plan.support import small_network

BOARD = load_board("zcu104")
points = st.builds(
    Point,
    cycles=st.integers(1, 3000),
    dsp=st.integers(0, 6),
    bram36=st.integers(0, 4).map(float),
    uram=st.integers(0, 3),
    lut=st.just(0),
    settings=st.just({}),
)


def beats(a: Point, b: Point, worth: float) -> bool:
    return a.dsp <= b.dsp and a.bram36 <= b.bram36 and a.uram <= b.uram and a.cycles <= b.cycles * worth


@given(st.lists(points, min_size=1, max_size=40))
def test_a_front_is_what_nothing_beats(given_points: list[Point]) -> None:
    found = front(given_points)
    assert found[0].cycles == min(p.cycles for p in given_points)
    assert [p.cycles for p in found] == sorted(p.cycles for p in found)
    for p in found:
        assert not any(beats(q, p, 1) and q.costs != p.costs for q in given_points)
        assert sum(q.costs == p.costs for q in found) == 1


@given(st.lists(points, min_size=1, max_size=40))
def test_what_is_left_out_was_hardly_better_than_what_is_shown(given_points: list[Point]) -> None:
    found = front(given_points)
    for p in given_points:
        assert any(beats(q, p, 1.005**40) for q in found)


def test_the_first_point_is_the_plan_and_settings_give_their_points_again() -> None:
    network = small_network()
    found = explore(network, BOARD, 300, parse_settings({}), uniform_load(network))
    assert found[0].cycles == plan(network, BOARD, 300, {}).cycles
    assert len({p.dsp for p in found}) > 3 and len({p.uram for p in found}) > 1
    for point in found[:: max(1, len(found) // 4)]:
        again = plan(network, BOARD, 300, point.settings)
        resources = again.resources
        assert (again.cycles, resources.dsp, resources.bram36, resources.uram) == point.costs


def test_what_is_fixed_stays_fixed() -> None:
    network = small_network()
    fixed = {"block": "8", "ports": "1", "fifo_beats": "1024"}
    found = explore(network, BOARD, 300, parse_settings(fixed), uniform_load(network))
    assert all(point.settings | fixed == point.settings for point in found)


def test_progress_reaches_its_end() -> None:
    network, seen = small_network(), list[float]()
    explore(network, BOARD, 300, parse_settings({"block": "8"}), uniform_load(network), seen.append)
    assert seen == sorted(seen) and seen[-1] == 1


def test_a_board_that_nothing_fits_is_an_error() -> None:
    network = small_network()
    tiny = replace(BOARD, name="tiny", bram36=2, uram=0)
    with pytest.raises(MoehlsError, match="do not fit tiny"):
        explore(network, tiny, 300, parse_settings({}), uniform_load(network))
