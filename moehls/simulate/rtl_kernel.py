"""The cocotb bench of a project's whole kernel (`tb/kernel_bench.py`): registers, interrupt, stalls, reset, read errors.

In go a project and frames with the reference's results; out comes what `BenchResult` says of the tests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moehls import reference
from moehls.emit.results import result_bytes
from moehls.integer.host import quantise_image
from moehls.network.operations import FloatArray
from moehls.plan.layout import input_bytes
from moehls.plan.payload import Bytes
from moehls.project import Project
from moehls.simulate.places import weight_stream
from moehls.simulate.rtl import BUILD, project_kernel
from moehls.simulate.rtl_bench import Bench, BenchResult, run_bench

NAME = "kernel at its ports"
_LONG = 10_000
"""cycles a frame from which on an optimised simulator is worth the time of its build"""


@dataclass(frozen=True)
class KernelFrame:
    """One frame: the bytes of its input and, by the reference, of its result."""

    task: int
    input: Bytes
    expected: Bytes


def kernel_frame(project: Project, image: FloatArray, task: int) -> KernelFrame:
    """The frame of an image `[channels, height, width]`."""
    integer, plan = project.integer, project.plan
    execution = reference.run(integer, image, task)
    outputs = {output.name: execution.array(output.value) for output in integer.outputs}
    data = input_bytes(quantise_image(integer, image), plan.input, plan.shape)
    return KernelFrame(task, data, result_bytes(outputs, plan.outputs))


def run_kernel_bench(
    project: Project, frames: Sequence[KernelFrame], *, tests: Sequence[str] = (), seed: int = 0, limit: float = 3600.0
) -> BenchResult:
    """Run the bench on at least two frames.

    Raises:
        CheckFailed: a test failed.
        MoehlsError: the RTL or the bench does not build.
    """
    start = time.monotonic()
    kernel, plan = project_kernel(project), project.plan
    folder = project.path / BUILD
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"weights": weight_stream(project), "first_beats": np.array(plan.first_beats)}
    for n, frame in enumerate(frames):
        arrays |= {f"input{n}": frame.input, f"expected{n}": frame.expected}
    path = (folder / "frames.npz").absolute()
    np.savez(path, **arrays)
    registers = project.manifest["registers"]
    end = registers[-1]["offset"] + registers[-1]["bits"] // 8 + 4
    settings = {
        "data": str(path),
        "tasks": [frame.task for frame in frames],
        "registers": registers,
        "bundles": list(kernel.bundles),
        "limit": 30 * plan.cycles + 50_000,
        "typical": plan.cycles,
        # RTL of Vitis has no status register
        "status": end if kernel.hooks.memories else None,
    }
    bench = Bench(kernel.top, kernel.sources, "kernel_bench", data=kernel.data, fast=plan.cycles > _LONG)
    passed = run_bench(bench, folder, settings, tests=tests, seed=seed, limit=limit)
    return BenchResult(NAME, kernel.top, len(frames), passed, time.monotonic() - start)
