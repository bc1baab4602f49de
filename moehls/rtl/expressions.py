"""The SystemVerilog text of a process's values: operands where they stand in the pipeline, operations, conditions."""

from __future__ import annotations

from moehls.rtl.flow_control import FlowControl
from moehls.rtl.graph import Node
from moehls.rtl.ir import Access, Process
from moehls.rtl.ports import port_prefix
from moehls.rtl.schedule import Schedule, bases
from moehls.rtl.signals import signal_names

_LOGIC = ("mux", "and", "or", "xor", "not", "shl", "lshr", "ashr", "rom")
_SYMBOLS = {
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


class Expressions:
    """The names and texts of one scheduled process; `prefix` stands before its streams and memories."""

    def __init__(self, process: Process, schedule: Schedule, flow: FlowControl, prefix: str = "") -> None:
        self.p, self.s, self.flow, self.prefix = process, schedule, flow, prefix
        self.step_bits = max(1, (len(process.steps) - 1).bit_length())
        taken = {*process.registers, *process.inputs, *process.streams, *(rom.name for rom in process.roms.values())}
        self.names = signal_names(process, taken)

    def name(self, node: Node) -> str:
        if node.op == "input":
            name, _, bits = str(node.aux).partition("[")
            return f"{name}_local{'[' if bits else ''}{bits}"
        if node.op == "reg":
            return str(node.aux)
        if node.op == "read":
            port = str(node.aux)
            return f"{self.bank(port)[0]}_read_data" if port.endswith(".read") else f"{self.prefix}{port}_data"
        return self.names[node.id]

    def signal(self, node: Node, stage: int) -> str:
        """A value where it stands in a stage."""
        own = self.s.stage[node.id]
        if node.op == "input" or stage == own:
            return self.name(node)
        assert stage > own, (self.p.name, node.op, node.aux, stage, own)
        return f"{self.name(node)}_s{stage}"

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

    def chosen(self, uses: list[Access], what: str, stage: int) -> str:
        """The operand of whichever step is in the stage."""
        return self.select(uses, [self.expression(getattr(a, what), stage) for a in uses], stage)

    def select(self, uses: list[Access], texts: list[str], stage: int) -> str:
        result = texts[-1]
        for a, text in zip(uses[-2::-1], texts[-2::-1], strict=True):
            if text != result:
                result = f"step_{stage} == {self.step_bits}'d{a.step} ? {text} : ({result})"
        return result

    def known(self, node: Node, stage: int) -> bool:
        if node.op in ("concat", "slice", "sext"):
            return all(self.known(a, stage) for a in node.args)
        return node.op in ("const", "input") or self.s.stage[node.id] <= stage

    def bank(self, port: str) -> tuple[str, str]:
        name, way = port_prefix(port, self.p)
        return self.prefix + name, way

    def operation(self, node: Node, stage: int) -> str:
        args = node.args
        if node.op == "add" and self._logic_bits(args[0], stage) > self._logic_bits(args[1], stage):
            args = args[::-1]  # the first operand enters the carry chain, the second the LUT before it, with its logic
        a = [self.expression(x, stage) for x in args]
        if node.op in _SYMBOLS:
            text = f"{a[0]} {_SYMBOLS[node.op]} {a[1]}"
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
