"""Geometry of the report's drawings: in go the summary and the manifest, out come marks in SVG units.

Nothing here is markup: `templates/report/index.html.j2` draws the marks and escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]
WIDTH = 960.0
KINDS = {
    "embed": "patch embedding",
    "norm": "layer norm",
    "linear": "linear",
    "scores": "attention scores",
    "context": "attention context",
    "mlp": "MLP",
    "route": "router",
    "experts": "experts",
    "transfer": "load, gather and store",
}
"""Classes of steps, in the order of the legend."""


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    style: str
    """CSS class"""
    title: str = ""
    """shown when the pointer rests on it"""
    opacity: float = 1.0


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    anchor: str = "start"
    style: str = "label"


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    style: str

    @property
    def path(self) -> str:
        """The `points` attribute of a polyline."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Figure:
    """A drawing, `WIDTH` wide."""

    height: float
    label: str
    """what it shows, for readers who do not see it"""
    rects: tuple[Rect, ...] = ()
    texts: tuple[Text, ...] = ()
    lines: tuple[Line, ...] = ()
    legend: tuple[tuple[str, str], ...] = field(default=())
    """(CSS class, text)"""
    width: float = WIDTH


def shares(steps: Sequence[Json]) -> Figure | None:
    """One bar: how the cycles divide among the kinds of steps."""
    total = sum(step["cycles"] for step in steps)
    if not total:
        return None
    rects, texts, position = [], [], 0.0
    for kind, name in KINDS.items():
        cycles = sum(step["cycles"] for step in steps if step["class"] == kind)
        width = WIDTH * cycles / total
        if not cycles:
            continue
        rects.append(
            Rect(
                position,
                0,
                max(width - 2, 0.5),
                30,
                f"k-{kind}",
                f"{name}: {cycles:,} cycles, {100 * cycles / total:.1f} %",
            )
        )
        if width > 64:
            texts.append(Text(position + 8, 20, f"{100 * cycles / total:.0f} %", style="inside"))
        position += width
    return Figure(32, "Share of the cycles by kind of step", tuple(rects), tuple(texts))


def resources(summary: Json, names: Mapping[str, str]) -> Figure:
    """A bar a resource: what is used of what the board has."""
    left, row = 120.0, 34.0
    rects, texts = [], []
    for index, (key, name) in enumerate(names.items()):
        found, y = summary[key], index * row + 4
        texts.append(Text(left - 12, y + 17, name, "end"))
        rects.append(Rect(left, y + 4, WIDTH - left - 250, 18, "track"))
        if found["value"] is None:
            texts.append(Text(WIDTH - 240, y + 17, f"– of {found['available']:,}: not counted yet", style="note"))
            continue
        share = found["value"] / found["available"]
        style = "over" if share > 1 else "bar"
        rects.append(Rect(left, y + 4, (WIDTH - left - 250) * min(share, 1), 18, style, f"{100 * share:.1f} %"))
        note = f"{found['value']:,g} of {found['available']:,}  ({100 * share:.0f} %, {found['origin']})"
        texts.append(Text(WIDTH - 240, y + 17, note, style="note"))
    return Figure(len(names) * row + 8, "Resources used against the board", tuple(rects), tuple(texts))


def fidelity(stages: Sequence[Json]) -> Figure | None:
    """Signal to quantisation noise after each stage, in the order of computation."""
    known = [stage for stage in stages if stage["sqnr_db"] is not None]
    if not known:
        return None
    left, top, height = 56.0, 14.0, 220.0
    high = max(10.0, 10 * math.ceil(max(stage["sqnr_db"] for stage in known) / 10))
    low = min(0.0, 10 * math.floor(min(stage["sqnr_db"] for stage in known) / 10))
    scale = height / (high - low)
    width = (WIDTH - left - 10) / len(known)
    rects, line = [], []
    for index, stage in enumerate(known):
        x, y = left + (index + 0.5) * width, top + (high - stage["sqnr_db"]) * scale
        style = f"f-{stage['kind']}"
        title = f"{stage['name']} ({stage['kind']}): {stage['sqnr_db']:.1f} dB"
        rects.append(Rect(x - max(width * 0.36, 0.8), y, max(width * 0.72, 1.6), top + height - y, style, title, 0.85))
        if stage["kind"] == "residual":
            line.append((x, y))
    ticks = [
        (0.0 if high == low else (value - low) / (high - low), f"{value:.0f} dB") for value in _steps(low, high, 10)
    ]
    lines, texts = vertical_axis(left, top, height, ticks)
    kinds = [kind for kind in ("residual", "operand", "fine", "raw") if any(s["kind"] == kind for s in known)]
    lines.append(Line(tuple(line), "trend"))
    return Figure(
        top + height + 12, "Signal to quantisation noise by stage", tuple(rects), tuple(texts), tuple(lines),
        tuple((f"f-{kind}", kind) for kind in kinds),
    )  # fmt: skip


def routing(layers: Sequence[Json], task: int) -> Figure:
    """Rows: layers with experts; columns: experts; colour: the share of the tokens of `task` that chose the expert."""
    left, top, row = 150.0, 26.0, 24.0
    experts = max(len(layer["counts"][task]) for layer in layers)
    width = min((WIDTH - left - 10) / experts, 60.0)
    most = max((max(layer["counts"][task]) / max(layer["tokens"][task], 1) for layer in layers), default=0) or 1
    rects, texts = [], []
    for e in range(experts):
        texts.append(Text(left + (e + 0.5) * width, top - 8, str(e), "middle"))
    for r, layer in enumerate(layers):
        texts.append(Text(left - 10, top + r * row + 16, _ellipsis(layer["name"], 20), "end"))
        for e, count in enumerate(layer["counts"][task]):
            share = count / max(layer["tokens"][task], 1)
            title = f"{layer['name']}, expert {e}: {count:,} tokens, {100 * share:.1f} %"
            x, y = left + e * width, top + r * row
            rects.append(Rect(x, y, width - 2, row - 2, "cell"))
            rects.append(Rect(x, y, width - 2, row - 2, "heat", title, round((share / most) ** 0.7, 3)))
            if width > 34 and count:
                style = "hot" if (share / most) ** 0.7 > 0.55 else "cold"
                texts.append(Text(x + width / 2 - 1, y + 15.5, f"{100 * share:.0f}", "middle", style))
    return Figure(
        top + len(layers) * row + 4,
        f"Share of the tokens of task {task} by layer and expert, in percent",
        tuple(rects),
        tuple(texts),
    )


def memory(entry: Json, steps: int) -> Figure:
    """One memory: addresses downwards, steps to the right; each value where and as long as it lives."""
    left, height = 64.0, 84.0
    depth = max(entry["depth"], 1)
    horizontal, vertical = (WIDTH - left - 10) / max(steps, 1), height / depth
    rects = [Rect(left, 2, WIDTH - left - 10, height, "track")]
    for value in entry["values"]:
        x, y = left + value["first_step"] * horizontal, 2 + value["base"] * vertical
        width = max((value["last_step"] - value["first_step"] + 1) * horizontal, 0.8)
        title = (
            f"{value['name']}: words {value['base']} … {value['base'] + value['words'] - 1}, "
            f"steps {value['first_step']} … {value['last_step']}"
        )
        rects.append(Rect(x, y, width, max(value["words"] * vertical, 0.8), f"v-{value['kind']}", title, 0.9))
    texts = (Text(left - 8, 12, "0", "end"), Text(left - 8, height, f"{depth - 1:,}", "end"))
    return Figure(height + 6, f"Values in memory {entry['name']} over the steps", tuple(rects), texts)


def curve(points: Sequence[Sequence[float]], label: str) -> Figure | None:
    """A line through `points` (x, y), y around 0."""
    if not points:
        return None
    left, top, height = 80.0, 12.0, 150.0
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    most = max(max(abs(y) for y in ys), 1e-12)
    scale = (WIDTH - left - 10) / max(max(xs) - min(xs), 1e-12)
    line = tuple((left + (x - min(xs)) * scale, top + height / 2 * (1 - y / most)) for x, y in zip(xs, ys, strict=True))
    ticks = ((0, f"−{most:.1e}"), (0.5, "0"), (1, f"{most:.1e}"))
    lines, texts = vertical_axis(left, top, height, ticks)
    for x in _steps(math.ceil(min(xs)), math.floor(max(xs)), 1 if max(xs) - min(xs) <= 16 else 4):
        texts.append(Text(left + (x - min(xs)) * scale, top + height + 18, f"{x:.0f}", "middle"))
    return Figure(top + height + 26, label, (), tuple(texts), (*lines, Line(line, "curve")))


def network(blocks: Sequence[Json]) -> Figure:
    """The recognised model from left to right, a box an operation group."""
    gap, height = 6.0, 62.0
    width = min((WIDTH - gap * (len(blocks) - 1)) / max(len(blocks), 1), 120.0)
    rects, texts = [], []
    for index, block in enumerate(blocks):
        x = index * (width + gap)
        half = (height - 3) / max(len(block["parts"]), 1)
        for p, part in enumerate(block["parts"]):
            rects.append(Rect(x, p * half, width, half - 3, f"k-{part['class']}", part["title"]))
            if width > 54:
                texts.append(Text(x + width / 2, p * half + half / 2 + 3, part["short"], "middle", "inside"))
        texts.append(Text(x + width / 2, height + 14, block["name"], "middle"))
    return Figure(height + 22, "The recognised model, block by block", tuple(rects), tuple(texts))


def vertical_axis(
    left: float, top: float, height: float, marks: Sequence[tuple[float, str]]
) -> tuple[list[Line], list[Text]]:
    """Horizontal lines at shares of the height, and their texts."""
    lines = [Line(((left, top + height * (1 - s)), (WIDTH - 10, top + height * (1 - s))), "grid") for s, _ in marks]
    texts = [Text(left - 8, top + height * (1 - share) + 4, text, "end") for share, text in marks]
    return lines, texts


def round_ticks(total: float, count: int) -> list[tuple[float, str]]:
    """About `count` round values from 0 to `total`, and how they are written."""
    rough = total / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [(i * step, _short(i * step)) for i in range(int(total / step) + 1)]


def _steps(low: float, high: float, step: float) -> list[float]:
    return [low + i * step for i in range(int((high - low) / step) + 1)]


def _short(value: float) -> str:
    for limit, suffix in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _ellipsis(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
