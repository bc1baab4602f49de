"""The plan's LUTs and flip-flops follow the structure of a shape, and every process of the RTL counts to one of its names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moehls.integer.precision import W8A8, W16A16
from moehls.plan.logic import COEFFICIENTS, PROCESSES, logic_by_process, name_of, terms
from moehls.plan.resources import plan_resources
from moehls.plan.shape import Shape

SHAPE = Shape(W8A8, 6, 16, 4, 4, 528, 132, 129, 48, 12, 2, 129, 16, 49152, scaled_bits=24, shift_low=9, shift_high=27)
SOURCES = Path(__file__).parent.parent.parent / "templates" / "hls" / "src"


@pytest.mark.parametrize(
    "more",
    [
        {"token_parallel": 7},
        {"epilogue_lanes": 8},
        {"lut_columns": 5},
        {"max_experts": 32},
        {"gated": True},
        {"biased": True},
        {"pools": True},
        {"thresholds": True},
        {"capacities": True, "rooms": True},
        {"experts": "prefetched"},
        {"scaled_bits": 32},
        {"second_shift_high": 100},
        {"precision": W16A16, "scaled_bits": 48},
    ],
    ids=str,
)
def test_more_of_anything_takes_more(more: dict[str, Any]) -> None:
    base = replace(SHAPE, second_shift_high=20)
    less, full = logic_by_process(base), logic_by_process(replace(base, **more))
    assert all(a <= b for name in less for a, b in zip(less[name], full[name], strict=True)), more
    assert sum(luts for luts, _ in less.values()) < sum(luts for luts, _ in full.values())


def test_every_term_has_a_coefficient_and_no_other() -> None:
    assert {name: set(units) for name, units in terms(SHAPE).items()} == {n: set(c) for n, c in COEFFICIENTS.items()}
    assert set(PROCESSES.values()) <= set(COEFFICIENTS)
    assert [name_of(process) for process in ("feed", "moments", "burst_read", "choose")] == [
        "feed", "norm", "stream", "sections",
    ]  # fmt: skip


def test_processes_are_those_of_the_source() -> None:
    text = "".join(path.read_text() for path in SOURCES.iterdir())
    assert [process for process in PROCESSES if f"void {process}(" not in text] == []


def test_memories_of_lut_ram_are_part_of_the_sum() -> None:
    luts = sum(luts for luts, _ in logic_by_process(SHAPE).values())
    shallow = replace(SHAPE, raw_depth=8)  # the raw memory moves from block RAM to LUT RAM
    assert plan_resources(shallow).lut > plan_resources(SHAPE).lut > luts
