"""The timeline: every step where and as wide as its cycles, the ports' panel only once bytes are measured."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from moehls.report.timeline import draw, timeline


def step(name: str, kind: str, cycles: int, utilisation: float, read: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "class": kind,
        "cycles": cycles,
        "utilisation": utilisation,
        "macs": 8,
        "read_bytes_rtl": read,
    }


STEPS = [step("norm0", "norm", 100, 0.0, 4800), step("linear0", "linear", 300, 0.5, 9600)]


def test_steps_lie_one_after_another_in_proportion_to_their_cycles() -> None:
    found = timeline(STEPS, ports=4)
    assert found is not None
    norm, linear = (next(r for r in found.rects if r.style == f"k-{kind}") for kind in ("norm", "linear"))
    assert linear.width == pytest.approx(3 * norm.width)
    assert linear.x == pytest.approx(norm.x + norm.width)
    assert linear.height == pytest.approx(75.0), "half of the array's panel"


def test_bytes_read_have_a_panel_only_once_measured() -> None:
    measured, planned = timeline(STEPS, 4), timeline([s | {"read_bytes_rtl": None} for s in STEPS], 4)
    assert measured is not None and planned is not None
    bars = [r for r in measured.rects if r.style == "bar"]
    assert [r.title for r in bars] == ["norm0: 48.0 bytes a cycle", "linear0: 32.0 bytes a cycle"]
    assert bars[0].height == pytest.approx(1.5 * bars[1].height)
    assert not [r for r in planned.rects if r.style == "bar"]


def test_a_frame_without_cycles_has_no_drawing() -> None:
    assert timeline([], 4) is None


def test_the_file_is_well_formed_and_escapes_names() -> None:
    found = timeline([step('<a & "b">', "experts", 10, 1.0, 640)], 4)
    assert found is not None
    texts = [element.text for element in ElementTree.fromstring(draw(found)).iter()]
    assert any(text and text.startswith('<a & "b">: 10 cycles') for text in texts)
