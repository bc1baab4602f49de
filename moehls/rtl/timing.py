"""Every kind of path of a process by the delay model, the control of its pipeline included.

In go a scheduled process and its flow control; out come `Path`s, a worst one for every end. What holds a token reaches, through
the OR of the stages behind it, the enables of the front, the pointers of the FIFOs it reads, the next step and the registers
that the token writes; all of them are counted with their loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moehls.rtl.delay import BRANCH, COMPARE, LOGIC_LOADS, LUT, MEMORY_PIN, REGISTER, STREAM_FLAG, copied, driven, gate
from moehls.rtl.flow_control import Conflict, FlowControl
from moehls.rtl.graph import Node
from moehls.rtl.ir import Access, Process
from moehls.rtl.schedule import NEXT, Schedule, Vertex, bases

ARROW = " → "
Namer = Callable[[Node, int], str]
"""the name of a value in a stage, as the SystemVerilog has it"""


@dataclass(frozen=True)
class Path:
    """A path between registers: the signals on it from its beginning to its end, and its delay in ns."""

    signals: tuple[str, ...]
    ns: float

    @property
    def text(self) -> str:
        return ARROW.join(self.signals)

    def then(self, signal: str, ns: float) -> Path:
        """The path prolonged."""
        return Path((*self.signals, signal), self.ns + ns)


class Timing:
    """The paths of one process."""

    def __init__(self, process: Process, schedule: Schedule, flow: FlowControl, name: Namer) -> None:
        self.p, self.s, self.flow, self.name = process, schedule, flow, name
        self.nodes = {n.id: n for n in process.graph.nodes if n.id in schedule.time}

    def paths(self) -> list[Path]:
        """The worst path to every kind of end, longest first."""
        found = [*self._data(), *self._control()]
        return sorted(found, key=lambda path: (-path.ns, path.signals))

    # data
    def _data(self) -> list[Path]:
        """To pipeline registers, registers and ports: one for every value that nothing of its stage uses, and every port."""
        feeds = {a for a in self.s.source.values() if isinstance(a, int)}
        ends = [v for v in self.s.time if v != NEXT and (isinstance(v, str) or (v not in feeds and self.nodes[v].args))]
        return [self._trace(v, self.s.time[v]) for v in ends]

    def _trace(self, end: Vertex, ns: float) -> Path:
        signals: list[str] = []
        v: Vertex | None = end
        stage = self._stage(end)
        while v is not None:
            node = self.nodes.get(v) if isinstance(v, int) else None
            if node is None:
                signals.append(str(v).partition(":")[2].partition(":")[0] if v != NEXT else "step_0")
            elif node.op not in ("concat", "slice", "sext", "const"):
                signals.append(self._name(node, stage))
            if node is not None and (node.op == "reg" or self._stage(v) < stage):
                break
            v = self.s.source.get(v)
        return Path(tuple(reversed(signals)), ns)

    def _name(self, node: Node, stage: int) -> str:
        """A register may be read later than where its value is first wanted."""
        return self.name(node, max(stage, self.s.stage.get(node.id, 0)))

    def _stage(self, v: Vertex) -> int:
        return self.s.stage[v] if isinstance(v, int) else self.s.events[v]

    def _at(self, node: Node, stage: int) -> Path:
        """A value where it stands in a stage."""
        worst = Path((), REGISTER)
        for b in bases(node):
            own = b.op != "input" and self.s.stage[b.id] == stage
            if own and b.args:
                path = self._trace(b.id, self.s.time[b.id] + driven(self.s.loads.get(b.id, 1)))
            elif own and b.op == "read":
                path = Path((self._name(b, stage),), self.s.time[b.id])
            else:
                path = Path((self._name(b, stage),), REGISTER + copied(self.s.loads.get(b.id, 1)))
            worst = max(worst, path, key=lambda x: x.ns)
        return worst

    # control
    def _control(self) -> list[Path]:
        holds = self._holds()
        found: list[Path] = []
        stalls: dict[int, Path] = {}
        terms: list[Path] = []
        for stage in range(self.flow.front, -1, -1):
            terms += holds.get(stage, [])
            if terms:
                stalls[stage] = max(terms, key=lambda x: x.ns).then(f"stall_{stage}", gate(len(terms)))
                found += self._held(stage, stalls[stage])
        return found + self._writes(stalls)

    def _holds(self) -> dict[int, list[Path]]:
        """What may hold a token, by stage."""
        holds: dict[int, list[Path]] = {}
        for a in self.p.accesses:
            if a.kind in ("sread", "swrite", "call"):
                stage = self.flow.checks[a.port] if a.kind == "swrite" else self.s.port[a.port]
                holds.setdefault(stage, []).append(self._asked(a, stage))
        for (step, older), gap in self.flow.gaps.items():
            path = Path((f"step_{gap}",), REGISTER + copied(16)).then(
                f"wait of step {step} for {older}", gate(6 * gap) + LUT
            )
            holds.setdefault(0, []).append(path)
        for conflict in self.flow.conflicts:
            holds.setdefault(conflict.stage, []).extend([self._compared(conflict)] * conflict.gap)
        return holds

    def _asked(self, a: Access, stage: int) -> Path:
        port = self.p_name(a.port)
        flag = Path((f"{port}_{'ready' if a.kind == 'swrite' else 'valid'}",), STREAM_FLAG)
        return max(self._at(a.predicate, stage), flag, key=lambda x: x.ns).then(f"{port}_wanted", LUT)

    def p_name(self, port: str) -> str:
        return port.removeprefix("call.@").partition("ILi")[0]

    def _compared(self, conflict: Conflict) -> Path:
        read, write = conflict.read, conflict.write
        assert read.address is not None and write.address is not None
        ends = [self._at(read.address, conflict.stage), self._at(write.address, conflict.stage + 1)]
        worst = max(ends, key=lambda x: x.ns)
        return worst.then(f"{read.port} after {write.port}", COMPARE + LUT)

    def _held(self, stage: int, stall: Path) -> list[Path]:
        """What a stall reaches: the enables of its stage, the FIFOs read there, the next step."""
        found = []
        bits = sum(self.nodes[v].width for v, last in self.s.last_use.items() if self._travels(v, stage, last))
        if stage and bits:
            spread = driven(bits) + copied(-(-bits // LOGIC_LOADS))
            found.append(stall.then(f"stage {stage}, {bits} enables", spread))
        for a in self.p.accesses:
            if a.kind == "sread" and self.s.port[a.port] == stage:
                found.append(stall.then(f"{a.port}_ready", 2 * LUT))
            if a.kind == "mread" and self.s.port[a.port] + 1 == stage:
                found.append(stall.then(f"{a.port} enable", LUT + MEMORY_PIN))
        if stage in (0, *self.s.branch):
            found.append(stall.then("step_0", BRANCH))
        return found

    def _travels(self, v: int, stage: int, last: int) -> bool:
        node = self.nodes.get(v)
        return node is not None and node.op not in ("const", "input") and self.s.stage[v] < stage <= last

    def _writes(self, stalls: dict[int, Path]) -> list[Path]:
        """Enables of registers: one LUT joins the stall, the token's step and the register's own condition."""
        found = []
        for w in self.p.writes:
            stage = self.s.write[w.register, w.step]
            bits = self.p.registers[w.register]
            if stage in stalls:
                written = sum(self.s.write[x.register, x.step] == stage for x in self.p.writes)
                enable = LUT + driven(written) + driven(bits)
                found.append(stalls[stage].then(f"{w.register}, {bits} enables", enable))
        return found
