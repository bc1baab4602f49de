"""Fault injection: breaks in a kernel's RTL, and whether verification sees them.

In go a project and a number; out comes for every break whether a check went red. All breaks of a campaign are built into
one simulator: a broken expression stands beside the good one, and the bench's input `fault` chooses. A break is an
operator, a constant, a width, an index or a condition of one line of the generated processes.
"""

from __future__ import annotations

import os
import queue
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.project import Project
from moehls.simulate.faults import KINDS, Check, Checked, Fault
from moehls.simulate.rtl import BUILD, RtlSimulator, dram_of, project_kernel

_SELECT = "frame.fault"
_LIBRARY = ("burst_read", "burst_write", "control", "dsp_slice", "fifo", "memory")
_COUNTERS = (16, 32)
"""widths of the C++'s counters and addresses, whatever a model needs of them"""
_HANG = 3
"""a frame that takes so many times the good one's cycles hangs"""

_ASSIGN = re.compile(r"^    assign (\w+) = (.+);$")
_GUARD = re.compile(r"^(    (?:    )?if )\((.+)\)( \w+ <= .+;)$")
_DECLARED = re.compile(r"^    (?:\(\*.*\*\) )?(?:(?:output|input)\s+)?(?:wire|logic) (?:\[(\d+):0\] )?(\w+)[;,]?$")
_CONSTANT = re.compile(r"\b(\d+)'h([0-9a-f]+)\b")
_SLICE = re.compile(r"(\w+)\[(\d+):(\d+)\]")
_OPERATORS = {" + ": " - ", " - ": " + ", " & ": " | ", " | ": " & ", " < ": " >= ", " == ": " != ", " ^ ": " & ",
              " * ": " + ", " << ": " >> ", " >> ": " << ", " >>> ": " << "}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a break does: `seen` says what a check found first, `check` which one did."""

    fault: Fault
    seen: str | None
    check: int | None


def sites(path: Path) -> Iterator[Fault]:
    """Every break of a file."""
    for number, line in enumerate(path.read_text().splitlines()):
        if found := _ASSIGN.match(line):
            for kind, broken in _breaks(found[2]):
                yield Fault(path.name, number, kind, found[2], broken, found[1])
        elif found := _GUARD.match(line):
            yield Fault(path.name, number, "condition", found[2], f"~({found[2]})", found[3].split()[0])


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
    chosen = _kept(name, width) if fault.kind == "width" else f"{name}_bad"
    return (
        f"    {signal} {name}_good = {fault.good}; {signal} {name}_bad = {broken};"
        f" assign {name} = {active} ? {chosen} : {name}_good;"
    )


def _kept(name: str, width: int) -> str:
    """What a width break leaves of the value: all but the top bit, of counters and addresses the lower half."""
    kept = width // 2 if width in _COUNTERS else width - 1
    return f"{{{width - kept}'d0, {name}_bad[{kept - 1}:0]}}" if kept else "1'b0"


def broken_text(path: Path, fault: Fault) -> str:
    """The text of the file with the break alone."""
    lines = path.read_text().splitlines()
    if guard := _GUARD.match(lines[fault.line]):
        lines[fault.line] = f"{guard[1]}({fault.broken}){guard[3]}"
    else:
        widths = {m[2]: int(m[1] or 0) + 1 for line in lines if (m := _DECLARED.match(line))}
        chosen = _instrumented(lines[fault.line], 0, fault, widths).rpartition(" ? ")
        lines[fault.line] = chosen[0].replace(f"({_SELECT} == 16'd0)", "1'b1") + chosen[1] + chosen[2]
    return "\n".join([*lines, ""])


class Campaign:
    """A simulator with faults built in."""

    def __init__(self, project: Project, faults: Sequence[Fault], checks: Sequence[Check], dram_bytes: int) -> None:
        """Build, and run every check once without a fault. The checks need a DRAM of `dram_bytes`.

        Raises:
            MoehlsError: a check is red without any fault.
        """
        self.faults, self.checks = list(faults), list(checks)
        kernel = project_kernel(project)
        sources = instrument(kernel.sources, self.faults, project.path / BUILD / "faults")
        self._made = (project, replace(kernel, sources=sources), dram_bytes)
        simulator = self._simulator()
        self.good: list[Checked] = []
        for check in self.checks:
            found = check.rtl(simulator)
            if found.difference is not None:
                simulator.close()
                raise MoehlsError(f"the RTL is wrong without a fault: {found.difference}")
            self.good.append(found)
        simulator.close()

    def verdicts(self, workers: int = 0) -> list[Verdict]:
        """Run every fault, and none (a fault's number that no expression knows), in `workers` simulators at a time.

        Raises:
            MoehlsError: the RTL without a fault is not as it was at first.
        """
        numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(self.faults)):
            numbers.put(number)
        found: dict[int, Verdict] = {}

        def work() -> None:
            simulator = self._simulator()
            try:
                while True:
                    try:
                        number = numbers.get_nowait()
                    except queue.Empty:
                        break
                    found[number] = Verdict(self.faults[number], *self._run(simulator, number + 1))
                if self._run(simulator, len(self.faults) + 1) != (None, None):
                    raise MoehlsError("the RTL without a fault is not as it was at first")
            finally:
                simulator.close()

        count = workers or os.cpu_count() or 1
        with ThreadPoolExecutor(count) as pool:
            for done in [pool.submit(work) for _ in range(count)]:
                done.result()
        return [found[number] for number in range(len(self.faults))]

    def _run(self, simulator: RtlSimulator, fault: int) -> tuple[str | None, int | None]:
        """Run the checks with a fault until one goes red or takes other cycles: what it said, and which one it was."""
        simulator.bench.command("dram", "fault", fault)
        try:
            for n, (check, good) in enumerate(zip(self.checks, self.good, strict=True)):
                simulator.limit = _HANG * good.cycles
                try:
                    found = check.rtl(simulator)
                except IndexError:
                    found = Checked("a queue holds tokens that there are not", 0, ())
                if found.difference is not None:
                    return found.difference, n
                if found != good:
                    return f"steps take other cycles: {found.cycles} in place of {good.cycles}", n
        finally:
            simulator.bench.command("dram", "fault", 0)
            simulator.bench.command("reset")
        return None, None

    def _simulator(self) -> RtlSimulator:
        project, kernel, dram_bytes = self._made
        return RtlSimulator(project, dram_of(project), kernel=kernel, dram_bytes=dram_bytes)
