"""Stages: every operation, register and port of a process gets one fixed stage of its pipeline.

One longest-path pass over the graph of all steps together. A recurrence of an innermost loop (a register whose next value
depends on itself) is a strongly connected component and lies in one stage, so that a step can start each cycle; one that
holds a memory's latency cannot, and is left to the interlock, which costs interval.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from moehls.errors import MoehlsError
from moehls.rtl.delay import MARGIN, PORT, REGISTER, delay, read_latency, result_latency
from moehls.rtl.graph import Node
from moehls.rtl.ir import Process, refuse

Vertex = int | str
"""a node's id, "port:<name>" or "next step\""""
NEXT = "next step"


@dataclass
class Schedule:
    """Stages of a process.

    `stage` by node id; `port` by port name; `read` and `write` of registers (write by (register, step)); `branch` by step: where
    the next step is known. `slow` are the combinational paths longer than the clock allows: (what, ns).
    """

    stage: dict[int, int] = field(default_factory=dict)
    port: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    write: dict[tuple[str, int], int] = field(default_factory=dict)
    branch: list[int] = field(default_factory=list)
    stay: list[int] = field(default_factory=list)
    """by step: where it is known whether the step follows itself"""
    stages: int = 0
    slow: list[tuple[str, float]] = field(default_factory=list)
    longest: float = 0.0
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


class _Scheduler:
    def __init__(self, process: Process, period: float) -> None:
        self.p, self.budget = process, MARGIN * period
        self.nodes = {n.id: n for n in _live_nodes(process)}
        self.edges: dict[Vertex, list[_Edge]] = defaultdict(list)
        self.stage: dict[Vertex, int] = {}
        self.time: dict[Vertex, float] = {}
        self.result = Schedule()

    # the graph
    def connect(self) -> None:
        for node in self.nodes.values():
            for a in node.args:
                self.edge(a.id, node.id, self._latency(a))
        reads = {str(n.aux): n.id for n in self.nodes.values() if n.op == "read"}
        for access in self.p.accesses:
            port = f"port:{access.port}"
            for n in (access.predicate, access.address, access.data, *access.arguments):
                if n is not None:
                    self.edge(n.id, port, self._latency(n))
            if access.port in reads:
                memory = self.p.memories.get(access.port.split(".")[0]) if access.kind == "mread" else None
                self.edge(port, reads[access.port], read_latency(memory) if memory else 0)
        self._order_ports()
        self._recurrences()

    def _latency(self, node: Node) -> int:
        if node.op != "mul":
            return 0
        g = self.p.graph
        factors = [min(g.signed_bits(a), g.unsigned_bits(a) + 1) for a in node.args]
        return result_latency(node, (factors[0], factors[1]))

    def edge(self, a: Vertex, b: Vertex, latency: int = 0, recurrence: bool = False) -> None:
        edge = _Edge(b, latency, recurrence)
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
                    self.edge(w.value.id, registers[w.register].id, recurrence=True)
                    self.edge(w.predicate.id, registers[w.register].id, recurrence=True)
            conditions = [p for p, target in step.successors if target == step.index]
            leaves = _cone(conditions)
            if all(n.op in ("reg", "input", "const") for n in leaves if not n.args):
                for p in conditions:
                    self.edge(p.id, NEXT, recurrence=True)
                for n in leaves:
                    if n.op == "reg":
                        self.edge(NEXT, n.id, recurrence=True)

    def _cone(self, step: int, op: str) -> set[str]:
        roots: list[Node] = []
        for a in self.p.accesses:
            if a.step == step:
                roots += [n for n in (a.predicate, a.address, a.data, *a.arguments) if n is not None]
        for w in self.p.writes:
            if w.step == step:
                roots += [w.predicate, w.value]
        roots += [p for p, _ in self.p.steps[step].successors]
        return {str(n.aux) for n in _cone(roots) if n.op == op}

    # stages
    def run(self) -> Schedule:
        self.connect()
        for _ in range(len(self.p.registers) + 2):
            components = _components(self.edges, [*self.nodes, *(f"port:{a.port}" for a in self.p.accesses), NEXT])
            if not self._relax(components):
                break
        before: dict[Vertex, list[tuple[Vertex, int]]] = defaultdict(list)
        for a, edges in self.edges.items():
            for e in edges:
                before[e.to].append((a, e.latency))
        for component in components:
            self._place(component, before)
        return self._collect()

    def _relax(self, components: list[list[Vertex]]) -> bool:
        """Give up the recurrence of components that hold a latency."""
        home = {v: i for i, c in enumerate(components) for v in c}
        tight = {home[a] for a, edges in self.edges.items() for e in edges if e.latency and home[a] == home[e.to]}
        if not tight:
            return False
        changed = False
        for a in list(self.edges):
            kept = [e for e in self.edges[a] if not (e.recurrence and home[a] in tight and home[a] == home[e.to])]
            changed |= len(kept) < len(self.edges[a])
            self.edges[a] = kept
        if not changed:
            ports = sorted(v[5:] for i in tight for v in components[i] if isinstance(v, str) and v.startswith("port:"))
            place = next((a.place for a in self.p.accesses if a.port in ports), "")
            raise refuse(
                place,
                f"process {self.p.name} uses the ports {', '.join(ports)} in orders that contradict each other",
                "use them in one order in every branch, or in separate loops",
            )
        return True

    def _place(self, component: list[Vertex], before: dict[Vertex, list[tuple[Vertex, int]]]) -> None:
        inside = set(component)
        outer = [(a, latency) for v in component for a, latency in before[v] if a not in inside]
        stage = max((self.stage[a] + latency for a, latency in outer), default=0)
        attempts = (0,) if NEXT in inside else (0, 1)  # the next step is known in stage 0, or the loop waits
        for attempt in attempts:
            self._times(component, inside, before, stage + attempt)
            longest = max(self.time[v] for v in component)
            if longest <= self.budget or all(self.stage[a] + latency < stage + attempt for a, latency in outer):
                break
        for v in component:
            self.stage[v] = stage + attempt
        self.result.longest = max(self.result.longest, longest)
        if longest > self.budget:
            self.result.slow.append((self._describe(component), longest))

    def _times(
        self, component: list[Vertex], inside: set[Vertex], before: dict[Vertex, list[tuple[Vertex, int]]], stage: int
    ) -> None:
        names: list[Vertex] = sorted(v for v in component if isinstance(v, str))
        order: list[Vertex] = [*sorted(v for v in component if isinstance(v, int)), *names]
        for v in order:
            self.time[v] = REGISTER
        for v in order:
            node = self.nodes.get(v) if isinstance(v, int) else None
            start = PORT if node is not None and node.op == "read" else REGISTER
            if len(component) == 1 or node is None or node.args:
                for a, latency in before[v]:
                    same = a in inside or (self.stage[a] == stage and latency == 0)
                    if same and (a != v):
                        start = max(start, self.time[a])
            self.time[v] = start + (delay(node) if node else 0.0)

    def _describe(self, component: list[Vertex]) -> str:
        registers = sorted(
            str(self.nodes[v].aux) for v in component if isinstance(v, int) and self.nodes[v].op == "reg"
        )
        if registers:
            return f"recurrence of {', '.join(registers[:4])}"
        node = self.nodes[next(v for v in component if isinstance(v, int))]
        return f"{node.op} of {node.width} bits"

    # what the emitter needs
    def _collect(self) -> Schedule:
        r, p = self.result, self.p
        r.stage = {v: s for v, s in self.stage.items() if isinstance(v, int)}
        r.port = {v[5:]: s for v, s in self.stage.items() if isinstance(v, str) and v.startswith("port:")}
        fixed = {e.to for edges in self.edges.values() for e in edges if e.recurrence}
        self._read_late(fixed)
        for w in p.writes:
            here = max(r.read[w.register], r.stage[w.value.id], r.stage[w.predicate.id])
            r.write[w.register, w.step] = max(here, r.write.get((w.register, w.step), 0))
        for step in p.steps:
            calls = [r.port[a.port] for a in p.accesses if a.step == step.index and a.kind == "call"]
            known = {target: r.stage[c.id] for c, target in step.successors if c.op != "const"}
            r.branch.append(max([*known.values(), *calls, 0]))
            r.stay.append(known.get(step.index, 0) if step.loop and not calls else r.branch[-1])
        self._last_uses()
        fetched = [r.port[a.port] + 1 for a in p.accesses if a.kind == "mread"]
        r.stages = 1 + max([*r.last_use.values(), *r.port.values(), *r.write.values(), *r.branch, *fetched, 0])
        for step in p.steps:
            for condition, target in step.successors:
                if target < 0:  # the last stage tells the end
                    r.last_use |= {b.id: r.stages - 1 for b in _bases(condition)}
        check(p, r)
        return r

    def _read_late(self, fixed: set[Vertex]) -> None:
        """A register outside recurrences is read where it is first used."""
        r = self.result
        first: dict[int, int] = {}
        for node in self.nodes.values():
            if node.op in ("concat", "slice", "sext"):
                continue
            for a in node.args:
                for base in _bases(a):
                    first[base.id] = min(first.get(base.id, 1 << 30), r.stage[node.id])
        for root, stage in self._root_uses():
            for base in _bases(root):
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
            stage = r.write.get((w.register, w.step), max(r.stage[w.value.id], r.stage[w.predicate.id]))
            found += [(w.value, stage), (w.predicate, stage)]
        for step in self.p.steps:
            stage = r.branch[step.index] if r.branch else max((r.stage[c.id] for c, _ in step.successors), default=0)
            found += [(c, stage) for c, _ in step.successors]
        return found

    def _last_uses(self) -> None:
        r = self.result

        def use(node: Node, stage: int) -> None:
            for base in _bases(node):
                r.last_use[base.id] = max(r.last_use.get(base.id, 0), stage)

        for node in self.nodes.values():
            if node.op not in ("concat", "slice", "sext"):
                for a in node.args:
                    use(a, r.stage[node.id])
        for node, stage in self._root_uses():
            use(node, stage)


def schedule(process: Process, period: float) -> Schedule:
    """Stages for a clock period in ns.

    Raises:
        MoehlsError: ports are used in orders that contradict each other.
    """
    return _Scheduler(process, period).run()


def check(process: Process, s: Schedule) -> None:
    """The invariants the hardware rests on.

    Raises:
        MoehlsError: one is broken, which is an error of this compiler.
    """

    def hold(condition: bool, what: str) -> None:
        if not condition:
            raise MoehlsError(f"internal error in process {process.name}: {what}; please report the C++ source")

    for node in _live_nodes(process):
        for a in node.args:
            if node.op not in ("concat", "slice", "sext"):
                for base in _bases(a):
                    late = base.op != "input" and s.stage[base.id] > s.stage[node.id]
                    hold(not late, f"{base.op} {base.aux or base.id} is used before its stage")
    for access in process.accesses:
        for n in (access.predicate, access.address, access.data, *access.arguments):
            for base in _bases(n) if n is not None else []:
                late = base.op != "input" and s.stage[base.id] > s.port[access.port]
                hold(not late, f"port {access.port} comes before its operands")
    writers = {(w.register, w.step) for w in process.writes}
    for register, step in writers:
        hold(s.write[register, step] >= s.read[register], f"register {register} is written before its stage")


def _bases(node: Node) -> list[Node]:
    """The values below wiring."""
    if node.op in ("concat", "slice", "sext"):
        return [b for a in node.args for b in _bases(a)]
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


def _live_nodes(process: Process) -> list[Node]:
    return sorted(_cone(process.roots()), key=lambda n: n.id)


def _components(edges: dict[Vertex, list[_Edge]], vertices: list[Vertex]) -> list[list[Vertex]]:
    """Strongly connected components, each after all that lead to it (Tarjan 1972, iterative)."""
    index: dict[Vertex, int] = {}
    low: dict[Vertex, int] = {}
    on: set[Vertex] = set()
    stack: list[Vertex] = []
    found: list[list[Vertex]] = []
    for root in vertices:
        if root in index:
            continue
        work = [(root, iter(edges.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on.add(root)
        while work:
            v, out = work[-1]
            for e in out:
                if e.to not in index:
                    index[e.to] = low[e.to] = len(index)
                    stack.append(e.to)
                    on.add(e.to)
                    work.append((e.to, iter(edges.get(e.to, ()))))
                    break
                if e.to in on:
                    low[v] = min(low[v], index[e.to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[v])
                if low[v] == index[v]:
                    component = []
                    while True:
                        w = stack.pop()
                        on.discard(w)
                        component.append(w)
                        if w == v:
                            break
                    found.append(component)
    return found[::-1]
