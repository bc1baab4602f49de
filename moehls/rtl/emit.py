"""A scheduled process as a SystemVerilog module.

The pipeline keeps the order of its tokens. In its front (`flow_control`) stage i stands still (`stall_i`) while something holds
a token in it or in a later stage of the front, and moves on (`advance_i`) otherwise; behind the front every stage moves every
cycle. Stage 0 starts a step; which one is known from the stage where its condition is. Signals have the source's names
(`signals`); `x_s3` is x as it has travelled to stage 3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from moehls.rtl.cascade import LARGE, SMALL, SUM, latency, layout
from moehls.rtl.delay import COPY_LOADS, LOGIC_LOADS, read_latency
from moehls.rtl.expressions import Expressions
from moehls.rtl.flow_control import Conflict, FlowControl
from moehls.rtl.graph import Node
from moehls.rtl.ir import SITE_BITS, Process
from moehls.rtl.ports import (
    Body,
    Port,
    bank_name,
    copies,
    memory_instance,
    memory_signals,
    memory_width,
    range_of,
    stream_signals,
)
from moehls.rtl.schedule import Schedule

_ALWAYS = "1'b1"


class ProcessEmitter:
    """Writes one process. With a `prefix` (a program) its streams and memories are wires of that prefix, not ports."""

    def __init__(
        self,
        process: Process,
        schedule: Schedule,
        flow: FlowControl,
        prefix: str = "",
        callees: Mapping[str, str] | None = None,
    ) -> None:
        self.p, self.s, self.flow, self.prefix, self.callees = process, schedule, flow, prefix, callees or {}
        self.text = Expressions(process, schedule, flow, prefix)
        self.last = schedule.stages - 1
        self.body = Body()
        self.holds: dict[int, list[str]] = defaultdict(list)
        self.pipeline: dict[int, list[str]] = defaultdict(list)

    def emit(self) -> Body:
        self._ports()
        self._roms()
        self._nodes()
        self._streams()
        self._memories()
        self._calls()
        self._registers()
        self._control()
        return self.body

    def _declare(self, kind: str, name: str, width: int, loads: int = 1) -> None:
        """A signal; what drives many loads gets copies, as the delay model assumes."""
        limit = LOGIC_LOADS if kind == "wire" else COPY_LOADS
        many = copies(limit) if loads > limit else ""
        self.body.declarations.append(f"{many}{kind} {range_of(width if width > 1 else 0)}{name};")

    def _loads(self, node: Node) -> int:
        return self.s.loads.get(node.id, 1)

    def _ports(self) -> None:
        p, ports = self.p, self.body.ports
        ports += [Port("input", "clock"), Port("input", "reset"), Port("input", "start"), Port("output", "done")]
        ports += [Port("input", name, width) for name, width in p.inputs.items()]
        for name, width in p.inputs.items():  # a copy near its users; it is there when the first token is
            self._declare("logic", f"{name}_local", width, COPY_LOADS + 1)
            self.body.lines.append(f"always_ff @(posedge clock) {name}_local <= {name};")
        for name, (direction, width) in sorted(p.streams.items()):
            for signal in stream_signals(self.prefix + name, direction, width):
                self._port(signal)
        for port in sorted({a.port for a in p.accesses if a.kind in ("mread", "mwrite")}):
            name, way = self.text.bank(port)
            memory = p.memories[port.split(".")[0]]
            for signal in memory_signals(name, way, memory, self.port_width(port)):
                self._port(signal, inner=port.split(".")[0] in self.own_memories())

    def _port(self, signal: Port, inner: bool = False) -> None:
        if inner or self.prefix:
            self._declare("wire", signal.name, signal.width)
        else:
            self.body.ports.append(signal)

    def own_memories(self) -> set[str]:
        return {name for name, m in self.p.memories.items() if m.name in self.p.own}

    def port_width(self, port: str) -> int:
        """Bits of data at a memory's port."""
        return memory_width(self.p, port)

    def _roms(self) -> None:
        used: dict[str, int] = {}
        for node in self.p.graph.nodes:
            if node.op == "rom":
                used[str(node.aux)] = max(used.get(str(node.aux), 0), node.width)
        for key, width in used.items():
            rom = self.p.roms[key]
            self.body.declarations.append(f"logic {range_of(width)}{rom.name} [0:{len(rom.values) - 1}];")
            self.body.lines.append("initial begin")
            self.body.lines += [
                f"    {rom.name}[{i}] = {width}'h{v & ((1 << width) - 1):x};" for i, v in enumerate(rom.values)
            ]
            self.body.lines += ["end", ""]

    def _nodes(self) -> None:
        by_stage: dict[int, list[Node]] = defaultdict(list)
        live = [n for n in self.p.graph.nodes if n.id in self.s.last_use]
        for node in live:
            if node.op not in ("const", "input", "reg", "read", "concat", "slice", "sext"):
                by_stage[self.s.stage[node.id]].append(node)
            if node.op not in ("const", "input"):
                self._travel(node)
        for stage in sorted(by_stage):
            self.body.lines.append(f"// stage {stage}")
            by_place: dict[str, list[Node]] = defaultdict(list)
            for node in by_stage[stage]:
                by_place[self.p.graph.places[node.id]].append(node)
            for place, nodes in by_place.items():
                self.body.lines += [f"// {place}"] if place else []
                for node in nodes:
                    self._declare("wire", self.text.name(node), node.width, self._loads(node))
                    if node.op == "dot":
                        self._cascade(node, stage)
                    else:
                        self.body.lines.append(f"assign {self.text.name(node)} = {self.text.operation(node, stage)};")
            self.body.lines.append("")

    def _travel(self, node: Node) -> None:
        for stage in range(self.s.stage[node.id] + 1, self.s.last_use[node.id] + 1):
            self._declare("logic", f"{self.text.name(node)}_s{stage}", node.width, self._loads(node))
            self.pipeline[stage].append(f"{self.text.name(node)}_s{stage} <= {self.text.signal(node, stage - 1)};")

    def _cascade(self, node: Node, stage: int) -> None:
        """A sum of products as DSPs: the wires between them and one instance each."""
        name, slots, g = self.text.name(node), layout(len(node.args) // 2), self.p.graph
        first = stage - latency(len(slots))
        for i, slot in enumerate(slots):
            own = first + slot.factors
            pair = zip(node.args[2 * i : 2 * i + 2], (LARGE, SMALL), strict=True)
            large, small = (self.text.expression(g.sext(x, width), own) for x, width in pair)
            other = "48'b0" if slot.other is None else f"{name}_dsp_{slot.other}"
            if slot.addend:
                other = self.text.expression(g.sext(node.args[-1], SUM), first + slot.adds - 1)
            before = f"{name}_pcout_{i - 1}" if slot.chained else "48'b0"
            nothing = slot.addend and node.args[-1].op == "const" and not node.args[-1].value
            adds = 2 if slot.addend and not nothing else int(slot.other is not None)
            stages = [own + 1, own + slot.inputs, own + slot.inputs + 1, own + slot.inputs + 2, first + slot.adds]
            enables = [
                f".enable_{register}({self.text.open(stage) or _ALWAYS})"
                for register, stage in zip(("first", "input", "product", "sum", "addend"), stages, strict=True)
            ]
            self._declare("wire", f"{name}_dsp_{i}", SUM)
            self._declare("wire", f"{name}_pcout_{i}", SUM)
            self.body.lines += [
                f"dsp_slice #(.INPUTS({slot.inputs}), .CHAINED({int(slot.chained)}), .ADDS({adds})) {name}_slice_{i} (",
                f"    .clock, {', '.join(enables)},",
                f"    .a({large}), .b({small}), .c({other}),",
                f"    .cascade_in({before}), .sum({name}_dsp_{i}), .cascade_out({name}_pcout_{i})",
                ");",
            ]
        self.body.lines.append(f"assign {name} = {name}_dsp_{len(slots) - 1}[{node.width - 1}:0];")

    def _streams(self) -> None:
        for port, (direction, _) in sorted(self.p.streams.items()):
            uses = [a for a in self.p.accesses if a.port == port]
            stage, name = self.s.port[port], self.prefix + port
            wait = stage if direction == "in" else self.flow.checks[port]
            self._declare("wire", f"{name}_wanted", 1)
            self.body.lines.append(f"assign {name}_wanted = {self.text.any_of(uses, wait)};")
            self.holds[wait].append(f"({name}_wanted & ~{name}_{'valid' if direction == 'in' else 'ready'})")
            if direction == "in":
                self.body.lines.append(f"assign {name}_ready = {name}_wanted & ~stall_{stage};")
            else:
                moving = self.text.any_of(uses, stage, moving=True)
                self.body.lines.append(f"assign {name}_valid = {moving};")
                self.body.lines.append(f"assign {name}_data = {self.text.chosen(uses, 'data', stage)};")

    def _memories(self) -> None:
        """A word is read every cycle that its token waits; only what a later token has read stays until that one moves on."""
        ports = sorted({a.port for a in self.p.accesses if a.kind in ("mread", "mwrite")})
        for port in ports:
            name, way = self.text.bank(port)
            uses = [a for a in self.p.accesses if a.port == port]
            stage = self.s.port[port]
            read = way == "read"
            gates = [
                f"({self.text.any_of(uses, stage, moving=not read)})",
                *([self.text.open(stage + 1)] if read else []),
            ]
            self.body.lines.append(f"assign {name}_{way}_enable = {' & '.join(g for g in gates if g)};")
            self.body.lines.append(f"assign {name}_{way}_address = {self.text.chosen(uses, 'address', stage)};")
            if way == "write":
                self.body.lines.append(f"assign {name}_write_data = {self.text.chosen(uses, 'data', stage)};")
            elif read_latency(self.p.memories[port.split(".")[0]]) > 1:
                moves = [f"valid_{stage + 1}", *([self.text.open(stage + 2)] if self.text.open(stage + 2) else [])]
                self.body.lines.append(f"assign {name}_read_advance = {' & '.join(moves)};")
            else:
                self.body.lines.append(f"assign {name}_read_advance = 1'b0;")
        for conflict in self.flow.conflicts:
            for later in range(conflict.stage + 1, conflict.stage + conflict.gap + 1):
                self.holds[conflict.stage].append(self._conflict(conflict, later))
        for name in sorted(self.own_memories()) if not self.prefix else ():
            self._own_memory(name, ports)

    def _conflict(self, conflict: Conflict, later: int) -> str:
        r, w, stage = conflict.read, conflict.write, conflict.stage
        assert r.address is not None and w.address is not None
        terms = [self.text.when(r.step, r.predicate, stage)]
        terms.append(
            self.text.when(w.step, w.predicate, later)
            if self.text.known(w.predicate, later)
            else self.text.at_step(w.step, later)
        )
        if self.text.known(w.address, later):
            terms.append(f"({self.text.expression(r.address, stage)} == {self.text.expression(w.address, later)})")
        return f"({' & '.join(terms)})"

    def _own_memory(self, name: str, ports: list[str]) -> None:
        memory = self.p.memories[name]
        for bank in range(memory.banks):
            used = [p for p in ports if p.startswith(f"{name}.{bank}.")]
            if not used:
                continue
            prefix = bank_name(name, bank, memory)
            self.body.lines += memory_instance(
                prefix, memory, self.width_of_bank(f"{name}.{bank}"), {p.split(".")[2] for p in used}
            )

    def width_of_bank(self, bank: str) -> int:
        return max(memory_width(self.p, f"{bank}.read"), memory_width(self.p, f"{bank}.write"))

    def _calls(self) -> None:
        for port in sorted({a.port for a in self.p.accesses if a.kind == "call"}):
            self._call(port)

    def _call(self, port: str) -> None:
        """A call holds its token until the callee is done; the callee's scalars stand still meanwhile."""
        name = self.callees[port.removeprefix("call.")]
        uses = [a for a in self.p.accesses if a.port == port]
        stage, lines = self.s.port[port], self.body.lines
        for signal in ("start", "busy", "finished"):
            self._declare("logic", f"{name}_{signal}", 1)
        self._declare("wire", f"{name}_done", 1)
        self._declare("logic", f"{name}_site", SITE_BITS)
        older = [f"valid_{j}" for j in range(stage + 1, self.last + 1)]
        want = " | ".join(self.text.when(a.step, a.predicate, stage) for a in uses)
        self._declare("wire", f"{name}_wanted", 1)
        lines.append(f"assign {name}_wanted = ({want}){''.join(f' & ~{o}' for o in older)};")
        self.holds[stage].append(f"(({want}) & ~{name}_finished)")
        lines += [
            "always_ff @(posedge clock) begin",
            f"    {name}_start <= ~reset & {name}_wanted & ~{name}_busy & ~{name}_finished & ~{name}_start;",
            f"    if (reset | {name}_done) {name}_busy <= 1'b0;",
            f"    else if ({name}_start) {name}_busy <= 1'b1;",
            f"    if (reset | {self.text.advance(stage)}) {name}_finished <= 1'b0;",
            f"    else if ({name}_done) {name}_finished <= 1'b1;",
            f"    if ({name}_wanted & ~{name}_busy & ~{name}_finished & ~{name}_start) begin",
        ]
        lines.append(f"        {name}_site <= {self.text.chosen(uses, 'data', stage)};")
        for k, width in enumerate(n.width for n in uses[0].arguments):
            self._declare("logic", f"{name}_argument_{k}", width)
            texts = [self.text.expression(a.arguments[k], stage) for a in uses]
            lines.append(f"        {name}_argument_{k} <= {self.text.select(uses, texts, stage)};")
        lines += ["    end", "end", ""]

    def _registers(self) -> None:
        register_loads = {str(n.aux): self._loads(n) for n in self.p.graph.nodes if n.op == "reg"}
        by_register: dict[str, list[int]] = defaultdict(list)
        for i, w in enumerate(self.p.writes):
            by_register[w.register].append(i)
        for register, width in self.p.registers.items():
            self._declare("logic", register, width, register_loads.get(register, 1))
            # one token at a time writes; a constant is written last, so that it is the register's reset and takes no LUT a bit
            writes = sorted((self.p.writes[i] for i in by_register[register]), key=lambda w: w.value.op == "const")
            if not writes:
                continue
            self.body.lines.append("always_ff @(posedge clock) begin")
            for w in writes:
                stage = self.s.write[register, w.step]
                condition = self.text.when(w.step, w.predicate, stage, moving=True)
                self.body.lines.append(f"    if ({condition}) {register} <= {self.text.expression(w.value, stage)};")
            self.body.lines += ["end", ""]

    def _control(self) -> None:
        last, front, lines = self.last, self.flow.front, self.body.lines
        many = len(self.p.steps) > 1
        for (step, older), gap in sorted(self.flow.gaps.items()):
            ahead = [self.text.at_step(older, later) for later in range(1, gap + 1)]
            self.holds[0].append(f"({self.text.at_step(step, 0)} & ({' | '.join(ahead)}))")
        for stage in range(last + 1):
            self._declare("logic", f"valid_{stage}", 1, self._enables(stage + 1))
            if many:
                self._declare("logic", f"step_{stage}", self.text.step_bits)
        for stage in range(front + 1):
            for signal in ("hold", "stall", "advance"):
                self._declare("wire", f"{signal}_{stage}", 1, self._enables(stage) if signal == "stall" else 1)
            held = " | ".join(dict.fromkeys(self.holds[stage])) or "1'b0"
            lines.append(f"assign hold_{stage} = {held};")
            lines.append(f"assign stall_{stage} = {' | '.join(f'hold_{k}' for k in range(stage, front + 1))};")
            lines.append(f"assign advance_{stage} = valid_{stage} & ~stall_{stage};")
        self._next_step()
        for stage in range(1, last + 1):
            if_open = f"if ({self.text.open(stage)}) " if self.text.open(stage) else ""
            lines += ["always_ff @(posedge clock) begin", f"    if (reset) valid_{stage} <= 1'b0;"]
            lines.append(f"    else {if_open}valid_{stage} <= {self.text.advance(stage - 1)};")
            moved = [*([f"step_{stage} <= step_{stage - 1};"] if many else []), *self.pipeline[stage]]
            taken = if_open or f"if (valid_{stage - 1}) "  # nothing moves without a token
            lines += [f"    {taken}begin", *(f"        {m}" for m in moved), "    end"] if moved else []
            lines += ["end", ""]
        self._done()

    def _enables(self, stage: int) -> int:
        """Flip-flops of the pipeline that stand still with a stage."""
        travelling = (n for n in self.p.graph.nodes if n.id in self.s.last_use and n.op not in ("const", "input"))
        return sum(n.width for n in travelling if self.s.stage[n.id] < stage <= self.s.last_use[n.id])

    def _done(self) -> None:
        """The last token is in the last stage."""
        stage, lines = self.flow.end, self.body.lines
        ends = [
            self.text.when(step.index, c, stage, moving=True)
            for step in self.p.steps
            for c, t in step.successors
            if t < 0
        ]
        ended = " | ".join(ends) or "1'b0"
        if stage == self.last:
            lines.append(f"assign done = {ended};")
        else:
            self._declare("logic", "ended", 1)
            lines += [f"always_ff @(posedge clock) ended <= ~reset & ({ended});", "assign done = ended;"]

    def _next_step(self) -> None:
        many, lines = len(self.p.steps) > 1, self.body.lines
        lines += ["", "// the next step", "always_ff @(posedge clock) begin", "    if (reset) valid_0 <= 1'b0;"]
        lines.append("    else if (start) begin")
        lines += ["        valid_0 <= 1'b1;", *(["        step_0 <= '0;"] if many else []), "    end else begin"]
        for step in self.p.steps:
            lines += [f"        {x}" for x in self._transfer(step.index)]
        lines += ["    end", "end", ""]

    def _transfer(self, step: int) -> list[str]:
        """What follows a step; whether a loop goes on is known in stage 0, where it leads when it ends perhaps later."""
        s = self.s
        branch, stay = s.branch[step], s.stay[step]
        lines = []
        apart = stay == 0 and branch > 0
        again = next((c for c, target in self.p.steps[step].successors if target == step), None)
        if branch > 0:
            goes_on = self.text.expression(again, 0) if apart and again is not None else "1'b0"
            lines.append(f"if ({self.text.at_step(step, 0, moving=True)}) valid_0 <= {goes_on};")
        ends = f" & ~{self.text.expression(again, branch)}" if apart and again is not None else ""
        lines.append(f"if ({self.text.at_step(step, branch, moving=True)}{ends}) begin")
        return [*lines, *(f"    {x}" for x in self._next(step, branch)), "end"]

    def _next(self, step: int, stage: int) -> list[str]:
        successors = self.p.steps[step].successors
        lines = []
        for i, (condition, target) in enumerate(successors):
            test = "" if i == len(successors) - 1 else f"if ({self.text.expression(condition, stage)}) "
            keyword = f"{'else ' if i else ''}{test}"
            if target < 0:
                lines.append(f"{keyword}valid_0 <= 1'b0;")
            elif len(self.p.steps) > 1:
                lines.append(f"{keyword}begin valid_0 <= 1'b1; step_0 <= {self.text.step_bits}'d{target}; end")
            else:
                lines.append(f"{keyword}valid_0 <= 1'b1;")
        return lines
