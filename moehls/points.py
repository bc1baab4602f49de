"""Files of `moehls explore`: the points of a front as JSON, and one of them back as what `moehls compile` takes.

In goes a front and what it was made for; out comes the JSON that `--point F.json:N` reads again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moehls.boards import Board
from moehls.errors import MoehlsError
from moehls.plan.explore import Point


@dataclass(frozen=True)
class ChosenPoint:
    """A point of a file: what it was planned for, and the settings that give it."""

    board: str
    precision: str
    clock_mhz: float
    settings: dict[str, str]


def front_json(
    model: str, board: Board, board_option: str, precision: str, clock_mhz: float, front: Sequence[Point]
) -> dict[str, Any]:
    """The front as JSON; points are numbered from 1, the fastest first."""
    available = {name: getattr(board, name) for name in ("dsp", "bram36", "uram", "lut")}
    points = [
        {
            "point": number,
            "cycles": point.cycles,
            "latency_ms": round(point.cycles / clock_mhz / 1e3, 4),
            **{name: getattr(point, name) for name in available},
            "settings": point.settings,
        }
        for number, point in enumerate(front, 1)
    ]
    return {
        "model": model,
        "board": board_option,
        "precision": precision,
        "clock_mhz": clock_mhz,
        "available": available,
        "points": points,
    }


def read_point(text: str) -> ChosenPoint:
    """The point that `F.json:N` names; the first without a number.

    Raises:
        MoehlsError: no such file or point, or a file that `moehls explore` did not write.
    """
    path, number = _parts(text)
    try:
        found = json.loads(path.read_text())
        points = found["points"]
        chosen = ChosenPoint(found["board"], found["precision"], float(found["clock_mhz"]), {})
        settings = [{str(key): str(value) for key, value in point["settings"].items()} for point in points]
    except OSError as error:
        raise MoehlsError(
            f"--point {text}: {error.strerror}: {path}; moehls explore MODEL.onnx -o {path} writes it"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MoehlsError(f"--point {text}: {path} is not a file of moehls explore ({error})") from error
    if not 1 <= number <= len(settings):
        raise MoehlsError(f"--point {text}: {path} has the points 1 … {len(settings)}")
    return ChosenPoint(chosen.board, chosen.precision, chosen.clock_mhz, settings[number - 1])


def _parts(text: str) -> tuple[Path, int]:
    name, colon, number = text.rpartition(":")
    if colon and number.isascii() and number.isdigit():
        return Path(name), int(number)
    return Path(text), 1
