"""Where the tokens of a scheduled pipeline wait, so that no path crosses more than one stage.

In go a process and its stages, out comes `FlowControl`. Tokens wait in the *front*, the stages up to the last one where
something can hold a token; behind it the pipeline runs free, without enables. A held token holds all behind it and nothing
before it, bubbles included, so the distance between two tokens never shrinks. Hence
- a register that an older token has still to write is waited for in stage 0, by the distance to that token;
- a word of memory that an older token has still to write is waited for where the address is known;
- room in a written stream is waited for where it is known that the step writes; what is under way to the port by then fits the
  FIFO's *slack* (its places beyond the level at which it says that it is full).
"""

from __future__ import annotations

from dataclasses import dataclass

from moehls.rtl.delay import COMPARE, LUT, MEMORY_PIN, driven
from moehls.rtl.graph import Node
from moehls.rtl.ir import Access, Process
from moehls.rtl.schedule import Schedule, bases


@dataclass(frozen=True)
class Conflict:
    """A read of a memory waits in `stage` while `write` is at most `gap` stages ahead of it."""

    read: Access
    write: Access
    stage: int
    gap: int


@dataclass(frozen=True)
class FlowControl:
    """What holds a token, and where.

    Attributes:
        front: the last stage in which a token may have to wait.
        end: the stage from which on it is known, a cycle ahead, that the process is done.
        checks: written stream -> the stage in which a token waits for room.
        gaps: (step, older step) -> stages the older one must be ahead by when the step leaves stage 0.
        conflicts: reads of memories that writes are under way to.
    """

    front: int
    end: int
    checks: dict[str, int]
    gaps: dict[tuple[int, int], int]
    conflicts: tuple[Conflict, ...]

    def slack(self, schedule: Schedule, port: str) -> int:
        """Tokens that may be under way to a written stream when it is full."""
        return schedule.port[port] - self.checks[port]


def flow_control(process: Process, schedule: Schedule) -> FlowControl:
    """Where the tokens of a process wait."""
    checks: dict[str, int] = {}
    for a in process.accesses:
        if a.kind == "swrite":
            decided = min(_decided(process, schedule, a.predicate), schedule.port[a.port])
            checks[a.port] = max(checks.get(a.port, 0), decided)
    conflicts = tuple(_conflicts(process, schedule))
    waits = [schedule.port[a.port] for a in process.accesses if a.kind in ("sread", "call")]
    front = max([0, *waits, *checks.values(), *(c.stage for c in conflicts)])
    ends = [p for step in process.steps for p, target in step.successors if target < 0]
    end = max([front, schedule.stages - 2, *(known(schedule, p) for p in ends)])
    return FlowControl(front, end, checks, _gaps(process, schedule), conflicts)


def known(schedule: Schedule, node: Node) -> int:
    """The first stage that has a value."""
    return max((schedule.stage[b.id] for b in bases(node) if b.op != "input"), default=0)


def _decided(process: Process, schedule: Schedule, node: Node, more: float = 0.0) -> int:
    """The first stage in which a value is there early enough to hold a token there, behind logic of `more` ns."""
    stage = known(schedule, node)
    held = [w for w in process.writes if schedule.write[w.register, w.step] <= stage]
    enables = driven(len(held)) + driven(max((process.registers[w.register] for w in held), default=1))
    latest = schedule.budget - (4 * LUT + max(enables, MEMORY_PIN)) - more
    late = (
        b.op not in ("reg", "input")
        and schedule.stage[b.id] == stage
        and schedule.time[b.id] + driven(schedule.loads.get(b.id, 1)) > latest
        for b in bases(node)
    )
    return stage + any(late)


def _gaps(process: Process, schedule: Schedule) -> dict[tuple[int, int], int]:
    """Distances at which registers are written before they are read, or written again."""
    gaps: dict[tuple[int, int], int] = {}
    for w in process.writes:
        last = schedule.write[w.register, w.step]
        for step in process.steps:
            if w.register in schedule.reads[step.index]:
                first = schedule.read[w.register]
            elif (w.register, step.index) in schedule.write:
                first = schedule.write[w.register, step.index]
            else:
                continue
            if last > first:
                gaps[step.index, w.step] = max(last - first, gaps.get((step.index, w.step), 0))
    return gaps


def _conflicts(process: Process, schedule: Schedule) -> list[Conflict]:
    found = []
    for read in process.accesses:
        if read.kind != "mread":
            continue
        assert read.address is not None
        port = read.port.removesuffix("read") + "write"
        stage = schedule.port[read.port]
        gap = schedule.port.get(port, stage) - stage
        for write in process.accesses:
            if write.port != port or gap < 1:
                continue
            assert write.address is not None
            # as early as both addresses and conditions are as well known as where the read is
            first = max(
                _decided(process, schedule, read.address, COMPARE + LUT), _decided(process, schedule, read.predicate)
            )
            for n in (write.address, write.predicate):
                if known(schedule, n) <= stage + gap:
                    first = max(first, min(known(schedule, n), stage + 1) - 1)
            found.append(Conflict(read, write, min(first, stage), gap))
    return found
