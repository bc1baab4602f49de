"""Random C++ in the subset gives the same values natively and as RTL, with and without stalls.

`make fuzz-rtl` runs many (`tests/rtl/fuzz.py`); here a few, in one Verilator build.
"""

from __future__ import annotations

from pathlib import Path

from tests.rtl.bench import compare
from tests.rtl.programs import Generator

SEEDS = (1, 2, 5, 6, 7, 9, 11, 14)


def test_rtl_computes_what_the_cpp_computes(tmp_path: Path) -> None:
    designs = [Generator(seed).design() for seed in SEEDS]
    assert any("_compute" in d.text for d in designs), "a program is among them"
    assert compare(designs, tmp_path) == []
