"""Fault injection: breaks in a kernel's RTL, and whether verification sees them.

In go a project and a number; out comes for every break whether a check went red. All breaks of a campaign are built into
one simulator: a broken expression stands beside the good one, and the bench's input `fault` chooses. A break is an
operator, a constant, a width, an index or a condition of one line of the generated processes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moehls import reference
from moehls.errors import CheckFailed, MoehlsError
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntArray
from moehls.project import Project
from moehls.simulate.rtl import BUILD, RtlSimulator, dram_of, project_kernel
from moehls.simulate.simulator import Simulation
from moehls.simulate.verify import compare

KINDS = ("operator", "constant", "width", "index", "condition")
_SELECT = "frame.fault"
_LIBRARY = ("burst_read", "burst_write", "control", "fifo", "memory")
_HANG = 3
"""a frame that takes so many times the good one's cycles hangs"""

_ASSIGN = re.compile(r"^    assign (\w+) = (.+);$")
_GUARD = re.compile(r"^(    (?:    )?if )\((.+)\)( \w+ <= .+;)$")
_DECLARED = re.compile(r"^    (?:(?:output|input)\s+)?(?:wire|logic) (?:\[(\d+):0\] )?(\w+)[;,]?$")
_CONSTANT = re.compile(r"\b(\d+)'h([0-9a-f]+)\b")
_SLICE = re.compile(r"(\w+)\[(\d+):(\d+)\]")
_OPERATORS = {" + ": " - ", " - ": " + ", " & ": " | ", " | ": " & ", " < ": " >= ", " == ": " != ", " ^ ": " & ",
              " * ": " + ", " << ": " >> ", " >> ": " << ", " >>> ": " << "}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One break: line `line` (from 0) of `file`, whose expression becomes `broken`."""

    file: str
    line: int
    kind: str
    good: str
    broken: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line + 1} ({self.kind}): {self.good} → {self.broken}"


@dataclass(frozen=True)
class Verdict:
    """What a break does: `seen` names the check that went red; `effect` whether anything at all changed."""

    fault: Fault
    seen: str | None
    effect: bool


@dataclass(frozen=True)
class Frame:
    """A frame of the campaign and what the reference says."""

    pixels: IntArray
    execution: reference.Execution
    task: int


def frames_of(project: Project, images: Sequence[tuple[object, int]]) -> list[Frame]:
    """Frames from (image, task)."""
    found = []
    for image, task in images:
        execution = reference.run(project.integer, image, task)  # type: ignore[arg-type]
        found.append(Frame(quantise_image(project.integer, image), execution, task))  # type: ignore[arg-type]
    return found


def sites(path: Path) -> Iterator[Fault]:
    """Every break of a file."""
    for number, line in enumerate(path.read_text().splitlines()):
        if found := _ASSIGN.match(line):
            for kind, broken in _breaks(found[2]):
                yield Fault(path.name, number, kind, found[2], broken)
        elif found := _GUARD.match(line):
            yield Fault(path.name, number, "condition", found[2], f"~({found[2]})")


def _breaks(text: str) -> Iterator[tuple[str, str]]:
    for operator, other in _OPERATORS.items():
        if text.count(operator) == 1:
            yield "operator", text.replace(operator, other)
    if found := re.fullmatch(r"(\S+) \? (\S+) : (\S+)", text):
        yield "condition", f"{found[1]} ? {found[3]} : {found[2]}"
    for found in list(_CONSTANT.finditer(text))[:1]:
        value, bits = int(found[2], 16), int(found[1])
        yield "constant", text[: found.start()] + f"{bits}'h{value ^ (1 << (bits // 2)):x}" + text[found.end() :]
    for found in list(_SLICE.finditer(text))[:1]:
        if int(found[3]) > 0:
            shifted = f"{found[1]}[{int(found[2]) - 1}:{int(found[3]) - 1}]"
            yield "index", text[: found.start()] + shifted + text[found.end() :]
    yield "width", f"cut({text})"


def choose(paths: Sequence[Path], number: int, seed: int) -> list[Fault]:
    """`number` breaks, as evenly as can be over the kinds, one a line."""
    generator = random.Random(seed)
    by_kind: dict[str, list[Fault]] = {kind: [] for kind in KINDS}
    for path in paths:
        if path.stem not in _LIBRARY:
            for fault in sites(path):
                by_kind[fault.kind].append(fault)
    for faults in by_kind.values():
        generator.shuffle(faults)
    chosen: list[Fault] = []
    taken: set[tuple[str, int]] = set()
    while len(chosen) < number and any(by_kind.values()):
        for faults in by_kind.values():
            while faults and (faults[-1].file, faults[-1].line) in taken:
                faults.pop()
            if faults and len(chosen) < number:
                chosen.append(faults.pop())
                taken.add((chosen[-1].file, chosen[-1].line))
    return chosen


def instrument(paths: Sequence[Path], faults: Sequence[Fault], folder: Path) -> tuple[Path, ...]:
    """The files with fault n built in where `frame.fault` is n + 1, written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, list[tuple[int, Fault]]] = {}
    for n, fault in enumerate(faults):
        by_file.setdefault(fault.file, []).append((n + 1, fault))
    written = []
    for path in paths:
        lines = path.read_text().splitlines()
        widths = {m[2]: int(m[1] or 0) + 1 for line in lines if (m := _DECLARED.match(line))}
        for number, fault in by_file.get(path.name, []):
            lines[fault.line] = _instrumented(lines[fault.line], number, fault, widths)
        target = folder / path.name
        target.write_text("\n".join(lines) + "\n")
        written.append(target)
    return tuple(written)


def _instrumented(line: str, number: int, fault: Fault, widths: dict[str, int]) -> str:
    active = f"({_SELECT} == 16'd{number})"
    if guard := _GUARD.match(line):
        return f"{guard[1]}(({guard[2]}) ^ {active}){guard[3]}"
    name = line.split()[1]
    width = widths[name]
    broken = fault.broken
    if fault.kind == "width":  # the top bit is lost
        broken = f"{fault.good}"
    signal = f"wire [{width - 1}:0]"
    kept = f"{{1'b0, {name}_bad[{width - 2}:0]}}" if width > 1 else "1'b0"
    chosen = kept if fault.kind == "width" else f"{name}_bad"
    return (
        f"    {signal} {name}_good = {fault.good}; {signal} {name}_bad = {broken};"
        f" assign {name} = {active} ? {chosen} : {name}_good;"
    )


class Campaign:
    """A simulator with faults built in."""

    def __init__(self, project: Project, faults: Sequence[Fault], frames: Sequence[Frame]) -> None:
        """Build, and run every frame once without a fault.

        Raises:
            MoehlsError: a frame is wrong without any fault.
        """
        self.project, self.faults, self.frames = project, list(faults), list(frames)
        kernel = project_kernel(project)
        sources = instrument(kernel.sources, self.faults, project.path / BUILD / "faults")
        self.simulator = RtlSimulator(project, dram_of(project), kernel=replace(kernel, sources=sources))
        self.good: list[Simulation] = []
        for frame in self.frames:
            found = self._run(frame)
            difference = compare(project.integer, project.program, frame.execution, found, 0, frame.task)
            if difference is not None:
                raise MoehlsError(f"the RTL is wrong without a fault: {difference}")
            self.good.append(found)
        self.simulator.limit = _HANG * max(found.cycles or 0 for found in self.good)

    def verdict(self, number: int, usual: int) -> tuple[Verdict, bool]:
        """Run the frames with fault `number` until a check goes red.

        Returns:
            The verdict, and whether one of the first `usual` frames showed the fault.
        """
        self._select(number + 1)
        effect, seen, frames = False, None, 0
        try:
            for frame, good in zip(self.frames, self.good, strict=True):
                seen = self._check(frame)
                frames += 1
                if seen is not None:
                    break
                effect = effect or self.last.steps != good.steps
        finally:
            self._select(0)
            self.simulator.bench.command("reset")
        return Verdict(self.faults[number], seen, effect or seen is not None), seen is not None and frames <= usual

    def _check(self, frame: Frame) -> str | None:
        try:
            self.last = self._run(frame)
        except CheckFailed as failure:
            return str(failure)
        except IndexError:
            return "a queue holds tokens that there are not"
        difference = compare(self.project.integer, self.project.program, frame.execution, self.last, 0, frame.task)
        return None if difference is None else str(difference)

    def _run(self, frame: Frame) -> Simulation:
        return self.simulator.run(frame.pixels, frame.task, trace=True)

    def _select(self, number: int) -> None:
        self.simulator.bench.command("dram", "fault", number)

    def close(self) -> None:
        """End the simulator."""
        self.simulator.close()
