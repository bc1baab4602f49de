"""Every unit of the step machine alone: its steps of a random network, in Verilator under cocotb, against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from moehls.plan.instruction import Kind, Mode
from moehls.plan.steps import Step
from moehls.project import Project
from moehls.rtl.delay import read_latency
from moehls.rtl.elaborate import memory_of
from moehls.rtl.generate import Generated, generate_modules, shim
from moehls.simulate.rtl_bench import Bench, run_bench
from tests.tb.projects import TINY, stand_alone, write_random_project
from tests.tb.steps import Trace, bench_data, is_kind, is_mode, trace

UNITS: dict[str, tuple[str, Callable[[Step], bool]]] = {
    "pixels": ("input_pixels", is_kind(Kind.INPUT)),
    "weight stream to the residual": ("load", is_kind(Kind.LOAD)),
    "layer norm": ("norm", is_kind(Kind.NORM)),
    "multiply-accumulate, requantised": ("engine", is_mode(Mode.REQUANTISE, Mode.RESIDUAL)),
    "softmax and attention": ("engine", is_mode(Mode.SOFTMAX, Mode.CONTEXT)),
    "gelu": ("engine", is_mode(Mode.GELU)),
    "router logits and heads": ("engine", is_mode(Mode.RAW)),
    "router with queues": ("route", is_kind(Kind.ROUTE)),
    "gather": ("gather", is_kind(Kind.GATHER)),
    "scatter": ("engine", is_mode(Mode.SCATTER)),
    "mean of tokens": ("pool", is_kind(Kind.POOL)),
    "results": ("store", is_kind(Kind.STORE)),
}


@dataclass(frozen=True)
class Machine:
    """A random project, its RTL, and one frame of each task in the C simulation."""

    project: Project
    generated: Generated
    traces: tuple[Trace, ...]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    project = write_random_project(
        tmp_path_factory.mktemp("units"),
        1,
        replace(
            TINY,
            layers=4,
            pooled=True,
            threshold=12000,
            renormalise=True,
            capacity=2,
            priority="choice",
            score="sigmoid",
            group=2,
            kept_groups=1,
        ),
    )
    sources = sorted((project.path / "src").glob("*.cpp"))
    generated = generate_modules(sources, [project.path / "include", shim()], project.path / "build/rtl")
    folder = project.path / "rtl"
    folder.mkdir()
    for name, text in generated.files.items():
        (folder / name).write_text(text)
    traces = tuple(trace(project, seed=3 + task, task=task) for task in range(project.integer.tasks))
    return Machine(project, generated, traces)


@pytest.mark.parametrize("name", UNITS)
def test_unit(machine: Machine, tmp_path: Path, name: str) -> None:
    unit, wanted = UNITS[name]
    found = next(u for u in machine.generated.units.units.values() if u.name == unit)

    def latency(formal: str) -> int:
        return read_latency(memory_of(found, f"%{formal}"))

    top, sources = stand_alone(machine.generated, found, machine.project.path / "rtl")
    for task, traced in enumerate(machine.traces):
        settings = bench_data(machine.project, traced, wanted, latency, tmp_path / f"{task}.npz")
        bench = Bench(top, sources, "step_bench")
        assert run_bench(bench, machine.project.path / "build", settings, seed=task, limit=300) == 2
