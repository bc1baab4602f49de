"""One step: the blocks below a cut, if-converted. Instructions become nodes, loads and stores accesses of ports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from moehls.rtl.control import Paths, edge_conditions
from moehls.rtl.graph import Label, Node
from moehls.rtl.ir import SITE_BITS, Access, Call, Memory, RegisterWrite, Step, refuse
from moehls.rtl.llvm import Constant, Instruction, Name, Operand
from moehls.rtl.pointers import Pointer, StreamShape, bank_of

if TYPE_CHECKING:
    from moehls.rtl.build import Builder

_BINARY = {"and": "and", "or": "or", "xor": "xor"}
_ARITHMETIC = {"add": "add", "sub": "sub", "mul": "mul"}
_SHIFTS = {"shl": "shl", "lshr": "lshr", "ashr": "ashr"}
_IGNORED = ("llvm.lifetime", "llvm.assume", "llvm.dbg", "llvm.experimental.noalias")


class StepBuilder:
    """Evaluates the blocks below one cut of a function (`owner`) into the process under construction."""

    def __init__(
        self, owner: Builder, index: int, start: str, order: list[str], starts: list[str], outer: set[str]
    ) -> None:
        self.o, self.index, self.start, self.order, self.starts, self.outer = owner, index, start, order, starts, outer
        self.g = owner.graph
        self.env: dict[str, Node] = {}
        self.paths: Paths
        self.accesses: list[tuple[str, int, Access]] = []
        """(block, position, access)"""
        lines = [i.line for i in owner.flow.blocks[start] if i.line]
        self.step = Step(index, owner.names.of(start), owner.module.place(lines[0]) if lines else "")

    def build(self) -> tuple[str, int] | None:
        o = self.o
        # conditions need values and values (phis) need conditions: both block by block
        self.conditions: dict[tuple[str, str], Node] = {}
        for block in self.order:
            if block == self.start:
                for phi in o.phis(block):
                    self.env[phi.name] = self._register(phi.name, phi.type)
            self.paths = Paths(self.g, self.start, self.order[: self.order.index(block) + 1], self.conditions)
            for at, instruction in enumerate(o.flow.blocks[block]):
                self._instruction(block, at, instruction)
            self.conditions |= edge_conditions(
                o.flow, [block], self.g, lambda b, i, k: self.value(i.operands[k], i.type)
            )
        self.paths = Paths(self.g, self.start, self.order, self.conditions)
        if (conflict := self._conflict()) is not None:
            return conflict
        self._finish()
        return None

    def _conflict(self) -> tuple[str, int] | None:
        """A second use of a port on one path, or a read of a memory after a write."""
        for i, (block, _, a) in enumerate(self.accesses):
            for later, at, b in self.accesses[i + 1 :]:
                same_port = a.port == b.port
                after_write = a.kind == "mwrite" and b.kind == "mread" and _bank(a.port) == _bank(b.port)
                if (same_port or after_write) and (block == later or self.paths.precedes(block, later)):
                    return later, at
        return None

    def _finish(self) -> None:
        o, p = self.o, self.o.process
        for block, _, access in self.accesses:
            reached = self.paths.reached(block)
            access.predicate = self.g.bitwise("and", reached, access.predicate)
            p.accesses.append(access)
            if access.kind in ("sread", "swrite") and (access.port, access.kind) not in self.step.stream_order:
                self.step.stream_order.append((access.port, access.kind))
        for block in self.order:
            for instruction in o.flow.blocks[block]:
                if instruction.name in self.outer and not (instruction.op == "phi" and block == self.start):
                    self._write(
                        instruction.name, instruction.type, self.paths.reached(block), self.env[instruction.name]
                    )
            for child in o.flow.successors(block):
                if child in o.flow.cuts:
                    self._leave(block, child)
            if o.flow.blocks[block][-1].op in ("ret", "unreachable"):
                self._follow(self.paths.reached(block), -1)
        self.step.loop &= all(a.kind != "call" for _, _, a in self.accesses)  # a program waits for what it calls
        p.steps.append(self.step)

    def _leave(self, block: str, child: str) -> None:
        taken = self.paths.edge(block, child)
        if taken.op == "const" and taken.value == 0:
            return
        self._follow(taken, self.starts.index(child))
        self.step.loop |= child == self.start
        for phi in self.o.phis(child):
            value = phi.operands[phi.labels.index(block)]
            if not (isinstance(value, Constant) and value.undefined):  # nobody reads what is there
                self._write(phi.name, phi.type, taken, self.value(value, phi.type))

    def _follow(self, condition: Node, target: int) -> None:
        known = {t: c for c, t in self.step.successors}
        if target in known:
            condition = self.g.bitwise("or", known[target], condition)
        self.step.successors = [(c, t) for c, t in self.step.successors if t != target] + [(condition, target)]

    def _write(self, name: str, type_: str, predicate: Node, value: Node) -> None:
        register = self._register(name, type_)
        if value is not register:
            self.o.process.writes.append(RegisterWrite(str(register.aux), self.index, predicate, value))

    def _register(self, name: str, type_: str) -> Node:
        register, width = self.o.names.of(name), self.o.types.bits(type_)
        self.o.process.registers[register] = width
        return self.g.leaf("reg", register, width)

    # values
    def value(self, operand: Operand, type_: str) -> Node:
        width = self.o.types.bits(type_)
        if isinstance(operand, Constant):
            return self.g.const(operand.value, width)
        assert isinstance(operand, Name), operand
        if operand.text in self.env:
            return self.env[operand.text]
        if operand.text in self.o.parameters:
            name = self.o.names.of(operand.text)
            self.o.process.inputs[name] = width
            self.o.process.formals[operand.text] = name
            return self.g.leaf("input", name, width)
        return self._register(operand.text, type_)

    def _instruction(self, block: str, at: int, i: Instruction) -> None:
        self.g.place = self._place(i)
        if i.type == "ptr" and i.op in ("getelementptr", "select", "phi", "alloca"):
            return
        if i.op in ("br", "switch", "ret", "unreachable", "alloca") or (i.op == "phi" and block == self.start):
            return
        if i.op == "store":
            self._store(block, at, i)
        elif i.op == "call" and not i.callee.startswith("@llvm."):
            self._call(block, at, i)
        elif i.op == "call" and i.callee[1:].startswith(_IGNORED):
            return
        elif i.op == "call" and i.callee.startswith(("@llvm.memcpy", "@llvm.memset")):
            self._copy(block, at, i)
        else:
            self.env[i.name] = self._result(block, at, i)
            if i.name in self.o.hints:
                hint = self.o.hints[i.name]
                self.g.label(self.env[i.name], Label(hint.rank, hint.name))

    def _result(self, block: str, at: int, i: Instruction) -> Node:
        g, op = self.g, i.op
        width = self.o.types.bits(i.type)
        if op == "load":
            return self._load(block, at, i, width)
        if op == "phi":
            taken = [(v, k) for v, k in zip(i.operands, i.labels, strict=True) if (k, block) in self.conditions]
            defined = [(v, k) for v, k in taken if not (isinstance(v, Constant) and v.undefined)]
            return self.paths.join(block, {k: self.value(v, i.type) for v, k in defined or taken})
        if op in ("trunc", "zext", "sext"):
            x = self.value(i.operands[0], i.element)
            return g.slice(x, 0, width) if op == "trunc" else g.zext(x, width) if op == "zext" else g.sext(x, width)
        if op == "select":
            condition, a, b = i.operands
            return g.mux(self.value(condition, "i1"), self.value(a, i.type), self.value(b, i.type))
        if op == "icmp":
            return self._compare(i)
        args = [self.value(o, i.type) for o in i.operands]
        if op in _BINARY:
            return g.bitwise(op, *args)
        if op in _ARITHMETIC:
            return g.arithmetic(op, *args)  # type: ignore[arg-type]
        if op in _SHIFTS:
            return g.shift(op, *args)  # type: ignore[arg-type]
        if op == "freeze":
            return args[0]
        if op == "call":
            return self._intrinsic(i, width)
        raise refuse(
            self.o.module.place(i.line),
            f"the operation '{op}' on {i.type} has no hardware here",
            "division and remainder want a reciprocal or a shift",
        )

    def _compare(self, i: Instruction) -> Node:
        g = self.g
        a, b = (self.value(o, i.element) for o in i.operands)
        p = i.predicate
        if p in ("eq", "ne"):
            found = g.compare("eq", a, b)
            return g.invert(found) if p == "ne" else found
        order = "slt" if p[0] == "s" else "ult"
        if p[1:] in ("gt", "le"):
            a, b = b, a
        found = g.compare(order, a, b)  # type: ignore[arg-type]
        return g.invert(found) if p[1:] in ("ge", "le") else found

    def _intrinsic(self, i: Instruction, width: int) -> Node:
        g = self.g
        found = re.match(r"@llvm\.([a-z.]+?)\.i\d+$", i.callee)
        name = found[1] if found else i.callee
        args = [self.value(o, t) for o, t in zip(i.operands, i.types, strict=True)]
        if name in ("smax", "smin", "umax", "umin"):
            less = g.compare("slt" if name[0] == "s" else "ult", args[0], args[1])
            return g.mux(less, *(args[::-1] if name.endswith("max") else args))
        if name == "abs":
            return g.mux(g.slice(args[0], width - 1, 1), g.arithmetic("sub", g.const(0, width), args[0]), args[0])
        if name == "usub.sat":
            return g.mux(g.compare("ult", args[0], args[1]), g.const(0, width), g.arithmetic("sub", args[0], args[1]))
        if name == "uadd.sat":
            total = g.arithmetic("add", g.zext(args[0], width + 1), g.zext(args[1], width + 1))
            return g.mux(g.slice(total, width, 1), g.const(-1, width), g.slice(total, 0, width))
        if name in ("fshl", "fshr") and args[2].op == "const":
            n = args[2].value % width
            low = n if name == "fshr" else width - n if n else width
            return g.slice(g.concat((args[1], args[0])), low, width)
        if name in ("ctlz", "ctpop"):
            return g.make(name, args[:1], width)
        raise refuse(
            self.o.module.place(i.line),
            f"'{name}' has no hardware here",
            "write it with additions, shifts and comparisons",
        )

    # memory
    def _alternatives(self, i: Instruction, operand: Operand) -> list[tuple[Pointer, Node]]:
        result = []
        for pointer in self.o.resolver.resolve(operand):
            condition = self.g.const(1, 1)
            for c, polarity in pointer.conditions:
                value = self.value(c, "i1")
                condition = self.g.bitwise("and", condition, value if polarity else self.g.invert(value))
            result.append((pointer, condition))
        return result

    def _load(self, block: str, at: int, i: Instruction, width: int) -> Node:
        result: Node | None = None
        for pointer, condition in self._alternatives(i, i.operands[0]):
            value = self._load_from(block, at, i, pointer, condition, width)
            result = value if result is None else self.g.mux(condition, value, result)
        assert result is not None
        return result

    def _load_from(self, block: str, at: int, i: Instruction, pointer: Pointer, condition: Node, width: int) -> Node:
        g, shape = self.g, self.o.shapes.get(pointer.base)
        if isinstance(shape, StreamShape):
            port = self._stream(i, pointer, shape, "in", width)
            self._access(block, at, Access(port, "sread", self.index, condition, place=self._place(i)))
            return g.leaf("read", port, width)
        if isinstance(shape, Memory):
            port, address = self._word(i, pointer, shape, width, "read")
            self._access(block, at, Access(port, "mread", self.index, condition, address, place=self._place(i)))
            return g.low_bits(g.leaf("read", port, 8 * shape.element_bytes), width)
        variable = self.o.module.globals.get(pointer.base)
        if variable is not None and variable.constant:
            rom = self.o.rom(pointer.base)
            if any(scale % (rom.width // 8) for scale, _ in pointer.terms):
                raise refuse(self._place(i), f"a part of an entry of {rom.name} is read", "read whole entries")
            index = self._index(pointer, rom.width // 8, 0)
            word = g.make(
                "rom", (g.low_bits(index, max(1, (len(rom.values) - 1).bit_length())),), rom.width, pointer.base
            )
            return g.low_bits(word, width)
        if self.o.parameters.get(pointer.base) in ("byval", "ptr") and not pointer.terms:
            name = self.o.names.of(pointer.base)
            needed = 8 * pointer.offset + width
            self.o.process.inputs[name] = max(needed, self.o.process.inputs.get(name, 0))
            self.o.process.formals[pointer.base] = name
            return g.leaf("input", f"{name}[{needed - 1}:{8 * pointer.offset}]", width)
        raise refuse(self._place(i), f"a load from {pointer.base} of unknown shape", "pass arrays and streams as such")

    def _store(self, block: str, at: int, i: Instruction) -> None:
        value = self.value(i.operands[0], i.type)
        for pointer, condition in self._alternatives(i, i.operands[1]):
            self._store_to(block, at, i, pointer, condition, value)

    def _store_to(self, block: str, at: int, i: Instruction, pointer: Pointer, condition: Node, value: Node) -> None:
        shape = self.o.shapes.get(pointer.base)
        if isinstance(shape, StreamShape):
            port = self._stream(i, pointer, shape, "out", value.width)
            access = Access(port, "swrite", self.index, condition, data=value, place=self._place(i))
        elif isinstance(shape, Memory):
            port, address = self._word(i, pointer, shape, value.width, "write")
            data = self.g.low_bits(value, 8 * shape.element_bytes)
            access = Access(port, "mwrite", self.index, condition, address, data, place=self._place(i))
        else:
            raise refuse(
                self._place(i),
                f"a store to {pointer.base.strip('%@')}",
                "a process writes streams, arrays and its own variables",
            )
        self._access(block, at, access)

    def _copy(self, block: str, at: int, i: Instruction) -> None:
        """A word copied from memory to memory, or cleared."""
        size = i.operands[2]
        assert isinstance(size, Constant)
        type_ = f"i{8 * size.value}"
        if "memset" in i.callee:
            value = self.g.const(0, 8 * size.value)
            if not (isinstance(i.operands[1], Constant) and i.operands[1].value == 0):
                raise refuse(self._place(i), "a memory is filled with a pattern", "write its words in a loop")
        else:
            load = Instruction("load", type_, [i.operands[1]], line=i.line)
            value = self._load(block, at, load, 8 * size.value)
        for pointer, condition in self._alternatives(i, i.operands[0]):
            self._store_to(block, at, i, pointer, condition, value)

    def _stream(self, i: Instruction, pointer: Pointer, shape: StreamShape, direction: str, width: int) -> str:
        if pointer.terms or pointer.offset % shape.stride:
            raise refuse(
                self._place(i), "a stream is chosen by a variable", "unroll the loop that runs over the streams"
            )
        name = self.o.names.of(pointer.base)
        self.o.process.objects[name] = pointer.base
        port = f"{name}_{pointer.offset // shape.stride}" if shape.lanes != 1 else name
        known = self.o.process.streams.setdefault(port, (direction, width))
        if known != (direction, width):
            raise refuse(
                self._place(i), f"stream {port} is both read and written", "a process reads a stream or writes it"
            )
        return port

    def _word(self, i: Instruction, pointer: Pointer, memory: Memory, width: int, way: str) -> tuple[str, Node]:
        found = bank_of(pointer, memory)
        if found is None or width > 8 * memory.element_bytes:
            raise refuse(
                self._place(i),
                f"an access of {width} bits to {pointer.base.strip('%@')}, which is not one word of one bank",
                "read and write whole words; unroll the loop over the banks",
            )
        bank, constant = found
        name = self.o.names.of(pointer.base)
        self.o.process.memories.setdefault(name, memory)
        self.o.process.objects[name] = pointer.base
        index = self._index(pointer, memory.element_bytes, constant * memory.element_bytes - pointer.offset)
        return f"{name}.{bank}.{way}", self.g.low_bits(index, max(1, (memory.depth - 1).bit_length()))

    def _index(self, pointer: Pointer, element: int, correction: int) -> Node:
        """The word a pointer names; `correction` bytes take the bank's own offset off."""
        total = self.g.const((pointer.offset + correction) // element, 64)
        for scale, operand in pointer.terms:
            term = self.value(operand, "i64")
            total = self.g.arithmetic("add", self.g.arithmetic("mul", term, self.g.const(scale // element, 64)), total)
        return total

    def _access(self, block: str, at: int, access: Access) -> None:
        self.accesses.append((block, at, access))

    def _place(self, i: Instruction) -> str:
        return self.o.module.place(i.line)

    # calls of a program
    def _call(self, block: str, at: int, i: Instruction) -> None:
        if i.callee not in self.o.callees:
            raise refuse(self._place(i), f"a call of {i.callee[1:]}", "only a program or a region calls processes")
        formals = self.o.module.functions[i.callee].parameters
        pointers, scalars, arguments = [], [], []
        for operand, type_, (_, formal) in zip(i.operands, i.types, formals, strict=True):
            if type_ == "ptr":
                (actual,) = self.o.resolver.resolve(operand)
                pointers.append((formal, actual.base))
            else:
                scalars.append((formal, self.o.types.bits(type_)))
                arguments.append(self.value(operand, type_))
        self.o.process.calls.append(Call(i.callee, tuple(pointers), tuple(scalars)))
        site = self.g.const(len(self.o.process.calls) - 1, SITE_BITS)
        access = Access(f"call.{i.callee}", "call", self.index, self.g.const(1, 1), data=site, place=self._place(i))
        access.arguments = tuple(arguments)
        self._access(block, at, access)


def _bank(port: str) -> str:
    return port.rsplit(".", 1)[0]
