"""Verification sees what is broken: small campaigns of faults in generated C++ and RTL."""

from __future__ import annotations

import pytest

from moehls.project import Project
from tests.tb.faults import SMALL, run_cpp, run_rtl
from tests.tb.projects import write_family
from tests.tb.step_programs import roomy

NUMBER = 25
LEAST = 0.95


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> list[Project]:
    return write_family(tmp_path_factory.mktemp("faults"), 3, SMALL, roomy)


def test_verification_sees_broken_cpp(projects: list[Project]) -> None:
    found = run_cpp(projects, NUMBER, 1, images=1)
    assert len(found.seen) + len(found.none) + len(found.silent) >= NUMBER - 3, "breaks that do not compile are few"
    assert found.strict >= LEAST, [str(fault) for fault in found.silent]


def test_verification_sees_broken_rtl(projects: list[Project]) -> None:
    found = run_rtl(projects, NUMBER, 2, images=1)
    assert len(found.seen) >= NUMBER // 2, "the campaign reaches what is run"
    assert found.share >= LEAST, [str(fault) for fault in found.survivors]
