"""Where a pointer points: the object, and the element as constant bytes plus scaled indices.

A pointer parameter's shape comes from the caller, since LLVM's pointers carry no type.
"""

from __future__ import annotations

from dataclasses import dataclass

from moehls.rtl.ir import Memory, refuse
from moehls.rtl.llvm import Constant, GepConstant, Instruction, Module, Name, Operand


@dataclass(frozen=True)
class StreamShape:
    """A stream or an array of streams, `stride` bytes apart."""

    stride: int
    lanes: int
    depth: int = 0


@dataclass(frozen=True)
class MasterShape:
    """Memory behind the AXI master of the kernel's argument `argument`."""

    argument: str


Shape = StreamShape | Memory | MasterShape


@dataclass(frozen=True)
class Pointer:
    """`offset` + sum of scale·index bytes into the object `base`, where `condition` (an operand, and its polarity) holds."""

    base: str
    offset: int
    terms: tuple[tuple[int, Operand], ...] = ()
    conditions: tuple[tuple[Operand, bool], ...] = ()


class Resolver:
    """Follows the addresses of one function."""

    def __init__(self, module: Module, definitions: dict[str, Instruction]) -> None:
        self.types = module.types
        self.definitions = definitions
        self.place = module.place
        self._known: dict[str, tuple[Pointer, ...]] = {}

    def resolve(self, operand: Operand) -> tuple[Pointer, ...]:
        """The alternatives, told apart by their conditions."""
        if isinstance(operand, GepConstant):
            return (Pointer(operand.base.text, operand.offset),)
        assert isinstance(operand, Name), operand
        if operand.text not in self.definitions:
            return (Pointer(operand.text, 0),)
        if operand.text not in self._known:
            self._known[operand.text] = self._follow(self.definitions[operand.text])
        return self._known[operand.text]

    def _follow(self, instruction: Instruction) -> tuple[Pointer, ...]:
        if instruction.op == "alloca":
            return (Pointer(instruction.name, 0),)
        if instruction.op == "getelementptr":
            offset, terms = self._steps(instruction)
            return tuple(
                Pointer(p.base, p.offset + offset, p.terms + terms, p.conditions)
                for p in self.resolve(instruction.operands[0])
            )
        if instruction.op == "select":
            condition, a, b = instruction.operands
            return tuple(
                Pointer(p.base, p.offset, p.terms, (*p.conditions, (condition, polarity)))
                for side, polarity in ((a, True), (b, False))
                for p in self.resolve(side)
            )
        raise refuse(
            self.place(instruction.line),
            f"an address comes from '{instruction.op}'",
            "index one array, and choose between values instead of between pointers",
        )

    def _steps(self, gep: Instruction) -> tuple[int, tuple[tuple[int, Operand], ...]]:
        offset, terms = 0, []
        type_ = gep.element
        for i, index in enumerate(gep.operands[1:]):
            if i > 0:
                array = self.types.array(type_)
                if array is None:
                    assert isinstance(index, Constant)
                    offset += self.types.offset(type_, index.value)
                    type_ = self.types.members(type_)[index.value]
                    continue
                type_ = array[1]
            scale = self.types.size(type_)
            if isinstance(index, Constant):
                offset += scale * index.value
            else:
                more, found = self._terms(scale, index)
                offset += more
                terms += found
        return offset, tuple(terms)

    def _terms(self, scale: int, index: Operand) -> tuple[int, list[tuple[int, Operand]]]:
        """scale·index as bytes and terms: LLVM multiplies an index by its word's size before it adds."""
        definition = self.definitions.get(index.text) if isinstance(index, Name) else None
        if definition is None or definition.type != "i64" or definition.op not in ("mul", "shl", "add"):
            return 0, [(scale, index)]
        a, b = definition.operands
        if definition.op == "add":
            offset, terms = self._terms(scale, a)
            if isinstance(b, Constant):
                return offset + scale * b.value, terms
            more, others = self._terms(scale, b)
            return offset + more, terms + others
        if isinstance(b, Constant):
            return self._terms(scale * b.value if definition.op == "mul" else scale << b.value, a)
        return 0, [(scale, index)]


def object_shape(module: Module, type_: str, name: str, storage: str = "") -> Shape | None:
    """The shape of a declared object: a stream, an array of streams, or a memory; None for anything else."""
    types = module.types
    dimensions: list[int] = []
    inner = type_
    while array := types.array(inner):
        if array[1] == "i8":
            break
        dimensions.append(array[0])
        inner = array[1]
    lanes = 1
    if "hls::stream" in inner:
        for d in dimensions:
            lanes *= d
        padding = [types.array(m) for m in types.members(inner)[1:2]]
        depth = padding[0][0] if padding and padding[0] else 0
        return StreamShape(types.size(inner), lanes, depth)
    if not dimensions:
        return None
    for d in dimensions[:-1]:
        lanes *= d
    size = types.size(inner)
    return Memory(name, lanes, dimensions[-1], size, 8 * size, storage)


def bank_of(pointer: Pointer, memory: Memory) -> tuple[int, int] | None:
    """(bank, constant part of the index), or None where it is not one word of a constant bank."""
    row = memory.depth * memory.element_bytes
    if any(scale % memory.element_bytes for scale, _ in pointer.terms):
        return None
    if any(scale % row == 0 and memory.banks > 1 for scale, _ in pointer.terms):
        return None
    slack = row // 2 if pointer.terms else 0
    bank = min(max((pointer.offset + slack) // row, 0), memory.banks - 1)
    inside = pointer.offset - bank * row
    return (bank, inside // memory.element_bytes) if inside % memory.element_bytes == 0 else None
