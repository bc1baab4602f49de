"""Stages: every operation, register and port of a process gets one fixed stage of its pipeline.

One longest-path pass over the graph of all steps together. A recurrence of an innermost loop (a register whose next value
depends on itself) is a strongly connected component and lies in one stage, so that a step can start each cycle; one that
holds a memory's latency cannot, and is left to the interlock, which costs interval.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from moehls.errors import MoehlsError
from moehls.rtl import delay as model
from moehls.rtl.cascade import lag
from moehls.rtl.components import components
from moehls.rtl.delay import HOLD, LUT, MARGIN, REGISTER, delay, read_latency, result_latency
from moehls.rtl.fanout import loads
from moehls.rtl.graph import Node
from moehls.rtl.ir import Access, Process, RegisterWrite, refuse

Vertex = int | str
"""a node's id, "port:<name>" or "next step\""""
NEXT = "next step"
_WIRING = ("concat", "slice", "sext")


@dataclass
class Schedule:
    """Stages of a process.

    `stage` by node id; `port` by port name; `read` and `write` of registers (write by (register, step)); `branch` by step: where
    the next step is known. `time` is when a node or port of a stage is ready, in ns, `source` what it waits for last.
    """

    stage: dict[int, int] = field(default_factory=dict)
    port: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    write: dict[tuple[str, int], int] = field(default_factory=dict)
    branch: list[int] = field(default_factory=list)
    stay: list[int] = field(default_factory=list)
    """by step: where it is known whether the step follows itself"""
    stages: int = 0
    budget: float = 0.0
    events: dict[str, int] = field(default_factory=dict)
    """stages of ports ("port:…"), writes of registers ("write:…"), and where the next step is chosen ("next:…", "stay:…")"""
    time: dict[Vertex, float] = field(default_factory=dict)
    source: dict[Vertex, Vertex] = field(default_factory=dict)
    loads: dict[int, int] = field(default_factory=dict)
    """by node id: inputs that its most loaded bit drives"""
    reads: list[set[str]] = field(default_factory=list)
    """registers each step reads"""
    last_use: dict[int, int] = field(default_factory=dict)
    """of nodes that need pipeline registers or not: the last stage that uses them"""

    def interval(self, process: Process, step: int) -> int:
        """Cycles between two starts of a loop's step, without memory conflicts."""
        own = [
            self.write[w.register, step] - self.read[w.register] + 1
            for w in process.writes
            if w.step == step and w.register in self.reads[step]
        ]
        return max([self.stay[step] + 1, *own])


@dataclass(frozen=True)
class _Edge:
    to: Vertex
    latency: int
    recurrence: bool
    cost: float = 0.0
    """ns, besides the delay of `to`"""


class _Scheduler:
    def __init__(self, process: Process, period: float, shared: Mapping[tuple[str, str], int]) -> None:
        self.p, self.budget, self.shared = process, MARGIN * period, shared
        self.nodes = {n.id: n for n in live_nodes(process)}
        self.edges: dict[Vertex, list[_Edge]] = defaultdict(list)
        self.stage: dict[Vertex, int] = {}
        self.time: dict[Vertex, float] = {}
        self.steady: set[int] = set()
        """loops that decide in stage 0 whether they go on"""
        self.result = Schedule(budget=self.budget, loads=loads(process, self.nodes.values()))

    # the graph
    def connect(self) -> None:
        for node in self.nodes.values():
            for k, a in enumerate(node.args):
                self.edge(a.id, node.id, self._latency(a) + lag(node, k))
        reads = {str(n.aux): n.id for n in self.nodes.values() if n.op == "read"}
        for access in self.p.accesses:
            port = f"port:{access.port}"
            decides, pins = self._port_costs(access)
            self.edge(access.predicate.id, port, self._latency(access.predicate), cost=decides)
            for n in (access.address, access.data, *access.arguments):
                if n is not None:
                    self.edge(n.id, port, self._latency(n), cost=pins)
            if access.port in reads:
                memory = self.p.memories.get(access.port.split(".")[0]) if access.kind == "mread" else None
                self.edge(port, reads[access.port], read_latency(memory) if memory else 0)
        for w in self.p.writes:
            self.edge(w.value.id, _write(w), self._latency(w.value))
            enables = LUT + model.driven(w.value.width)
            self.edge(w.predicate.id, _write(w), cost=0.0 if w.predicate.op == "const" else enables)
        for step in self.p.steps:
            for condition, target in step.successors:
                self.edge(condition.id, f"next:{step.index}", cost=model.BRANCH)
                if target == step.index:
                    self.edge(condition.id, f"stay:{step.index}", cost=model.BRANCH)
        self._order_ports()
        self._recurrences()

    def _latency(self, node: Node) -> int:
        if node.op != "mul":
            return 0
        g = self.p.graph
        factors = [min(g.signed_bits(a), g.unsigned_bits(a) + 1) for a in node.args]
        return result_latency(node, (factors[0], factors[1]))

    def _port_costs(self, access: Access) -> tuple[float, float]:
        """From the condition of an access to what it decides, from its address or data to the pins."""
        if access.kind in ("mread", "mwrite"):
            memory = self.p.memories[access.port.split(".")[0]]
            way = "read" if access.kind == "mread" else "write"
            pins = model.MEMORY_PIN + model.gate(2 * self.shared.get((memory.name, way), 0))
            both = access.kind == "mread" and any(a.port == access.port[:-4] + "write" for a in self.p.accesses)
            return (max(LUT + pins, HOLD), max(pins, model.COMPARE + LUT + HOLD)) if both else (LUT + pins, pins)
        return HOLD, model.STREAM_PIN if access.kind == "swrite" else 0.0

    def _word(self, read: Node) -> float:
        """When a word that was read is there."""
        port = str(read.aux)
        if not port.endswith(".read"):
            return model.STREAM_WORD
        memory = self.p.memories[port.split(".")[0]]
        choice = model.gate(2 * self.shared.get((memory.name, "word"), 0))
        return model.MEMORY_WORD + choice + model.driven(self.result.loads.get(read.id, 1))

    def edge(self, a: Vertex, b: Vertex, latency: int = 0, recurrence: bool = False, cost: float = 0.0) -> None:
        edge = _Edge(b, latency, recurrence, cost)
        if edge not in self.edges[a]:
            self.edges[a].append(edge)

    def _order_ports(self) -> None:
        """A call starts when the stage before has let its token go, so that what it depends on is there. A memory is read
        before it is written, so that only the interlock stands between steps.

        Streams need no order: in a region no stream leads back to its writer (`elaborate` sees to it), so that a read never
        waits for a write of its own step, and every FIFO has a place for the value a reader would hold meanwhile.
        """
        for step in self.p.steps:
            for call in self.p.accesses:
                if call.kind == "call" and call.step == step.index:
                    for port, _ in step.stream_order:
                        self.edge(f"port:{port}", f"port:{call.port}", 1)
        ports = {a.port for a in self.p.accesses}
        for port in sorted(ports):
            if port.endswith(".read") and (write := port.removesuffix("read") + "write") in ports:
                self.edge(f"port:{port}", f"port:{write}")

    def _recurrences(self) -> None:
        registers = {str(n.aux): n for n in self.nodes.values() if n.op == "reg"}
        self.result.reads = [self._cone(step.index, "reg") for step in self.p.steps]
        for step in self.p.steps:
            if not step.loop:
                continue
            for w in self.p.writes:
                if w.step == step.index and w.register in self.result.reads[step.index]:
                    self.edge(_write(w), registers[w.register].id, recurrence=True)
            conditions = [p for p, target in step.successors if target == step.index]
            leaves = _cone(conditions)
            if all(n.op in ("reg", "input", "const") for n in leaves if not n.args):
                self.steady.add(step.index)
                for p in conditions:
                    self.edge(p.id, NEXT, recurrence=True, cost=model.BRANCH)
                for n in leaves:
                    if n.op == "reg":
                        self.edge(NEXT, n.id, recurrence=True)

    def _cone(self, step: int, op: str) -> set[str]:
        return {str(n.aux) for n in _cone(self.p.step_roots(step)) if n.op == op}

    # stages
    def run(self) -> Schedule:
        self.connect()
        for _ in range(len(self.p.registers) + 2):
            after: dict[Vertex, list[Vertex]] = {a: [e.to for e in edges] for a, edges in self.edges.items()}
            vertices: list[Vertex] = [*self.nodes, *(f"port:{a.port}" for a in self.p.accesses), NEXT]
            ordered = components(after, vertices)
            if not self._relax(ordered):
                break
        before: dict[Vertex, list[tuple[Vertex, _Edge]]] = defaultdict(list)
        for a, edges in self.edges.items():
            for e in edges:
                before[e.to].append((a, e))
        for component in ordered:
            self._place(component, before)
        return self._collect()

    def _relax(self, ordered: list[list[Vertex]]) -> bool:
        """Give up the recurrence of components that hold a latency."""
        home = {v: i for i, c in enumerate(ordered) for v in c}
        tight = {home[a] for a, edges in self.edges.items() for e in edges if e.latency and home[a] == home[e.to]}
        if not tight:
            return False
        changed = False
        for a in list(self.edges):
            kept = [e for e in self.edges[a] if not (e.recurrence and home[a] in tight and home[a] == home[e.to])]
            changed |= len(kept) < len(self.edges[a])
            self.edges[a] = kept
        if not changed:
            ports = sorted(v[5:] for i in tight for v in ordered[i] if isinstance(v, str) and v.startswith("port:"))
            place = next((a.place for a in self.p.accesses if a.port in ports), "")
            raise refuse(
                place,
                f"process {self.p.name} uses the ports {', '.join(ports)} in orders that contradict each other",
                "use them in one order in every branch, or in separate loops",
            )
        return True

    def _place(self, component: list[Vertex], before: dict[Vertex, list[tuple[Vertex, _Edge]]]) -> None:
        inside = set(component)
        outer = [(a, e.latency) for v in component for a, e in before[v] if a not in inside]
        stage = max((self.stage[a] + latency for a, latency in outer), default=0)
        attempts = (0,) if NEXT in inside else (0, 1)  # the next step is known in stage 0, or the loop waits
        for attempt in attempts:
            longest = self._times(component, inside, before, stage + attempt)
            if longest <= self.budget or all(self.stage[a] + latency < stage + attempt for a, latency in outer):
                break
        for v in component:
            self.stage[v] = stage + attempt

    def _times(
        self, component: list[Vertex], inside: set[Vertex], before: dict[Vertex, list[tuple[Vertex, _Edge]]], stage: int
    ) -> float:
        """When each of a component is ready in a stage; returns the last."""
        names: list[Vertex] = sorted(v for v in component if isinstance(v, str))
        order: list[Vertex] = [*sorted(v for v in component if isinstance(v, int)), *names]
        for v in order:
            self.time[v] = REGISTER
        for v in order:
            self.result.source.pop(v, None)
            node = self.nodes.get(v) if isinstance(v, int) else None
            start = self._word(node) if node is not None and node.op == "read" else REGISTER
            if len(component) == 1 or node is None or node.args:
                for a, edge in before[v]:
                    if a == v or (node is not None and node.op in ("read", "dot")):
                        continue
                    arrival = (
                        self._arrival(a, a in inside or (self.stage[a] == stage and edge.latency == 0)) + edge.cost
                    )
                    if arrival > start:
                        start = arrival
                        self.result.source[v] = a
            self.time[v] = start + (delay(node) if node else 0.0)
        return max(self.time[v] for v in order)

    def _arrival(self, a: Vertex, same_stage: bool) -> float:
        """When an operand is there: from logic of the same stage, or from a register, which may be copied."""
        node = self.nodes.get(a) if isinstance(a, int) else None
        count = self.result.loads.get(node.id, 1) if node else 1
        if not same_stage or (node is not None and node.op in ("reg", "input")):
            return REGISTER + model.copied(count)
        return self.time[a] + (model.driven(count) if node and node.args and node.op not in _WIRING else 0.0)

    # what the emitter needs
    def _collect(self) -> Schedule:
        r, p = self.result, self.p
        r.time = self.time
        r.stage = {v: s for v, s in self.stage.items() if isinstance(v, int)}
        r.events = {v: s for v, s in self.stage.items() if isinstance(v, str)}
        r.port = {v[5:]: s for v, s in self.stage.items() if isinstance(v, str) and v.startswith("port:")}
        fixed = {e.to for edges in self.edges.values() for e in edges if e.recurrence}
        self._read_late(fixed)
        for w in p.writes:
            here = max(r.read[w.register], r.events[_write(w)])
            r.write[w.register, w.step] = max(here, r.write.get((w.register, w.step), 0))
        for step in p.steps:
            calls = [r.port[a.port] for a in p.accesses if a.step == step.index and a.kind == "call"]
            known = any(c.op != "const" for c, _ in step.successors)
            r.branch.append(max([r.events[f"next:{step.index}"] if known else 0, *calls]))
            stay = r.events[NEXT] if step.index in self.steady else r.events.get(f"stay:{step.index}", 0)
            r.stay.append(stay if step.loop and not calls else r.branch[-1])
        self._last_uses()
        fetched = [r.port[a.port] + 1 for a in p.accesses if a.kind == "mread"]
        r.stages = 1 + max([*r.last_use.values(), *r.port.values(), *r.write.values(), *r.branch, *fetched, 0])
        for step in p.steps:
            for condition, target in step.successors:
                if target < 0:  # the last stage but one tells the end
                    for b in bases(condition):
                        r.last_use[b.id] = max(r.last_use.get(b.id, 0), r.stages - 1)
        check(p, r)
        return r

    def _read_late(self, fixed: set[Vertex]) -> None:
        """A register outside recurrences is read where it is first used."""
        r = self.result
        first: dict[int, int] = {}
        for node in self.nodes.values():
            if node.op in _WIRING:
                continue
            for k, a in enumerate(node.args):
                for base in bases(a):
                    first[base.id] = min(first.get(base.id, 1 << 30), r.stage[node.id] - lag(node, k))
        for root, stage in self._root_uses():
            for base in bases(root):
                first[base.id] = min(first.get(base.id, 1 << 30), stage)
        for node in self.nodes.values():
            if node.op == "reg":
                if node.id not in fixed:
                    r.stage[node.id] = max(first.get(node.id, 0), r.stage[node.id])
                r.read[str(node.aux)] = r.stage[node.id]
        for register in self.p.registers:
            r.read.setdefault(register, 0)

    def _root_uses(self) -> list[tuple[Node, int]]:
        r, found = self.result, []
        for a in self.p.accesses:
            found += [(n, r.port[a.port]) for n in (a.predicate, a.address, a.data, *a.arguments) if n is not None]
        for w in self.p.writes:
            stage = r.write.get((w.register, w.step), r.events[_write(w)])
            found += [(w.value, stage), (w.predicate, stage)]
        for step in self.p.steps:
            stage = r.branch[step.index] if r.branch else r.events.get(f"next:{step.index}", 0)
            found += [(c, stage) for c, _ in step.successors]
        return found

    def _last_uses(self) -> None:
        r = self.result

        def use(node: Node, stage: int) -> None:
            for base in bases(node):
                r.last_use[base.id] = max(r.last_use.get(base.id, 0), stage)

        for node in self.nodes.values():
            if node.op not in _WIRING:
                for k, a in enumerate(node.args):
                    use(a, r.stage[node.id] - lag(node, k))
        for node, stage in self._root_uses():
            use(node, stage)


def _write(w: RegisterWrite) -> str:
    return f"write:{w.register}:{w.step}"


def schedule(process: Process, period: float, shared: Mapping[tuple[str, str], int]) -> Schedule:
    """Stages for a clock period in ns.

    Args:
        process: what to schedule.
        period: of the clock, in ns.
        shared: where it is more than one: users of a memory's "read" or "write" port, memories that its "word" may come from.

    Raises:
        MoehlsError: ports are used in orders that contradict each other.
    """
    return _Scheduler(process, period, shared).run()


def check(process: Process, s: Schedule) -> None:
    """The invariants the hardware rests on.

    Raises:
        MoehlsError: one is broken, which is an error of this compiler.
    """

    def hold(condition: bool, what: str) -> None:
        if not condition:
            raise MoehlsError(f"internal error in process {process.name}: {what}; please report the C++ source")

    for node in live_nodes(process):
        for k, a in enumerate(node.args):
            if node.op not in _WIRING:
                for base in bases(a):
                    late = base.op != "input" and s.stage[base.id] > s.stage[node.id] - lag(node, k)
                    hold(not late, f"{base.op} {base.aux or base.id} is used before its stage")
    for access in process.accesses:
        for n in (access.predicate, access.address, access.data, *access.arguments):
            for base in bases(n) if n is not None else []:
                late = base.op != "input" and s.stage[base.id] > s.port[access.port]
                hold(not late, f"port {access.port} comes before its operands")
    writers = {(w.register, w.step) for w in process.writes}
    for register, step in writers:
        hold(s.write[register, step] >= s.read[register], f"register {register} is written before its stage")


def bases(node: Node) -> list[Node]:
    """The values below wiring."""
    if node.op in _WIRING:
        return [b for a in node.args for b in bases(a)]
    return [] if node.op == "const" else [node]


def _cone(roots: list[Node]) -> list[Node]:
    found: dict[int, Node] = {}
    todo = list(roots)
    while todo:
        node = todo.pop()
        if node.id not in found:
            found[node.id] = node
            todo.extend(node.args)
    return list(found.values())


def live_nodes(process: Process) -> list[Node]:
    """Every node that something uses, operands first."""
    return sorted(_cone(process.roots()), key=lambda n: n.id)
