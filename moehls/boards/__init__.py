"""Boards: one TOML file a board, in this folder or given by its path; in goes a name or a path, out comes a `Board`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moehls.errors import MoehlsError

_POSITIVE = ("clock_mhz", "dsp", "bram36", "lut", "ff", "gigabytes_per_second", "efficiency", "hp_ports", "port_bits")
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Board:
    """What a board has. Block RAM counts 36 kbit blocks; URAM counts 288 kbit blocks."""

    name: str
    part: str
    board_part: str
    """Vivado's name of the board"""
    clock_mhz: float
    """default clock of the accelerator"""
    dsp: int
    bram36: int
    uram: int
    lut: int
    ff: int
    gigabytes_per_second: float
    """peak of the DRAM"""
    efficiency: float
    """share of the peak that long bursts reach"""
    hp_ports: int
    hpc_ports: int
    port_bits: int


def board_names() -> tuple[str, ...]:
    """The boards that come with moehls."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_board(name_or_path: str) -> Board:
    """A board by name, or from a TOML file of one's own (anything that ends in `.toml`).

    Raises:
        MoehlsError: an unknown name, or a file that is missing, damaged or lacks an entry.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
    elif name_or_path in board_names():
        path = _FOLDER / f"{name_or_path}.toml"
    else:
        known = ", ".join(board_names())
        raise MoehlsError(f"unknown board {name_or_path!r}; known are {known}, or give the path of a .toml file")
    try:
        with path.open("rb") as file:
            entries = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise MoehlsError(f"board {name_or_path!r}: {error}; compare with {_FOLDER.name}/zcu104.toml") from error
    return _board(name_or_path, entries)


def _board(source: str, entries: dict[str, Any]) -> Board:
    flat = {k: v for k, v in entries.items() if not isinstance(v, dict)}
    for table in ("fabric", "memory"):
        flat |= entries.get(table, {})
    fields = Board.__annotations__
    missing, unknown = sorted(fields.keys() - flat.keys()), sorted(flat.keys() - fields.keys())
    if missing or unknown:
        raise MoehlsError(f"board {source!r}: missing entries {missing}, unknown entries {unknown}")
    for name, kind in fields.items():
        right = isinstance(flat[name], str) if kind == "str" else _is_amount(flat[name], kind, name in _POSITIVE)
        if not right:
            raise MoehlsError(f"board {source!r}: {name} = {flat[name]!r} is not a {kind} of a right size")
    return Board(**flat)


def _is_amount(value: object, kind: str, positive: bool) -> bool:
    allowed = (int,) if kind == "int" else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool) and (value > 0 if positive else value >= 0)
