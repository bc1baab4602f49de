"""What the generator made of each process: interval, stages, interlocks, longest path; as JSON and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from moehls.rtl.delay import MARGIN
from moehls.rtl.elaborate import Elaborator, Unit
from moehls.rtl.expressions import Expressions
from moehls.rtl.library_timing import library_paths
from moehls.rtl.timing import ARROW, Timing


@dataclass(frozen=True)
class LoopReport:
    """An innermost loop: interval asked and reached, in cycles."""

    place: str
    asked: int
    reached: int


@dataclass(frozen=True)
class ProcessReport:
    """A process or program.

    Attributes:
        stages: of its pipeline.
        front: stages in which a token may wait; behind them the pipeline runs free.
        interlocks: registers and memories a step may have to wait for.
        longest_path: in ns, by the delay model.
        path: the signals on it.
        slow_paths: the paths longer than the clock allows: signals and ns.
    """

    name: str
    stages: int
    front: int
    loops: tuple[LoopReport, ...]
    interlocks: tuple[str, ...]
    longest_path: float
    path: str
    slow_paths: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class RtlReport:
    """The report of a design: `top` module, `files` written, `period` of the clock in ns."""

    top: str
    period: float
    files: tuple[str, ...]
    processes: tuple[ProcessReport, ...]
    library: tuple[tuple[str, float], ...] = ()
    """the worst path of each hand-written module and of regions: signals and ns"""

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def missed(self) -> list[str]:
        """A line for each loop that misses its interval."""
        return [
            f"{p.name} ({loop.place}): interval {loop.reached} instead of {loop.asked}"
            for p in self.processes
            for loop in p.loops
            if loop.reached > loop.asked
        ]

    @property
    def budget(self) -> float:
        """What a path may take, in ns."""
        return round(MARGIN * self.period, 3)

    def slow(self) -> list[str]:
        """A line for each path that is longer than the clock allows, by name."""
        found = [(f"{p.name}: {path}", ns) for p in self.processes for path, ns in p.slow_paths]
        found += [(path, ns) for path, ns in self.library if ns > self.budget]
        return [f"{ns:.2f} ns of {self.budget:.2f}: {path}" for path, ns in sorted(found, key=lambda x: (-x[1], x[0]))]

    def table(self) -> str:
        """A row a process and module of the library, then what is too long."""
        rows = [("process", "interval", "stages", "front", "interlocks", "ns", "longest path")]
        for p in self.processes:
            interval = "/".join(str(loop.reached) for loop in p.loops) or "-"
            numbers = (str(p.stages), str(p.front), str(len(p.interlocks)), f"{p.longest_path:.2f}")
            rows.append((p.name, interval, *numbers, p.path))
        for path, ns in self.library:
            module, _, signals = path.partition(ARROW)
            rows.append((module, "", "", "", "", f"{ns:.2f}", signals))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[6]]) for row in rows]
        slow = self.slow()
        lines.append(f"longer than {self.budget:.2f} ns ({1000 / self.period:.0f} MHz): {len(slow) or 'none'}")
        return "\n".join([*lines, *slow])


def read_report(path: Path) -> RtlReport:
    """The report that `generate` wrote."""
    data = json.loads(path.read_text())
    processes = []
    for p in data["processes"]:
        loops = tuple(LoopReport(**loop) for loop in p["loops"])
        lists = {"interlocks": tuple(p["interlocks"]), "slow_paths": tuple((what, ns) for what, ns in p["slow_paths"])}
        processes.append(ProcessReport(**(p | lists | {"loops": loops})))
    library = tuple((what, ns) for what, ns in data["library"])
    return RtlReport(data["top"], data["period"], tuple(data["files"]), tuple(processes), library)


def process_report(unit: Unit, budget: float) -> ProcessReport:
    """The report of a scheduled process."""
    p, s = unit.process, unit.schedule
    assert p is not None and s is not None and unit.flow is not None
    name = Expressions(p, s, unit.flow).signal
    paths = Timing(p, s, unit.flow, name).paths()
    loops = tuple(LoopReport(step.place, 1, s.interval(p, step.index)) for step in p.steps if step.loop)
    late = {register for (register, _), stage in s.write.items() if stage > s.read[register]}
    ports = {a.port for a in p.accesses}
    both = {
        port.rsplit(".", 1)[0]
        for port in ports
        if port.endswith(".read") and s.port.get(port.removesuffix("read") + "write", -1) > s.port[port]
    }
    return ProcessReport(
        unit.name, s.stages, unit.flow.front + 1, loops, (*sorted(late), *sorted(both)), round(paths[0].ns, 2), paths[0].text,
        tuple((path.text, round(path.ns, 2)) for path in paths if path.ns > budget),
    )  # fmt: skip


def design_report(top: str, period: float, files: tuple[str, ...], units: Elaborator, control_words: int) -> RtlReport:
    """The report of all processes, in the order of the call graph; `control_words` as `library_paths` wants them."""
    return RtlReport(
        top,
        period,
        files,
        tuple(process_report(u, MARGIN * period) for u in units.units.values() if u.schedule is not None),
        tuple((path.text, round(path.ns, 2)) for path in library_paths(units, control_words)),
    )
