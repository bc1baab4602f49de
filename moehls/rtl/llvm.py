"""LLVM's functions of basic blocks, as far as the generator needs them: instructions, operands, globals, sizes of types.

`llvm_text.parse` reads them. Types are kept as text; `Types` gives sizes and element types.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from moehls.errors import MoehlsError


@dataclass(frozen=True)
class Constant:
    """An integer constant; undefined values are 0, where they are read."""

    value: int
    undefined: bool = False


@dataclass(frozen=True)
class Name:
    """A local (%…) or global (@…) value."""

    text: str


@dataclass(frozen=True)
class GepConstant:
    """A constant address: a global plus bytes."""

    base: Name
    offset: int


Operand = Constant | Name | GepConstant
LIBRARY = ("ap_int.h", "hls_stream.h", "hls_fibers.h")
"""headers whose functions are not the user's"""


@dataclass
class Instruction:
    """One instruction. `type` is its result's type (of a store or branch: the operand's), `operands` in LLVM's order.

    `labels` of a branch, a switch (with `operands[1:]` the case values, the default label first) or a phi; `callee` of a call;
    `predicate` of a comparison; `element` the type a GEP indexes, an alloca allocates or a cast comes from.
    """

    op: str
    type: str
    operands: list[Operand]
    name: str = ""
    labels: list[str] = field(default_factory=list)
    callee: str = ""
    predicate: str = ""
    element: str = ""
    types: list[str] = field(default_factory=list)
    volatile: bool = False
    line: int = 0
    """metadata number of its place in the source"""


@dataclass
class Block:
    name: str
    instructions: list[Instruction] = field(default_factory=list)


@dataclass
class Function:
    name: str
    parameters: list[tuple[str, str]]
    """(type, name)"""
    blocks: list[Block] = field(default_factory=list)
    subprogram: int = 0
    variables: list[Variable] = field(default_factory=list)
    """what debug information says, in the order of the text"""


@dataclass(frozen=True)
class Variable:
    """From here on a variable of the source is the value `operand`, or the number; all else are numbers of metadata."""

    operand: str
    variable: int
    expression: str
    location: int


@dataclass
class Global:
    name: str
    type: str
    constant: bool
    initialiser: str


@dataclass
class Module:
    types: Types
    globals: dict[str, Global]
    functions: dict[str, Function]
    metadata: dict[int, str]
    _places: dict[int, str] = field(default_factory=dict)

    def place(self, line: int) -> str:
        """`file:line` of a debug location, "" where there is none; of what the library inlined, where it was called."""
        if line not in self._places:
            self._places[line] = self._place(line)
        return self._places[line]

    def _place(self, line: int) -> str:
        text = self.metadata.get(line, "")
        found = re.search(r"line: (\d+).*scope: !(\d+)", text)
        if not found:
            return ""
        scope = self.metadata.get(int(found[2]), "")
        while "file: !" not in scope and (up := re.search(r"scope: !(\d+)", scope)):
            scope = self.metadata.get(int(up[1]), "")
        file = re.search(r"file: !(\d+)", scope)
        name = re.search(r'filename: "([^"]*)"', self.metadata.get(int(file[1]), "")) if file else None
        shown = name[1].split("/")[-1] if name else "?"
        caller = re.search(r"inlinedAt: !(\d+)", text)
        return self.place(int(caller[1])) if caller and shown in LIBRARY else f"{shown}:{found[1]}".removesuffix(":0")

    def source_name(self, function: str) -> str:
        """The name a function has in the source."""
        found = re.search(r'name: "([^"]*)"', self.metadata.get(self.functions[function].subprogram, ""))
        return found[1] if found else function


class Types:
    """Sizes in bytes and layouts of the module's types (x86-64 data layout)."""

    def __init__(self, structs: dict[str, str]) -> None:
        self.structs = structs
        self._sizes: dict[str, tuple[int, int]] = {}

    def bits(self, text: str) -> int:
        if text == "ptr":
            return 64
        if not re.fullmatch(r"i\d+", text):
            raise MoehlsError(f"a value of type {text} has no place in hardware; use ap_int and ap_uint")
        return int(text[1:])

    def array(self, text: str) -> tuple[int, str] | None:
        """(count, element type) of an array type."""
        found = re.fullmatch(r"\[(\d+) x (.*)\]", text)
        return (int(found[1]), found[2]) if found else None

    def members(self, text: str) -> list[str]:
        body = self.structs.get(text, text).strip()
        if self.packed(text):
            body = body[1:-1].strip()
        return split(body[1:-1].strip()) if body.startswith("{") else []

    def packed(self, text: str) -> bool:
        return self.structs.get(text, text).lstrip().startswith("<{")

    def size(self, text: str) -> int:
        return self._layout(text)[0]

    def offset(self, text: str, member: int) -> int:
        at = 0
        for i, m in enumerate(self.members(text)):
            size, align = self._layout(m)
            align = 1 if self.packed(text) else align
            at = -(-at // align) * align
            if i == member:
                return at
            at += size
        raise MoehlsError(f"type {text} has no member {member}")

    def _layout(self, text: str) -> tuple[int, int]:
        if text not in self._sizes:
            self._sizes[text] = self._compute(text)
        return self._sizes[text]

    def _compute(self, text: str) -> tuple[int, int]:
        if text == "ptr":
            return 8, 8
        if re.fullmatch(r"i\d+", text):
            bits = int(text[1:])
            stored = (bits + 7) // 8
            align = min(16 if bits > 64 else 8, 1 << (stored - 1).bit_length())
            return -(-stored // align) * align, align
        if array := self.array(text):
            size, align = self._layout(array[1])
            return array[0] * size, align
        at, most = 0, 1
        for m in self.members(text):
            size, align = self._layout(m)
            align = 1 if self.packed(text) else align
            at = -(-at // align) * align + size
            most = max(most, align)
        return -(-at // most) * most, most


def split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, start, quoted = [], 0, 0, False
    for i, c in enumerate(text):
        if c == '"':
            quoted = not quoted
        elif quoted:
            continue
        elif c in "([{<":
            depth += 1
        elif c in ")]}>":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
