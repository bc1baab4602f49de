"""The frame as a drawing: in go the steps of the summary, out come panels over the same cycles.

The multipliers' utilisation, the bytes that the memory ports move (once RTL has run), and when each unit beside the array works.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from moehls.report.figures import KINDS, WIDTH, Figure, Rect, Text, round_ticks, vertical_axis
from moehls.report.templates import render

Json = Mapping[str, Any]
_LEFT, _RIGHT, _TOP, _GAP = 96.0, 10.0, 14.0, 26.0
_ARRAY, _PORTS, _STRIP = 150.0, 90.0, 16.0
_UNITS = {"norm": ("norm",), "softmax": ("scores",), "router": ("route",), "transfers": ("transfer",)}
"""Strips, and the classes of steps during which the unit works."""


def timeline(steps: Sequence[Json], ports: int) -> Figure | None:
    """Steps along the cycles: the array's utilisation, the ports' bytes a cycle where measured, the other units.

    Args:
        steps: `cycles`, `utilisation`, `class`, `name`, `macs` and `read_bytes_rtl` of each.
        ports: 128-bit ports of the weights.
    """
    total = sum(step["cycles"] for step in steps)
    if not total:
        return None
    scale = (WIDTH - _LEFT - _RIGHT) / total
    ends = accumulate(step["cycles"] for step in steps)
    placed = [
        (_LEFT + (end - step["cycles"]) * scale, max(step["cycles"] * scale, 0.15), step)
        for end, step in zip(ends, steps, strict=True)
    ]

    lines, texts = vertical_axis(_LEFT, _TOP, _ARRAY, ((0, "0"), (0.5, "array 50 %"), (1, "100 %")))
    rects = [_array(x, width, step) for x, width, step in placed]
    bottom = _TOP + _ARRAY
    if all(step["read_bytes_rtl"] is not None for step in steps):
        top, widest = bottom + _GAP, 16 * ports
        axis = vertical_axis(_LEFT, top, _PORTS, ((0, "0"), (0.5, f"read {widest // 2} B"), (1, f"{widest} B")))
        lines += axis[0]
        texts += axis[1]
        rects += [_read(x, width, step, top, widest) for x, width, step in placed]
        bottom = top + _PORTS
    for unit, classes in _UNITS.items():
        working = [(x, width, step) for x, width, step in placed if step["class"] in classes]
        if working:
            top = bottom + 6
            rects.append(Rect(_LEFT, top, WIDTH - _LEFT - _RIGHT, _STRIP, "track"))
            rects += [Rect(x, top, width, _STRIP, f"k-{step['class']}", _title(step)) for x, width, step in working]
            texts.append(Text(_LEFT - 8, top + 12, unit, "end"))
            bottom = top + _STRIP
    texts += [Text(_LEFT + tick * scale, bottom + 18, short, "middle") for tick, short in round_ticks(total, 6)]
    texts.append(Text(WIDTH - _RIGHT, bottom + 36, "cycles", "end"))
    used = {step["class"] for step in steps}
    legend = tuple((f"k-{kind}", name) for kind, name in KINDS.items() if kind in used)
    label = "Every step over the cycles of one image: utilisation of the array, bytes read, units at work"
    return Figure(bottom + 44, label, tuple(rects), tuple(texts), tuple(lines), legend)


def draw(found: Figure) -> str:
    """The SVG file of a timeline, its legend below."""
    return render("timeline.svg.j2", figure=found)


def _array(x: float, width: float, step: Json) -> Rect:
    tall = max(_ARRAY * min(step["utilisation"] or 0.0, 1.0), 3.0)
    return Rect(x, _TOP + _ARRAY - tall, width, tall, f"k-{step['class']}", _title(step))


def _read(x: float, width: float, step: Json, top: float, widest: int) -> Rect:
    rate = step["read_bytes_rtl"] / max(step["cycles"], 1)
    tall = _PORTS * min(rate / widest, 1.0)
    return Rect(x, top + _PORTS - tall, width, tall, "bar", f"{step['name']}: {rate:.1f} bytes a cycle")


def _title(step: Json) -> str:
    share = 100 * (step["utilisation"] or 0.0)
    return f"{step['name']}: {step['cycles']:,} cycles, {step['macs']:,} MACs, utilisation {share:.0f} %"
