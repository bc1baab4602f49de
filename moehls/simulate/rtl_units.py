"""The cocotb benches of a project's units (`tb/step_bench.py`), each on the RTL of that unit alone.

In go a project and images; out comes a result a bench. Units of the step machine run steps of the project's own program on
those images, and must leave what the C simulation leaves, which is compared with the NumPy reference; single processes of the
engine run random calls whose results NumPy gives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moehls.network.operations import FloatArray
from moehls.plan.instruction import Kind, Mode
from moehls.plan.shape import Shape
from moehls.project import Project
from moehls.simulate.rtl import BUILD, generated_sources
from moehls.simulate.rtl_bench import Bench, BenchResult, run_bench
from moehls.simulate.unit_calls import Call, bench_settings, feed_calls, multiply_calls, weights_calls, widen_calls
from moehls.simulate.unit_steps import (
    Recorded,
    Wanted,
    bench_data,
    choose,
    is_kind,
    is_mode,
    record,
    steps_that_run,
)

if TYPE_CHECKING:
    from moehls.rtl.elaborate import Unit
    from moehls.rtl.generate import Generated

CYCLES = 8_000
"""estimated cycles of a bench's steps, beyond the shortest of every form"""
_SEED = 1
STEPS: dict[str, tuple[str, Wanted]] = {
    "pixels": ("input_pixels", is_kind(Kind.INPUT)),
    "initial residual": ("load", is_kind(Kind.LOAD)),
    "layer norm": ("norm", is_kind(Kind.NORM)),
    "products, requantised": ("engine", is_mode(Mode.REQUANTISE, Mode.RESIDUAL, Mode.WIDE)),
    "softmax and attention": ("engine", is_mode(Mode.SOFTMAX, Mode.CONTEXT)),
    "gelu and gates": ("engine", is_mode(Mode.GELU, Mode.GATED)),
    "router logits and heads": ("engine", is_mode(Mode.RAW)),
    "router with queues": ("route", is_kind(Kind.ROUTE)),
    "gather": ("gather", is_kind(Kind.GATHER)),
    "scatter": ("engine", is_mode(Mode.SCATTER)),
    "mean of tokens": ("pool", is_kind(Kind.POOL)),
    "results": ("store", is_kind(Kind.STORE)),
}
"""bench -> the unit and the steps of it"""
CALLS: dict[str, tuple[str, Callable[[Shape, int], list[Call]], tuple[str, ...], str]] = {
    "MAC engine": ("multiply", multiply_calls, ("sums",), "h"),
    "operands": ("feed", feed_calls, ("operands", "probability_sums"), "h"),
    "weight tiles": ("weights", weights_calls, ("tiles", "parameters"), "h"),
    "weight stream": ("widen", widen_calls, ("words",), "beats"),
}
"""bench -> the process, its calls, the streams it writes, its scalar parameter"""
NAMES = (*STEPS, *CALLS)


@dataclass(frozen=True)
class UnitBenches:
    """The RTL of a project and the steps that its benches play."""

    project: Project
    generated: Generated
    sources: tuple[Path, ...]
    recorded: dict[str, list[Recorded]]

    def run(self, name: str) -> BenchResult | None:
        """Run a bench of `NAMES`; None where the project's program has no such step.

        Raises:
            CheckFailed: a test failed.
            MoehlsError: the RTL does not build.
        """
        if name in STEPS and not self.recorded.get(name):
            return None
        folder = self.project.path.resolve() / BUILD
        process = STEPS[name][0] if name in STEPS else CALLS[name][0]
        unit = next(u for u in self.generated.units.units.values() if u.name == process)
        path = folder / f"{name.replace(' ', '_').replace(',', '')}.npz"

        def latency(formal: str) -> int:
            from moehls.rtl.delay import read_latency
            from moehls.rtl.elaborate import memory_of

            return read_latency(memory_of(unit, f"%{formal}"))

        if name in STEPS:
            settings = dict(bench_data(self.recorded[name], latency, path))
        else:
            _, made, outputs, scalar = CALLS[name]
            settings = bench_settings(made(self.project.plan.shape, _SEED), outputs, latency, path, scalar)
        return run_unit(name, process, stand_alone(self.generated, unit, self.sources, folder), folder, settings)


def prepare(
    project: Project, frames: Sequence[tuple[FloatArray, int]], names: Iterable[str] = NAMES, cycles: int = CYCLES
) -> UnitBenches:
    """Generate the project's RTL where it is older than its C++, and record the steps of the benches `names`.

    Args:
        project: the project.
        frames: image and task of each frame; the first one gives the steps of every task, the others those of their own.
        names: of `NAMES`.
        cycles: estimated cycles of a bench's steps, beyond the shortest of every form.

    Raises:
        CheckFailed: the C simulation differs from the reference.
        MoehlsError: a tool is missing, or the C++ leaves the subset.
    """
    from moehls.rtl.generate import generate_modules, shim  # compilers that other levels do without

    sources = generated_sources(project)
    files = sorted((project.path / "src").glob("*.cpp"))
    build = project.path / "build/rtl-compile"
    period = 1000.0 / project.plan.clock_mhz
    generated = generate_modules(files, [project.path / "include", shim()], build, period=period)
    recorded: dict[str, list[Recorded]] = {name: [] for name in names if name in STEPS}
    seen: set[int] = set()
    for image, task in frames:
        numbers = [n for n in steps_that_run(project, image, task) if n not in seen]
        chosen = {name: choose(project, numbers, STEPS[name][1], cycles) for name in recorded}
        found = record(project, image, task, {n for some in chosen.values() for n in some})
        for name, some in chosen.items():
            recorded[name] += [found[n] for n in some]
        seen |= set(numbers)
    return UnitBenches(project, generated, sources, recorded)


def run_unit_benches(benches: UnitBenches, names: Iterable[str] = NAMES) -> Iterator[BenchResult]:
    """Run benches one after another; those of units that the project's program does not use are left out."""
    for name in names:
        result = benches.run(name)
        if result is not None:
            yield result


def run_unit(
    name: str, process: str, device: tuple[str, tuple[Path, ...]], folder: Path, settings: dict[str, Any]
) -> BenchResult:
    """Run the step bench on a device (top module and sources) with settings for it."""
    start = time.monotonic()
    tests = run_bench(Bench(*device, "step_bench"), folder, settings)
    return BenchResult(name, process, len(settings["steps"]), tests, time.monotonic() - start)


def stand_alone(
    generated: Generated, unit: Unit, sources: tuple[Path, ...], folder: Path
) -> tuple[str, tuple[Path, ...]]:
    """(top module, sources) of a unit behind ordinary handshakes; a wrapper, where it needs one, goes to `folder`."""
    from moehls.rtl.structure import emit_wrapper, needs_wrapper

    if not needs_wrapper(generated.units, unit):
        return unit.name, sources
    folder.mkdir(parents=True, exist_ok=True)
    wrapper = folder / f"{unit.name}_alone.sv"
    wrapper.write_text(emit_wrapper(generated.units, unit, unit.name, wrapper.stem))
    return wrapper.stem, (*sources, wrapper)
