"""Verification sees what is broken: a small campaign of faults in generated RTL."""

from __future__ import annotations

from pathlib import Path

from tests.tb.faults import run_campaign
from tests.tb.projects import write_random_project

NUMBER = 30


def test_verification_sees_broken_rtl(tmp_path: Path) -> None:
    result = run_campaign(write_random_project(tmp_path, 3), NUMBER, 1)
    assert len(result.seen) + len(result.survivors) + len(result.equivalent) == NUMBER
    assert len(result.seen) >= NUMBER // 2, "the campaign reaches what the frames use"
    assert result.share >= 0.95, [str(verdict.fault) for verdict in result.survivors]
