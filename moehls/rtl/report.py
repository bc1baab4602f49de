"""What the generator made of each process: interval, stages, interlocks, longest path; as JSON and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from moehls.rtl.delay import MARGIN
from moehls.rtl.elaborate import Elaborator, Unit
from moehls.rtl.emit import ProcessEmitter
from moehls.rtl.timing import Timing


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

    def table(self) -> str:
        """A row a process."""
        rows = [("process", "interval", "stages", "interlocks", "path ns", "clock")]
        budget = MARGIN * self.period
        for p in self.processes:
            interval = "/".join(str(loop.reached) for loop in p.loops) or "-"
            verdict = "ok" if p.longest_path <= budget else "slow: " + ", ".join(what for what, _ in p.slow_paths)
            rows.append((p.name, interval, str(p.stages), str(len(p.interlocks)), f"{p.longest_path:.2f}", verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]) for row in rows)


def process_report(unit: Unit, budget: float) -> ProcessReport:
    """The report of a scheduled process."""
    p, s = unit.process, unit.schedule
    assert p is not None and s is not None and unit.flow is not None
    name = ProcessEmitter(p, s, unit.flow).signal
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


def design_report(top: str, period: float, files: tuple[str, ...], units: Elaborator) -> RtlReport:
    """The report of all processes, in the order of the call graph."""
    return RtlReport(
        top,
        period,
        files,
        tuple(process_report(u, MARGIN * period) for u in units.units.values() if u.schedule is not None),
    )
