"""In how many parts a model's hidden layers fit a board, and that what is planned so is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moehls import api
from moehls.boards import load_board
from moehls.errors import DoesNotFit
from moehls.integer.operations import IntegerNetwork
from moehls.plan import build_program, plan
from moehls.plan.parts import hidden_parts
from moehls.plan.search import parse_settings
from moehls.project import open_project
from tests.conftest import DIGITS
from tests.plan.support import bare_shape
from tests.support.random_networks import Sizes, random_integer_network

SETTINGS = {"block": "8", "token_parallel": "2", "fifo_beats": "512"}


@pytest.fixture(scope="module")
def wide() -> IntegerNetwork:
    """Hidden layers far wider than everything else."""
    return random_integer_network(1, sizes=Sizes(tokens=40, width=16, heads=2, mlp=1024, experts=3, hidden=512))


def test_a_board_with_room_takes_the_layers_whole(wide: IntegerNetwork) -> None:
    assert hidden_parts(wide, load_board("zcu104"), parse_settings(SETTINGS)) == 1


def test_a_small_board_takes_as_few_parts_as_fit(wide: IntegerNetwork) -> None:
    found = {}
    for bram36 in (40, 60, 80, 120, 400):
        board = replace(load_board("ultra96v2"), bram36=bram36)
        found[bram36] = hidden_parts(wide, board, parse_settings(SETTINGS))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[400] == 1 and max(found.values()) > 1
    tight = next(bram36 for bram36, parts in found.items() if parts > 1)
    with pytest.raises(DoesNotFit):
        plan(wide, replace(load_board("ultra96v2"), bram36=tight), 200, SETTINGS)


def test_a_choice_of_the_user_is_kept(wide: IntegerNetwork) -> None:
    assert hidden_parts(wide, load_board("zcu104"), parse_settings(SETTINGS | {"hidden_parts": "3"})) == 3


def test_a_model_that_no_split_makes_fit_stays_whole(wide: IntegerNetwork) -> None:
    board = replace(load_board("ultra96v2"), bram36=3)
    assert hidden_parts(wide, board, parse_settings(SETTINGS)) == 1


def test_many_tokens_lie_on_a_small_board_in_blocks_and_groups() -> None:
    network = random_integer_network(1, sizes=Sizes(tokens=300, width=64, heads=4, mlp=64, experts=0, patch=(3, 3)))
    board, found = load_board("ultra96v2"), {}
    for bram36 in (50, 80, 200, 1200):
        shape = plan(network, replace(board, bram36=bram36), 200, SETTINGS).shape
        found[bram36] = shape.token_blocks * shape.head_groups
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found[1200] == 1 and max(found.values()) > 16
    whole = SETTINGS | {"token_blocks": "1", "head_groups": "1"}
    with pytest.raises(DoesNotFit, match="The largest, m0"):
        plan(network, replace(board, bram36=80), 200, whole)


def test_a_project_in_parts_is_exact_and_says_so(tmp_path: Path) -> None:
    """The trained model in two parts: less memory for hidden values, every stage equal in C simulation."""
    settings = {"hidden_parts": "2", "token_blocks": "3", "head_groups": "2", "block": "8"}
    compiled = api.compile(
        DIGITS / "digits.onnx", tmp_path / "p", calibration=DIGITS / "calibration.npz", settings=settings
    )
    assert [compiled.summary[key] for key in ("hidden_parts", "token_blocks", "head_groups")] == [2, 3, 2]
    result = api.verify(compiled.project, ["reference", "csim"])
    assert result.passed and result.levels[1].stages > 0
    assert result.fidelity is not None and result.fidelity.sqnr_forced_db > 20
    project = open_project(compiled.project)
    assert sum(stage.value.endswith(".part1") for stage in project.plan.stages) > 0
    shape = bare_shape(project.integer.precision, 4, 8)
    hidden = [s.writes[0].place for s in build_program(project.integer, shape).steps if ".first" in s.name]
    assert {place.channels.count for place in hidden} == {16}
