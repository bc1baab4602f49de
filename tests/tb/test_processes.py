"""Processes of the engine alone, at their streams, under cocotb: the MAC engine and the weights, in both precisions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from moehls.integer.precision import PRECISIONS
from moehls.plan.shape import Shape
from moehls.rtl.delay import read_latency
from moehls.rtl.elaborate import memory_of
from moehls.rtl.generate import Generated, generate_modules, shim
from moehls.simulate.rtl_bench import Bench, run_bench
from tests.tb.projects import stand_alone, write_random_project
from tests.tb.streams import Call, bench_settings, multiply_calls, weights_calls

TESTS = 2
"""without stalls and with"""


@dataclass(frozen=True)
class Machine:
    """The RTL of one precision."""

    shape: Shape
    generated: Generated
    folder: Path

    def check(self, process: str, calls: list[Call], outputs: tuple[str, ...]) -> None:
        """Every call on the module of one process, its outputs compared by equality."""
        unit = next(u for u in self.generated.units.units.values() if u.name == process)
        latency = {name: read_latency(memory_of(unit, f"%{name}")) for name in calls[0].memories}
        settings = bench_settings(calls, outputs, latency, self.folder / f"{process}.npz")
        bench = Bench(*stand_alone(self.generated, unit, self.folder), "step_bench")
        assert run_bench(bench, self.folder / "build", settings, limit=300) == TESTS


@pytest.fixture(scope="module", params=sorted(PRECISIONS))
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp(request.param)
    project = write_random_project(folder, 1, precision=PRECISIONS[request.param])
    made = generate_modules(sorted((folder / "src").glob("*.cpp")), [folder / "include", shim()], folder / "clang")
    for name, text in made.files.items():
        (folder / name).write_text(text)
    return Machine(project.plan.shape, made, folder)


def test_multiply(machine: Machine) -> None:
    """Two int8 tokens a multiplier, or one of 16 bits: the sums, at the edges of every range."""
    machine.check("multiply", multiply_calls(machine.shape, 3), ("sums",))


def test_weights(machine: Machine) -> None:
    """From the stream, kept for the other token groups, and from a memory in both orders; the parameters of each tile."""
    machine.check("weights", weights_calls(machine.shape, 4), ("tiles", "parameters"))
