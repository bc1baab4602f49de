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
from moehls.rtl.flow_control import Conflict, FlowControl
from moehls.rtl.graph import Node
from moehls.rtl.ir import SITE_BITS, Access, Process
from moehls.rtl.ports import (
    Body,
    Port,
    bank_name,
    copies,
    memory_instance,
    memory_signals,
    memory_width,
    port_prefix,
    range_of,
    stream_signals,
)
from moehls.rtl.schedule import Schedule, bases
from moehls.rtl.signals import signal_names

_ALWAYS = "1'b1"
_LOGIC = ("mux", "and", "or", "xor", "not", "shl", "lshr", "ashr", "rom")


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
        self.last = schedule.stages - 1
        self.body = Body()
        self.holds: dict[int, list[str]] = defaultdict(list)
        self.pipeline: dict[int, list[str]] = defaultdict(list)
        self.step_bits = max(1, (len(process.steps) - 1).bit_length())
        taken = {*process.registers, *process.inputs, *process.streams, *(rom.name for rom in process.roms.values())}
        self.names = signal_names(process, taken)

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

    # names and expressions
    def _declare(self, kind: str, name: str, width: int, loads: int = 1) -> None:
        """A signal; what drives many loads gets copies, as the delay model assumes."""
        limit = LOGIC_LOADS if kind == "wire" else COPY_LOADS
        many = copies(limit) if loads > limit else ""
        self.body.declarations.append(f"{many}{kind} {range_of(width if width > 1 else 0)}{name};")

    def _loads(self, node: Node) -> int:
        return self.s.loads.get(node.id, 1)

    def _name(self, node: Node) -> str:
        if node.op == "input":
            name, _, bits = str(node.aux).partition("[")
            return f"{name}_local{'[' if bits else ''}{bits}"
        if node.op == "reg":
            return str(node.aux)
        if node.op == "read":
            port = str(node.aux)
            return f"{self._bank(port)[0]}_read_data" if port.endswith(".read") else f"{self.prefix}{port}_data"
        return self.names[node.id]

    def signal(self, node: Node, stage: int) -> str:
        """A value where it stands in a stage."""
        own = self.s.stage[node.id]
        if node.op == "input" or stage == own:
            return self._name(node)
        assert stage > own, (self.p.name, node.op, node.aux, stage, own)
        return f"{self._name(node)}_s{stage}"

    def expression(self, node: Node, stage: int) -> str:
        if node.op == "const":
            return f"{node.width}'h{node.value:x}"
        if node.op == "slice":
            base = self.signal(node.args[0], stage)
            if node.args[0].width == 1:
                return base
            return f"{base}[{node.low}]" if node.width == 1 else f"{base}[{node.low + node.width - 1}:{node.low}]"
        if node.op == "concat":
            return "{" + ", ".join(self.expression(p, stage) for p in reversed(node.args)) + "}"
        if node.op == "sext":
            inner = node.args[0]
            return f"{{{{{node.width - inner.width}{{{self._sign(inner, stage)}}}}}, {self.expression(inner, stage)}}}"
        return self.signal(node, stage)

    def _sign(self, node: Node, stage: int) -> str:
        if node.op in ("concat", "sext"):
            return self._sign(node.args[-1], stage)
        if node.op == "slice":
            top = node.low + node.width - 1
            base = self.signal(node.args[0], stage)
            return f"{base}[{top}]" if node.args[0].width > 1 else base
        return f"{self.signal(node, stage)}[{node.width - 1}]" if node.width > 1 else self.signal(node, stage)

    def advance(self, stage: int) -> str:
        """Whether the token in a stage, if there is one, moves on."""
        return f"advance_{stage}" if stage <= self.flow.front else f"valid_{stage}"

    def open(self, stage: int) -> str:
        """Whether a stage takes what comes, "" if it always does."""
        return f"~stall_{stage}" if stage <= self.flow.front else ""

    def at_step(self, step: int, stage: int, moving: bool = False) -> str:
        """Whether the token in a stage belongs to a step (and is `moving` on)."""
        token = self.advance(stage) if moving else f"valid_{stage}"
        return token if len(self.p.steps) == 1 else f"({token} & (step_{stage} == {self.step_bits}'d{step}))"

    def when(self, step: int, predicate: Node, stage: int, moving: bool = False) -> str:
        if predicate.op == "const" and predicate.value:
            return self.at_step(step, stage, moving)
        return f"({self.at_step(step, stage, moving)} & {self.expression(predicate, stage)})"

    def any_of(self, uses: list[Access], stage: int, moving: bool = False) -> str:
        return " | ".join(self.when(a.step, a.predicate, stage, moving) for a in uses)

    # the parts
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
            name, way = self._bank(port)
            memory = p.memories[port.split(".")[0]]
            for signal in memory_signals(name, way, memory, self.port_width(port)):
                self._port(signal, inner=port.split(".")[0] in self.own_memories())

    def _port(self, signal: Port, inner: bool = False) -> None:
        if inner or self.prefix:
            self._declare("wire", signal.name, signal.width)
        else:
            self.body.ports.append(signal)

    def _bank(self, port: str) -> tuple[str, str]:
        name, way = port_prefix(port, self.p)
        return self.prefix + name, way

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
                    self._declare("wire", self._name(node), node.width, self._loads(node))
                    if node.op == "dot":
                        self._cascade(node, stage)
                    else:
                        self.body.lines.append(f"assign {self._name(node)} = {self._operation(node, stage)};")
            self.body.lines.append("")

    def _travel(self, node: Node) -> None:
        for stage in range(self.s.stage[node.id] + 1, self.s.last_use[node.id] + 1):
            self._declare("logic", f"{self._name(node)}_s{stage}", node.width, self._loads(node))
            self.pipeline[stage].append(f"{self._name(node)}_s{stage} <= {self.signal(node, stage - 1)};")

    def _cascade(self, node: Node, stage: int) -> None:
        """A sum of products as DSPs: the wires between them and one instance each."""
        name, slots, g = self._name(node), layout(len(node.args) // 2), self.p.graph
        first = stage - latency(len(slots))
        for i, slot in enumerate(slots):
            own = first + slot.factors
            pair = zip(node.args[2 * i : 2 * i + 2], (LARGE, SMALL), strict=True)
            large, small = (self.expression(g.sext(x, width), own) for x, width in pair)
            other = "48'b0" if slot.other is None else f"{name}_dsp_{slot.other}"
            if slot.addend:
                other = self.expression(g.sext(node.args[-1], SUM), first + slot.adds - 1)
            before = f"{name}_pcout_{i - 1}" if slot.chained else "48'b0"
            nothing = slot.addend and node.args[-1].op == "const" and not node.args[-1].value
            adds = 2 if slot.addend and not nothing else int(slot.other is not None)
            stages = [own + 1, own + slot.inputs, own + slot.inputs + 1, own + slot.inputs + 2, first + slot.adds]
            enables = [
                f".enable_{register}({self.open(stage) or _ALWAYS})"
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

    def _operation(self, node: Node, stage: int) -> str:
        args = node.args
        if node.op == "add" and self._logic_bits(args[0], stage) > self._logic_bits(args[1], stage):
            args = args[::-1]  # the first operand enters the carry chain, the second the LUT before it, with its logic
        a = [self.expression(x, stage) for x in args]
        symbols = {
            "add": "+",
            "sub": "-",
            "and": "&",
            "or": "|",
            "xor": "^",
            "eq": "==",
            "ult": "<",
            "shl": "<<",
            "lshr": ">>",
        }
        if node.op in symbols:
            text = f"{a[0]} {symbols[node.op]} {a[1]}"
            # a shift right may give fewer bits than it takes
            return f"{node.width}'({text})" if node.op == "lshr" and args[0].width > node.width else text
        match node.op:
            case "not":
                return f"~{a[0]}"
            case "mux":
                return f"{a[0]} ? {a[1]} : {a[2]}"
            case "slt":
                return f"$signed({a[0]}) < $signed({a[1]})"
            case "ashr":
                text = f"$unsigned($signed({a[0]}) >>> {a[1]})"
                return f"{node.width}'({text})" if args[0].width > node.width else text
            case "mul":
                return " * ".join(self._factor(x, stage) for x in node.args)
            case "rom":
                return f"{self.p.roms[str(node.aux)].name}[{a[0]}]"
            case "ctpop":
                return f"{node.width}'($countones({a[0]}))"
            case "ctlz":
                return self._leading_zeros(node, stage)
        raise AssertionError(node.op)

    def _logic_bits(self, node: Node, stage: int) -> int:
        """Bits of a value that LUTs make in a stage."""
        if node.op == "concat":
            return sum(self._logic_bits(part, stage) for part in node.args)
        made = any(base.op in _LOGIC and self.s.stage[base.id] == stage for base in bases(node))
        return node.width if made else 0

    def _factor(self, x: Node, stage: int) -> str:
        """A factor as narrow as it is: the multiplication is signed, and extends both to the product's width."""
        g = self.p.graph
        unsigned, signed = g.unsigned_bits(x), g.signed_bits(x)
        if unsigned < x.width and unsigned < signed:
            return f"$signed({self.expression(g.concat((g.slice(x, 0, max(unsigned, 1)), g.const(0, 1))), stage)})"
        return f"$signed({self.expression(g.slice(x, 0, signed), stage)})"

    def _leading_zeros(self, node: Node, stage: int) -> str:
        x, width = node.args[0], node.args[0].width
        text = f"{node.width}'d{width}"
        for bit in range(width):
            text = f"{self.expression(self.p.graph.slice(x, bit, 1), stage)} ? {node.width}'d{width - 1 - bit} : {text}"
        return text

    def _streams(self) -> None:
        for port, (direction, _) in sorted(self.p.streams.items()):
            uses = [a for a in self.p.accesses if a.port == port]
            stage, name = self.s.port[port], self.prefix + port
            wait = stage if direction == "in" else self.flow.checks[port]
            self._declare("wire", f"{name}_wanted", 1)
            self.body.lines.append(f"assign {name}_wanted = {self.any_of(uses, wait)};")
            self.holds[wait].append(f"({name}_wanted & ~{name}_{'valid' if direction == 'in' else 'ready'})")
            if direction == "in":
                self.body.lines.append(f"assign {name}_ready = {name}_wanted & ~stall_{stage};")
            else:
                moving = self.any_of(uses, stage, moving=True)
                self.body.lines.append(f"assign {name}_valid = {moving};")
                self.body.lines.append(f"assign {name}_data = {self._chosen(uses, 'data', stage)};")

    def _chosen(self, uses: list[Access], what: str, stage: int) -> str:
        """The operand of whichever step is in the stage."""
        return self._select(uses, [self.expression(getattr(a, what), stage) for a in uses], stage)

    def _select(self, uses: list[Access], texts: list[str], stage: int) -> str:
        result = texts[-1]
        for a, text in zip(uses[-2::-1], texts[-2::-1], strict=True):
            if text != result:
                result = f"step_{stage} == {self.step_bits}'d{a.step} ? {text} : ({result})"
        return result

    def _memories(self) -> None:
        """A word is read every cycle that its token waits; only what a later token has read stays until that one moves on."""
        ports = sorted({a.port for a in self.p.accesses if a.kind in ("mread", "mwrite")})
        for port in ports:
            name, way = self._bank(port)
            uses = [a for a in self.p.accesses if a.port == port]
            stage = self.s.port[port]
            read = way == "read"
            gates = [f"({self.any_of(uses, stage, moving=not read)})", *([self.open(stage + 1)] if read else [])]
            self.body.lines.append(f"assign {name}_{way}_enable = {' & '.join(g for g in gates if g)};")
            self.body.lines.append(f"assign {name}_{way}_address = {self._chosen(uses, 'address', stage)};")
            if way == "write":
                self.body.lines.append(f"assign {name}_write_data = {self._chosen(uses, 'data', stage)};")
            elif read_latency(self.p.memories[port.split(".")[0]]) > 1:
                moves = [f"valid_{stage + 1}", *([self.open(stage + 2)] if self.open(stage + 2) else [])]
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
        terms = [self.when(r.step, r.predicate, stage)]
        terms.append(
            self.when(w.step, w.predicate, later) if self._known(w.predicate, later) else self.at_step(w.step, later)
        )
        if self._known(w.address, later):
            terms.append(f"({self.expression(r.address, stage)} == {self.expression(w.address, later)})")
        return f"({' & '.join(terms)})"

    def _known(self, node: Node, stage: int) -> bool:
        if node.op in ("concat", "slice", "sext"):
            return all(self._known(a, stage) for a in node.args)
        return node.op in ("const", "input") or self.s.stage[node.id] <= stage

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
        want = " | ".join(self.when(a.step, a.predicate, stage) for a in uses)
        self._declare("wire", f"{name}_wanted", 1)
        lines.append(f"assign {name}_wanted = ({want}){''.join(f' & ~{o}' for o in older)};")
        self.holds[stage].append(f"(({want}) & ~{name}_finished)")
        lines += [
            "always_ff @(posedge clock) begin",
            f"    {name}_start <= ~reset & {name}_wanted & ~{name}_busy & ~{name}_finished & ~{name}_start;",
            f"    if (reset | {name}_done) {name}_busy <= 1'b0;",
            f"    else if ({name}_start) {name}_busy <= 1'b1;",
            f"    if (reset | {self.advance(stage)}) {name}_finished <= 1'b0;",
            f"    else if ({name}_done) {name}_finished <= 1'b1;",
            f"    if ({name}_wanted & ~{name}_busy & ~{name}_finished & ~{name}_start) begin",
        ]
        lines.append(f"        {name}_site <= {self._chosen(uses, 'data', stage)};")
        for k, width in enumerate(n.width for n in uses[0].arguments):
            self._declare("logic", f"{name}_argument_{k}", width)
            texts = [self.expression(a.arguments[k], stage) for a in uses]
            lines.append(f"        {name}_argument_{k} <= {self._select(uses, texts, stage)};")
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
                condition = self.when(w.step, w.predicate, stage, moving=True)
                self.body.lines.append(f"    if ({condition}) {register} <= {self.expression(w.value, stage)};")
            self.body.lines += ["end", ""]

    def _control(self) -> None:
        last, front, lines = self.last, self.flow.front, self.body.lines
        many = len(self.p.steps) > 1
        for (step, older), gap in sorted(self.flow.gaps.items()):
            ahead = [self.at_step(older, later) for later in range(1, gap + 1)]
            self.holds[0].append(f"({self.at_step(step, 0)} & ({' | '.join(ahead)}))")
        for stage in range(last + 1):
            self._declare("logic", f"valid_{stage}", 1, self._enables(stage + 1))
            if many:
                self._declare("logic", f"step_{stage}", self.step_bits)
        for stage in range(front + 1):
            for signal in ("hold", "stall", "advance"):
                self._declare("wire", f"{signal}_{stage}", 1, self._enables(stage) if signal == "stall" else 1)
            held = " | ".join(dict.fromkeys(self.holds[stage])) or "1'b0"
            lines.append(f"assign hold_{stage} = {held};")
            lines.append(f"assign stall_{stage} = {' | '.join(f'hold_{k}' for k in range(stage, front + 1))};")
            lines.append(f"assign advance_{stage} = valid_{stage} & ~stall_{stage};")
        self._next_step()
        for stage in range(1, last + 1):
            if_open = f"if ({self.open(stage)}) " if self.open(stage) else ""
            lines += ["always_ff @(posedge clock) begin", f"    if (reset) valid_{stage} <= 1'b0;"]
            lines.append(f"    else {if_open}valid_{stage} <= {self.advance(stage - 1)};")
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
            self.when(step.index, c, stage, moving=True) for step in self.p.steps for c, t in step.successors if t < 0
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
            goes_on = self.expression(again, 0) if apart and again is not None else "1'b0"
            lines.append(f"if ({self.at_step(step, 0, moving=True)}) valid_0 <= {goes_on};")
        ends = f" & ~{self.expression(again, branch)}" if apart and again is not None else ""
        lines.append(f"if ({self.at_step(step, branch, moving=True)}{ends}) begin")
        return [*lines, *(f"    {x}" for x in self._next(step, branch)), "end"]

    def _next(self, step: int, stage: int) -> list[str]:
        successors = self.p.steps[step].successors
        lines = []
        for i, (condition, target) in enumerate(successors):
            test = "" if i == len(successors) - 1 else f"if ({self.expression(condition, stage)}) "
            keyword = f"{'else ' if i else ''}{test}"
            if target < 0:
                lines.append(f"{keyword}valid_0 <= 1'b0;")
            elif len(self.p.steps) > 1:
                lines.append(f"{keyword}begin valid_0 <= 1'b1; step_0 <= {self.step_bits}'d{target}; end")
            else:
                lines.append(f"{keyword}valid_0 <= 1'b1;")
        return lines
