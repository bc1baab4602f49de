"""The drawing of a Pareto front: in goes the JSON of `moehls explore`, out comes an SVG file's text.

A panel a resource over the same cycles; each point carries its number and shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moehls.report.figures import Figure, Line, Rect, Text
from moehls.report.templates import render

_PANELS = {"dsp": "DSP48E2", "bram36": "BRAM36", "uram": "URAM"}
_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP = 960.0, 190.0, 64.0, 20.0, 30.0
_GAP, _MARK = 44.0, 7.0


def draw(found: Mapping[str, Any]) -> str:
    """The SVG of a front."""
    return render("front.svg.j2", figure=figure(found))


def figure(found: Mapping[str, Any]) -> Figure:
    """Panels of the points: cycles to the right, a resource upwards, the board's limit as a line."""
    points: Sequence[Mapping[str, Any]] = found["points"]
    most = max(point["cycles"] for point in points) * 1.05
    rects: list[Rect] = []
    texts = [Text(_LEFT, 18, f"{found['model']} on {found['board']}, {found['precision']}, {found['clock_mhz']:g} MHz: "
                  "cycles a frame to the right, estimated", style="note")]  # fmt: skip
    lines: list[Line] = []
    for number, (name, title) in enumerate(_PANELS.items()):
        top = _TOP + number * (_PANEL + _GAP)
        floor, limit = top + _PANEL, found["available"][name]
        highest = max(limit, *(point[name] for point in points), 1) * 1.05
        lines.append(Line(((_LEFT, floor), (_WIDTH - _RIGHT, floor)), "grid"))
        bound = floor - _PANEL * limit / highest
        lines.append(Line(((_LEFT, bound), (_WIDTH - _RIGHT, bound)), "limit"))
        texts += [
            Text(_LEFT, top + 4, title),
            Text(_WIDTH - _RIGHT, bound - 4, f"the board has {limit:,}", "end"),
            Text(_LEFT - 8, floor, "0", "end"),
            Text(_WIDTH - _RIGHT, floor + 16, f"{round(most):,} cycles", "end"),
        ]
        for point in points:
            x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point["cycles"] / most
            y = floor - _PANEL * point[name] / highest
            shape = ", ".join(f"{key} {value}" for key, value in point["settings"].items())
            tip = f"{point['point']}: {point['cycles']:,} cycles, {point[name]:g} {title}; {shape}"
            rects.append(Rect(x - _MARK / 2, y - _MARK / 2, _MARK, _MARK, "bar", tip))
            if number == 0 and point["point"] in (1, len(points)):
                texts.append(Text(x, y - 8, str(point["point"]), "middle", "note"))
    height = _TOP + len(_PANELS) * (_PANEL + _GAP)
    return Figure(height, "Pareto front: cycles against resources", tuple(rects), tuple(texts), tuple(lines))
