"""Boards: the known ones, one's own, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.boards import board_names, load_board
from moehls.errors import MoehlsError

ZCU104 = Path(__file__).parents[2] / "moehls" / "boards" / "zcu104.toml"


def test_the_known_boards_load() -> None:
    assert board_names() == ("kv260", "ultra96v2", "zcu102", "zcu104")
    for name in board_names():
        assert load_board(name).name == name


def test_the_zcu104() -> None:
    board = load_board("zcu104")
    assert (board.part, board.clock_mhz) == ("xczu7ev-ffvc1156-2-e", 300)
    assert (board.dsp, board.bram36, board.uram, board.lut) == (1728, 312, 96, 230400)


def test_an_unknown_board_lists_the_known_ones() -> None:
    with pytest.raises(MoehlsError, match=r"unknown board 'zcu105'; known are kv260, ultra96v2, zcu102, zcu104"):
        load_board("zcu105")


def test_a_board_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(ZCU104.read_text().replace("1728", "900").replace('"zcu104"', '"mine"'))
    assert (load_board(str(path)).name, load_board(str(path)).dsp) == ("mine", 900)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dsp = 1728", "", "missing entries .'dsp'."),
        ("dsp = 1728", "dps = 1728", "unknown entries .'dps'."),
        ("dsp = 1728", 'dsp = "many"', "dsp = 'many' is not a int"),
        ("dsp = 1728", "dsp = -5", "dsp = -5 is not a int"),
        ("clock_mhz = 300.0", "clock_mhz = 0", "clock_mhz = 0 is not a float"),
        ("[fabric]", "[fabric", "compare with"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(ZCU104.read_text().replace(old, new))
    with pytest.raises(MoehlsError, match=message):
        load_board(str(path))


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(MoehlsError, match="No such file"):
        load_board("/nowhere/board.toml")
