"""What LLVM's debug information says of a function's values: the C++ variable each of them is, and its place in the source.

In go a parsed module and one of its functions; out come names, by LLVM value. A member of a struct is `variable_member`, an
element of an array `variable_2`; in an unrolled loop the loop's variables follow (`product_1_3`), outermost first. Inlined
functions give names where the caller has none. The classes of integers and streams are no source of anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from moehls.rtl.llvm import LIBRARY, Function, Module

_CONVERSIONS = re.compile(
    r"(DW_OP_LLVM_convert, \d+, DW_ATE_\w+(, )?|DW_OP_stack_value|DW_OP_LLVM_fragment, \d+, \d+)+"
)
_WRAPPERS = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type")


@dataclass(frozen=True, order=True)
class Hint:
    """A name for a value; the lowest `rank` is the best: how deep the variable's function was inlined, then how exact it is."""

    rank: int
    name: str


@dataclass(frozen=True)
class Variables:
    """Reads the debug information of a module."""

    module: Module

    def hints(self, function: Function) -> dict[str, Hint]:
        """Names of the function's values, by LLVM name; the best one each."""
        found: dict[str, Hint] = {}
        constants: dict[tuple[int, int], int] = {}
        for record in function.variables:
            inlined = self._number("inlinedAt", record.location)
            key = (record.variable, inlined)
            constants.pop(key, None)
            if not record.operand.startswith("%"):
                if self._is_counter(record.variable) and not record.expression:
                    constants[key] = int(record.operand)
                continue
            hint = self._hint(record.variable, record.expression, inlined, constants)
            if hint is not None and (record.operand not in found or hint.rank < found[record.operand].rank):
                found[record.operand] = hint
        return found

    def _hint(self, variable: int, expression: str, inlined: int, constants: dict[tuple[int, int], int]) -> Hint | None:
        text = self._text(variable)
        name = re.search(r'name: "([^"]*)"', text)
        if name is None or name[1] == "this" or (expression and not _CONVERSIONS.fullmatch(expression)):
            return None
        fragment = re.search(r"DW_OP_LLVM_fragment, (\d+), (\d+)", expression)
        parts = self._part(_reference("type", text), int(fragment[1])) if fragment else []
        loops = self._loops(_reference("scope", text), inlined, constants)
        depth = len(list(self._callers(inlined)))
        return Hint(2 * depth + ("convert" in expression), "_".join([name[1], *parts, *loops]))

    def _part(self, type_: int, bit: int) -> list[str]:
        """The member or element at a bit of a type."""
        text = self._text(type_)
        while any(wrapper in text for wrapper in _WRAPPERS):
            text = self._text(_reference("baseType", text))
        elements = [int(n) for n in re.findall(r"!(\d+)", self._text(_reference("elements", text)))]
        if "DW_TAG_array_type" in text:
            counts = [int(n[1]) for e in elements if (n := re.search(r"count: (\d+)", self._text(e)))]
            left = _value("size", text)
            indices: list[str] = []
            for count in counts:
                left //= count or 1
                indices.append(str(bit // left) if left else "0")
                bit -= int(indices[-1]) * left
            return indices + self._part(_reference("baseType", text), bit)
        if "DW_TAG_structure_type" not in text or self._is_library(_reference("file", text)):
            return []
        for element in elements:
            member = self._text(element)
            name = re.search(r'name: "([^"]*)"', member)
            start, size = _value("offset", member), _value("size", member)
            if "DW_TAG_member" in member and name and start <= bit < start + size:
                return [name[1], *self._part(_reference("baseType", member), bit - start)]
        return []

    def _loops(self, scope: int, inlined: int, constants: dict[tuple[int, int], int]) -> list[str]:
        """The unrolled loops around a scope, outermost first: the values their variables have."""
        found: list[str] = []
        for place, at in [(scope, inlined), *self._callers(inlined)]:
            blocks = set(self._blocks(place))
            here = [(v, value) for (v, i), value in constants.items() if i == at and self._scope(v) in blocks]
            found += [str(value) for _, value in sorted(here, reverse=True)]
        return found[::-1]

    def _callers(self, inlined: int) -> Iterator[tuple[int, int]]:
        """Scope of each call that was inlined, and where that was inlined itself, from the inside."""
        while inlined:
            text = self._text(inlined)
            inlined = _reference("inlinedAt", text)
            yield _reference("scope", text), inlined

    def _blocks(self, scope: int) -> Iterator[int]:
        while "DILexicalBlock" in self._text(scope):
            yield scope
            scope = _reference("scope", self._text(scope))

    def _is_counter(self, variable: int) -> bool:
        """Whether a variable is declared by a `for`: in a block of its own line."""
        text, block = self._text(variable), self._text(self._scope(variable))
        return "DILexicalBlock" in block and _value("line", block) == _value("line", text)

    def _scope(self, variable: int) -> int:
        return _reference("scope", self._text(variable))

    def _number(self, key: str, node: int) -> int:
        return _reference(key, self._text(node))

    def _is_library(self, file: int) -> bool:
        return file in self._library

    @cached_property
    def _library(self) -> frozenset[int]:
        return frozenset(
            number
            for number, text in self.module.metadata.items()
            if text.startswith("!DIFile") and any(f'{name}"' in text for name in LIBRARY)
        )

    def _text(self, node: int) -> str:
        return self.module.metadata.get(node, "")


def without_library(text: str) -> str:
    """LLVM's text of a module before its passes, without the variables of the library's functions: they are most of all."""
    files = dict(re.findall(r'^!(\d+) = !DIFile\(filename: "([^"]*)"', text, re.M))
    library = {number for number, name in files.items() if name.endswith(LIBRARY)}
    programs = re.findall(r"^!(\d+) = distinct !DISubprogram\(.*?file: !(\d+)", text, re.M)
    theirs = {number for number, file in programs if file in library}
    kept, skip = [], False
    for line in text.splitlines():
        if line.startswith("define "):
            found = re.search(r"!dbg !(\d+)", line)
            skip = found is not None and found[1] in theirs
        if not (skip and line.startswith("    #dbg_declare")):
            kept.append(line)
    return "\n".join(kept)


def _reference(key: str, text: str) -> int:
    found = re.search(rf"\b{key}: !(\d+)", text)
    return int(found[1]) if found else 0


def _value(key: str, text: str) -> int:
    found = re.search(rf"\b{key}: (\d+)", text)
    return int(found[1]) if found else 0
