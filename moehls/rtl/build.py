"""A function of the optimised module to the data flow of a process.

Control flow is cut into steps (`control`); each step is if-converted: branches become predicates, phis multiplexers. Values
that outlive their step become registers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from moehls.rtl import llvm
from moehls.rtl.control import Flow
from moehls.rtl.debug import Variables
from moehls.rtl.graph import Graph
from moehls.rtl.ir import Access, Memory, Process, Rom, refuse
from moehls.rtl.llvm import Constant, Function, Instruction, Module, Name, Operand
from moehls.rtl.names import Names
from moehls.rtl.pointers import Resolver, Shape, object_shape
from moehls.rtl.step import StepBuilder


def build_process(
    module: Module,
    function: Function,
    shapes: Mapping[str, Shape],
    callees: frozenset[str] = frozenset(),
    storage: Mapping[tuple[str, str], str] | None = None,
) -> Process:
    """The data flow of `function`.

    Args:
        module: it lies in.
        shapes: of its pointer parameters.
        callees: functions a program calls and waits for.
        storage: memory kind by (function, variable).

    Raises:
        MoehlsError: the function leaves the subset; the message names the C++ line.
    """
    return Builder(module, function, dict(shapes), callees, storage or {}).build()


class Builder:
    def __init__(
        self,
        module: Module,
        function: Function,
        shapes: dict[str, Shape],
        callees: frozenset[str],
        storage: Mapping[tuple[str, str], str],
    ) -> None:
        self.module, self.function, self.shapes, self.callees = module, function, shapes, callees
        self.types = module.types
        self.graph = Graph()
        self.definitions = {i.name: i for b in function.blocks for i in b.instructions if i.name}
        self.resolver = Resolver(module, self.definitions)
        self.flow = Flow(function)
        self.hints = Variables(module).hints(function)
        self.names = Names({value: hint.name for value, hint in self.hints.items()})
        self.parameters = {name: type_ for type_, name in function.parameters}
        self.process = Process(
            name=module.source_name(function.name), function=function.name, graph=self.graph, steps=[], accesses=[], writes=[],
            registers={}, inputs={}, streams={}, memories={}, own=set(), roms={},
        )  # fmt: skip
        self.storage = storage
        self._add_own_memories()

    def _add_own_memories(self) -> None:
        operands = [o for b in self.function.blocks for i in b.instructions for o in i.operands]
        used = {o.text for o in operands if isinstance(o, Name)}
        used |= {o.base.text for o in operands if isinstance(o, llvm.GepConstant)}
        for name, variable in self.module.globals.items():
            if name in used and not variable.constant:
                self._own(name, variable.type)
        for block in self.function.blocks:
            for i in block.instructions:
                if i.op == "alloca" and i.name in used:
                    self._own(i.name, i.element)

    def _own(self, name: str, type_: str) -> None:
        bound = next((s for (_, v), s in self.storage.items() if v == name), "")
        shape = object_shape(self.module, type_, name, bound)
        if shape is not None:
            self.shapes[name] = shape
            if isinstance(shape, Memory):
                self.process.own.add(name)

    # steps
    def build(self) -> Process:
        self._cut_calls()
        while (conflict := self._emit_steps()) is not None:
            self.flow.split(*conflict)
        self._merge_accesses()
        self.process.shapes = dict(self.shapes)
        return self.process

    def _cut_calls(self) -> None:
        for name in list(self.flow.blocks):
            block = name
            while True:
                body = self.flow.blocks[block]
                at = next((i for i, x in enumerate(body) if x.op == "call" and x.callee in self.callees), None)
                if at is None:
                    break
                block = self.flow.split(block, at + 1)
                # what comes before the call is its step as well

    def _emit_steps(self) -> tuple[str, int] | None:
        """One pass over all steps; returns where to cut where a port is used twice on a path."""
        p = self.process
        p.steps, p.accesses, p.writes, p.registers, p.calls, p.inputs = [], [], [], {}, [], {}
        starts = [b for b in self.flow.blocks if b in self.flow.cuts]
        starts.sort(key=lambda b: b != self.flow.entry)
        regions = {start: self.flow.region(start) for start in starts}
        outer = self._outliving(regions)
        for index, start in enumerate(starts):
            step = StepBuilder(self, index, start, regions[start], starts, outer)
            conflict = step.build()
            if conflict is not None:
                return conflict
        return None

    def _outliving(self, regions: dict[str, list[str]]) -> set[str]:
        """Values some step uses without computing them."""
        home = {i.name: b for b, body in self.flow.blocks.items() for i in body if i.name}
        found: set[str] = set()
        for start, order in regions.items():
            inside = set(order)
            for block in order:
                for instruction in self.flow.blocks[block]:
                    found |= self._missing(instruction, block, start, inside, home)
                for child in self.flow.successors(block):
                    if child in self.flow.cuts:
                        for phi in self.phis(child):
                            value = phi.operands[phi.labels.index(block)]
                            found |= self._absent([value], start, inside, home)
        return found

    def _missing(
        self, instruction: Instruction, block: str, start: str, inside: set[str], home: dict[str, str]
    ) -> set[str]:
        if instruction.op == "phi":
            if block == start:
                return {instruction.name} if instruction.type != "ptr" else set()
            return self._absent(instruction.operands, start, inside, home)
        if instruction.type == "ptr" and instruction.op != "call":
            return set()
        operands = list(instruction.operands)
        if instruction.op in ("load", "store") or instruction.op == "call":
            operands = [o for o in operands if not self._is_pointer(o)] + self._indices(instruction)
        return self._absent(operands, start, inside, home)

    def _indices(self, instruction: Instruction) -> list[Operand]:
        found: list[Operand] = []
        for o in instruction.operands:
            if self._is_pointer(o):
                for p in self.resolver.resolve(o):
                    found += [t for _, t in p.terms] + [c for c, _ in p.conditions]
        return found

    def _is_pointer(self, o: Operand) -> bool:
        if isinstance(o, Constant):
            return False
        if isinstance(o, llvm.GepConstant) or o.text.startswith("@"):
            return True
        if o.text in self.parameters:
            return self.parameters[o.text] in ("ptr", "byval")
        return self.definitions[o.text].type == "ptr"

    def _absent(self, operands: list[Operand], start: str, inside: set[str], home: dict[str, str]) -> set[str]:
        return {
            o.text
            for o in operands
            if isinstance(o, Name)
            and o.text in home
            and not self._is_pointer(o)
            and (home[o.text] not in inside or (home[o.text] == start and self.definitions[o.text].op == "phi"))
        }

    def phis(self, block: str) -> list[Instruction]:
        return [i for i in self.flow.blocks[block] if i.op == "phi" and i.type != "ptr"]

    def _merge_accesses(self) -> None:
        """At most one access a port and step: those of exclusive branches share it."""
        merged: dict[tuple[str, int], Access] = {}
        g = self.graph
        for a in self.process.accesses:
            b = merged.setdefault((a.port, a.step), a)
            if b is a:
                continue
            if a.address is not None and b.address is not None:
                b.address = g.mux(a.predicate, a.address, b.address)
            if a.data is not None and b.data is not None:
                b.data = g.mux(a.predicate, a.data, b.data)
            b.arguments = tuple(g.mux(a.predicate, x, y) for x, y in zip(a.arguments, b.arguments, strict=True))
            b.predicate = g.bitwise("or", a.predicate, b.predicate)
        self.process.accesses = list(merged.values())

    # leaves
    def rom(self, name: str) -> Rom:
        if name not in self.process.roms:
            variable = self.module.globals[name]
            array = self.types.array(variable.type)
            values = _table(variable.initialiser)
            if array is None or len(values) != array[0]:
                raise refuse(
                    "", f"the constant {name} is not a table of numbers", "give it one dimension of ap_int or ap_uint"
                )
            width = 8 * self.types.size(array[1])
            self.process.roms[name] = Rom(self.names.of(name), width, tuple(v & ((1 << width) - 1) for v in values))
        return self.process.roms[name]


def _table(text: str) -> tuple[int, ...]:
    """The numbers of a constant array."""
    if text.startswith("c"):
        return tuple(ast.literal_eval("b" + re.sub(r"\\([0-9A-F]{2})", r"\\x\1", text[1:])))
    found = []
    for element in llvm.split(text[1:-1]):
        number = re.search(r"\bi\d+ (-?\d+|true)", element)
        found.append((1 if number[1] == "true" else int(number[1])) if number else 0)
    return tuple(found)
