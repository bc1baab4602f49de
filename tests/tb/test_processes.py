"""Single processes on random calls, in Verilator under cocotb, against NumPy: the code of `make sim`, with 16-bit operands.

`test_units.py` runs the same with 8 bits, where two tokens share a multiplier.
"""

from __future__ import annotations

import pytest

from moehls.integer.precision import PRECISIONS
from moehls.simulate.rtl_units import CALLS, UnitBenches, prepare
from tests.tb.projects import write_random_project


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> UnitBenches:
    project = write_random_project(tmp_path_factory.mktemp("processes"), 1, precision=PRECISIONS["w16a16"])
    return prepare(project, (), CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_process(benches: UnitBenches, name: str) -> None:
    """At the edges of every range; weights from the stream, kept, and from a memory in both orders; stalls change nothing."""
    found = benches.run(name)
    assert found is not None
    assert found.tests == 2
