"""The RTL of a project in Verilator: whole frames, cycle by cycle, behind a DRAM model.

In go a project and DRAM settings; out comes `RtlSimulator`, a `Simulator` whose outputs come from the SystemVerilog in
`rtl/` (made from the project's C++ when it is missing or older), or, with the environment variable `RTL=vitis`, from the
Verilog of the project's Vitis solution.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moehls.errors import CheckFailed, MoehlsError
from moehls.integer.operations import IntArray
from moehls.plan.instruction import ANY_TASK
from moehls.plan.layout import input_bytes, integers, operand_bytes, output_tensors
from moehls.plan.payload import Bytes
from moehls.plan.shape import Experts
from moehls.project import Project
from moehls.simulate.places import read_place, weight_stream
from moehls.simulate.rtl_frame import BEAT_BYTES, Dram, FrameBench, FrameRun, Hooks, Kernel, build_frame, memory_words
from moehls.simulate.simulator import Simulation

BUILD = "build/rtl"
MOEHLS, VITIS = "moehls", "vitis"
_ALIGNMENT = 4096
_COMPUTE: dict[Experts, str] = {
    "streamed": "kernel.compute_0",
    "prefetched": "kernel.sections_0.section_instance.compute_0",
}
"""the step machine, by how experts are read"""
_SHORT_FRAME = 10_000
"""cycles up to which optimising the simulator takes longer than it saves"""
_SLACK = 20
"""a frame may take so many times the cycles of the plan before it counts as hung"""


def dram_of(project: Project, *, stall: float = 0.0, seed: int = 0) -> Dram:
    """The board's DRAM at the kernel's clock."""
    board, plan = project.plan.board, project.plan
    beats = board.gigabytes_per_second * board.efficiency * 1e3 / plan.clock_mhz / BEAT_BYTES
    return Dram(beats=min(beats, 255.0), stall=stall, seed=seed)


def rtl_origin() -> str:
    """Whose RTL is simulated: the environment variable `RTL`.

    Raises:
        MoehlsError: it is neither `moehls` nor `vitis`.
    """
    origin = os.environ.get("RTL", MOEHLS)
    if origin not in (MOEHLS, VITIS):
        raise MoehlsError(f"RTL={origin}: the RTL is of moehls or of vitis")
    return origin


def project_kernel(project: Project) -> Kernel:
    """The kernel's RTL.

    Raises:
        MoehlsError: the C++ cannot be compiled to RTL, or with `RTL=vitis` there is no solution.
    """
    if rtl_origin() == VITIS:
        sources = vitis_sources(project.path)
        return replace(project_kernel_of(project, sources), data=tuple(sorted(sources[0].parent.glob("*.dat"))))
    return replace(project_kernel_of(project, generated_sources(project)), hooks=hooks_of(project))


def project_kernel_of(project: Project, sources: tuple[Path, ...]) -> Kernel:
    """Other RTL with the ports and registers of the project's kernel, without hooks into it."""
    interfaces = project.manifest["interfaces"]
    bundles = tuple(master.removeprefix("m_axi_") for master in interfaces["masters"])
    last = max(register["offset"] for register in project.manifest["registers"])
    return Kernel(interfaces["kernel"], sources, bundles, (last + 15).bit_length())


def generated_sources(project: Project) -> tuple[Path, ...]:
    """The files of `rtl/`, generated if the C++ has changed since."""
    folder, stamp = project.path / "rtl", project.path / BUILD / "sources.sha256"
    digest = hashlib.sha256()
    for path in _inputs(project):
        digest.update(path.name.encode() + path.read_bytes())
    found = tuple(sorted(folder.glob("*.sv")))
    if not found or not stamp.exists() or stamp.read_text() != digest.hexdigest():
        from moehls.rtl.generate import generate  # compilers that other levels do without

        generate(project.path)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest.hexdigest())
        found = tuple(sorted(folder.glob("*.sv")))
    return found


def _inputs(project: Project) -> Iterator[Path]:
    """What the RTL depends on: the project's C++ and the generator."""
    yield from sorted((project.path / "include").glob("*.hpp"))
    yield from sorted((project.path / "src").glob("*.cpp"))
    generator = Path(__file__).parent.parent / "rtl"
    yield from sorted(generator.rglob("*.py"))
    yield from sorted(generator.rglob("*.sv"))


def hooks_of(project: Project) -> Hooks:
    """Where the generated RTL keeps what a trace reads."""
    lanes, compute = project.plan.shape.token_parallel, _COMPUTE[project.plan.shape.experts]

    def banks(name: str) -> tuple[str, ...]:
        names = [f"{name}_{lane}" for lane in range(lanes)] if lanes > 1 else [name]
        return tuple(f"TOP.frame.{compute}.{bank}_memory" for bank in names)

    banked = [(name, banks(name)) for name in ("m0", "m1", "m2", "m3", "residual")]
    single = [(name, (f"TOP.frame.{compute}.{name}_memory",)) for name in ("raw", "queue", "count")]
    return Hooks(_step_taken((project.path / "rtl/compute.sv").read_text(), compute), (*banked, *single))


def _step_taken(text: str, compute: str) -> str:
    """When `compute` turns to a step: the step machine reads `count` once a header, in the cycle in which that stage goes on."""
    read = f"{compute}.own_count_read_enable"
    stage = re.search(r"assign own_count_read_enable = \(*valid_(\d+)", text)
    if stage is None or f"assign advance_{stage[1]} =" not in text:
        return read
    return f"{read} & {compute}.advance_{stage[1]}"


def vitis_sources(project: Path) -> tuple[Path, ...]:
    """The Verilog of the project's Vitis solution: `syn/verilog` of `make csynth`, else `impl/verilog` of `make export`.

    Raises:
        MoehlsError: there is none.
    """
    for stage in ("syn", "impl"):
        folders = [found for found in sorted(project.glob(f"build/**/{stage}/verilog")) if any(found.glob("*.v"))]
        if folders:
            return tuple(sorted((*folders[-1].glob("*.v"), *folders[-1].glob("*.sv"))))
    raise MoehlsError(f"RTL=vitis: {project}/build holds no Verilog of Vitis HLS; run make csynth there first")


@dataclass(frozen=True)
class Layout:
    """Addresses in the DRAM: of each weight port, the input and the output."""

    weights: tuple[int, ...]
    input: int
    output: int
    size: int


def layout_of(project: Project) -> Layout:
    """Buffers one after another, each from a multiple of 4096 on."""
    plan = project.plan
    sizes = [plan.weight_beats] * plan.shape.ports + [plan.input_beats, plan.output_beats]
    starts, end = [], 0
    for beats in sizes:
        starts.append(end)
        end += -(-beats * BEAT_BYTES // _ALIGNMENT) * _ALIGNMENT
    return Layout(tuple(starts[:-2]), starts[-2], starts[-1], end)


class RtlSimulator:
    """The kernel in a running bench; its DRAM and memories live as long as it, as on the board."""

    def __init__(
        self,
        project: Project,
        dram: Dram,
        *,
        kernel: Kernel | None = None,
        waves: Path | None = None,
        threads: int = 1,
        dram_bytes: int = 0,
    ) -> None:
        """Build and start the bench, and load the weights.

        Args:
            project: the project.
            dram: settings of the DRAM model.
            kernel: other RTL than the project's.
            waves: write waves (FST) to this file.
            threads: threads of the simulator.
            dram_bytes: size of the DRAM; at least what the project needs.

        Raises:
            MoehlsError: something is missing, or the RTL does not build.
        """
        self.project = project
        self.layout = layout_of(project)
        self.kernel = kernel or project_kernel(project)
        program = build_frame(
            self.kernel,
            project.path / BUILD,
            max(dram_bytes, self.layout.size),
            waves=waves is not None,
            threads=threads,
            fast=project.plan.cycles > _SHORT_FRAME,
        )
        self.bench = FrameBench(program, self.kernel, dram)
        self.limit = _SLACK * project.plan.cycles + 100_000
        """cycles after which a frame counts as hung"""
        self.registers = {register["name"]: register for register in project.manifest["registers"]}
        if waves is not None:
            self.bench.command("trace", waves.absolute())
        self.load(project)

    def load(self, project: Project) -> None:
        """Weights and program of `project` into the DRAM: its own, or one that was planned for the same shape and fits there."""
        self.project, self.layout = project, layout_of(project)
        for address, chunks in zip(self.layout.weights, weight_stream(project), strict=True):
            self.bench.load(address, chunks)

    def run(self, pixels: IntArray, task: int, trace: bool) -> Simulation:
        """One image; `trace` reads every stage from the machine's memories, where the RTL is generated by moehls.

        Raises:
            CheckFailed: the kernel hangs or breaks the AXI protocol.
        """
        plan = self.project.plan
        stages = self._watch(task) if trace and self.kernel.hooks.memories else {}
        run = self.frame(input_bytes(pixels, plan.input, plan.shape), task)
        results = self.bench.dump(self.layout.output, plan.output_beats * BEAT_BYTES)
        images = {number: Images(self, stage) for stage, numbers in stages.items() for number in numbers}
        values = {
            number: read_place(plan.stages[number].place, images[number], plan.shape) for number in sorted(images)
        }
        return Simulation(
            output_tensors(results, plan.outputs), values, run.cycles, run.steps, (*run.step_beats, run.read_beats)
        )

    def frame(self, data: Bytes, task: int) -> FrameRun:
        """One frame: the input bytes `[input_beats · 16]`; results lie in the DRAM.

        Raises:
            CheckFailed: the kernel hangs or breaks the AXI protocol.
        """
        plan, bench = self.project.plan, self.bench
        bench.load(self.layout.input, data)
        # results that the kernel does not write must not be those of the frame before
        bench.load(self.layout.output, np.full(plan.output_beats * BEAT_BYTES, 0xA5, np.uint8))
        values = {f"weights{port}": address for port, address in enumerate(self.layout.weights)}
        values |= {"input": self.layout.input, "output": self.layout.output, "weight_beats": plan.first_beats}
        values |= {"input_beats": plan.input_beats, "output_beats": plan.output_beats, "task": task}
        for name, value in values.items():
            register = self.registers[name]
            bench.write(register["offset"], value, register["bits"])
        run = bench.start(self.limit)
        if not run.done:
            raise CheckFailed(f"{self._place_of(run)}: the kernel hangs (no end after {run.cycles} cycles)")
        if run.protocol_errors:
            raise CheckFailed(f"{run.protocol_errors} bursts break the AXI protocol")
        return run

    def _place_of(self, run: FrameRun) -> str:
        costs = self.project.plan.costs
        if not run.steps or len(run.steps) > len(costs):
            return "before the first step" if not run.steps else "after the last step"
        return f"step {len(run.steps) - 1} ({costs[len(run.steps) - 1].name}), entered in cycle {run.steps[-1]}"

    def _watch(self, task: int) -> dict[int, list[int]]:
        """Ask for the memories after every step that completes a stage: stages by step."""
        stages: dict[int, list[int]] = {}
        for number, stage in enumerate(self.project.plan.stages):
            if stage.task in (ANY_TASK, task):
                stages.setdefault(stage.step, []).append(number)
        for step, numbers in stages.items():
            memories = {self.project.plan.stages[number].place.memory for number in numbers}
            for memory in sorted(memories | ({"count"} if "queue" in memories else set())):
                self.bench.command("peek", step, memory, peeked(self.bench, step, memory))
        return stages

    def close(self) -> None:
        """End the bench; waves are complete after that."""
        self.bench.close()


def peeked(bench: FrameBench, step: int, memory: str) -> Path:
    """Where the bench writes a memory after a step."""
    return bench.folder / f"{step}.{memory}.bin"


@dataclass(frozen=True)
class Images:
    """The memories after step `step` of the last traced frame."""

    simulator: RtlSimulator
    step: int

    def activation(self, number: int) -> Bytes:
        """Memory M`number`: `[Tt, depth, B·AB/8 + 1]`, operands and, last, the exponent."""
        shape = self.simulator.project.plan.shape
        size = operand_bytes(shape.precision, shape.block)
        return self._words(f"m{number}", shape.token_parallel, shape.activation_depth, size)

    def residual(self) -> Bytes:
        """`[Tt, depth, B·2]`."""
        shape = self.simulator.project.plan.shape
        size = shape.block * shape.precision.residual_bits // 8
        return self._words("residual", shape.token_parallel, shape.residual_depth, size)

    def raw(self) -> Bytes:
        """`[depth, B·accumulator_bits/8]`."""
        shape = self.simulator.project.plan.shape
        words: Bytes = self._words("raw", 1, shape.raw_depth, shape.block * shape.precision.accumulator_bits // 8)[0]
        return words

    def queue(self) -> npt.NDArray[np.uint64]:
        """`[experts, tokens]`: lane (8 bits), group (16), gate (16) from bit 0."""
        shape = self.simulator.project.plan.shape
        words = self._words("queue", 1, shape.max_experts * shape.max_tokens, 5)
        queue: npt.NDArray[np.uint64] = integers(words.reshape(shape.max_experts, -1), 5, signed=False).astype(
            np.uint64
        )
        return queue

    def count(self) -> IntArray:
        """`[experts]`: tokens in each queue."""
        shape = self.simulator.project.plan.shape
        return integers(self._words("count", 1, shape.max_experts, 2).reshape(-1), 2, signed=False)

    def _words(self, memory: str, banks: int, depth: int, size: int) -> Bytes:
        data: Bytes = np.fromfile(peeked(self.simulator.bench, self.step, memory), np.uint8)
        return memory_words(data, banks, depth, size)
