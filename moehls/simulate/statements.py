"""A module that moehls generated, as statements: its wires, and its registers with the condition under which each is written.

In goes the text; out comes a `Module`: statements by name, and the lines that are none of them (ports, instances, tables,
control). DSPs become the statements of `moehls/rtl/sv/dsp_slice.sv`, as a simulator would make of them anyway.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z_]\w*")
_DECLARED = re.compile(r"^    (?:\(\*.*?\*\) )?(?:input |output )? ?(?:wire|logic) (?:\[(\d+):0\] )?(\w+)[;,]?$")
OWN = re.compile(r"^    (?:\(\*.*?\*\) )?(?:wire|logic) (?:\[\d+:0\] )?(\w+);$")
_ASSIGN = re.compile(r"^    assign (\w+) = (.+);$")
_WRITE = re.compile(r"^        if (\(.+\)) (\w+) <= (.+);$")
_REGION = re.compile(r"^        if (\(.+\)) begin$")
_PLAIN = re.compile(r"^            (\w+) <= (.+);$")
_SLICE = re.compile(r"^    dsp_slice #\(\.INPUTS\((\d)\), \.CHAINED\((\d)\), \.ADDS\((\d)\)\) (\w+) \($")
_OPERAND = re.compile(
    r"\d+'s?[bdh][0-9a-fA-F_xz]+|\$\w+"
    r"|\{\{\d+\{(?P<extended>[A-Za-z_]\w*)(?:\[\d+\])?\}\}, (?P=extended)(?:\[\d+(?::\d+)?\])?\}"
    r"|(?P<name>[A-Za-z_]\w*)(?:\[\d+(?::\d+)?\])?(?P<table>\[)?"
)
_PART = re.compile(r"\[(\d+)(?::(\d+))?\]\}?$")
_COMMUTES = re.compile(r"\0 [&|^+*] \0")
_OF_A_SLICE = " // of a DSP"
WIDEST = 64
"""bits of a value that a loop computes"""


@dataclass
class Statement:
    """A wire, or the one write of a register.

    Attributes:
        name: what it gives a value.
        width: in bits.
        condition: of a register's write; None: a wire.
        value: the expression.
        line: where it stands.
        form: the expression with a zero character for each operand; a table is part of it.
        operands: name and text of each: the name, a constant part of it, or a part with its sign; where two commute, in the
            order of their names without numbers.
        looks_up: whether it reads a table.
        plain: whether a loop can compute it.
    """

    name: str
    width: int
    condition: str | None
    value: str
    line: int
    form: str
    operands: list[tuple[str, str]]
    looks_up: bool
    plain: bool


@dataclass
class Module:
    """Lines with all DSPs as statements; `rest` are those that are neither comments, statements nor declarations of its own."""

    lines: list[str]
    widths: dict[str, int]
    statements: dict[str, Statement]
    rest: list[str]

    def bits(self, name: str, text: str) -> int:
        """Width of an operand; 0: unknown."""
        part = _PART.search(text)
        bits = self.widths.get(name, 0) if part is None else int(part[1]) - int(part[2] or part[1]) + 1
        return bits + (int(text[2 : text.index("{", 2)]) if text.startswith("{{") else 0)


def read(text: str) -> Module:
    """The module of one file."""
    lines = list(_without_slices(text.splitlines()))
    head = lines.index(");") + 1
    own = [line.removesuffix(_OF_A_SLICE) for line in lines if line.endswith(_OF_A_SLICE)]
    lines = [*lines[:head], *own, *(line for line in lines[head:] if not line.endswith(_OF_A_SLICE))]
    widths = {found[2]: int(found[1] or 0) + 1 for line in lines if (found := _DECLARED.match(line))}
    module = Module(lines, widths, {}, [])
    _sort(module)
    return module


def _sort(module: Module) -> None:
    """Lines to statements and to the rest."""
    lines, rest = module.lines, module.rest
    written = Counter(name for line in lines for name in re.findall(r"(\w+) <= ", line))
    own = {found[1] for line in lines if (found := OWN.match(line))}
    region: tuple[str, int] | None = None
    for number, line in enumerate(lines):
        after = lines[number + 1].lstrip() if number + 1 < len(lines) else ""
        if region is not None:
            if line == "        end":
                condition, first = region
                held = lines[first + 1 : number]
                if not after.startswith("else") and all(_PLAIN.match(one) for one in held):
                    held = [
                        one for n, one in enumerate(held) if not _moved(module, one, condition, first + n, written, own)
                    ]
                rest += [lines[first], *held, line] if held else []
                region = None
        elif OWN.match(line) or (line.lstrip().startswith("//") and "verilator" not in line):
            continue
        elif (found := _ASSIGN.match(line)) and found[1] in own:
            _add(module, found[1], None, found[2], number)
        elif (
            (found := _WRITE.match(line))
            and written[found[2]] == 1
            and found[2] in own
            and not after.startswith("else")
        ):
            _add(module, found[2], found[1], found[3], number)
        elif found := _REGION.match(line):
            region = found[1], number
        else:
            rest.append(line)
    empty = "    always_ff @(posedge clock) begin"
    pairs = list(zip(rest, [*rest[1:], ""], strict=True))
    gone = {n for n, (line, after) in enumerate(pairs) if line == empty and after == "    end"}
    rest[:] = [line for n, line in enumerate(rest) if n not in gone and n - 1 not in gone]


def _moved(module: Module, line: str, condition: str, number: int, written: Counter[str], own: set[str]) -> bool:
    found = _PLAIN.match(line)
    if found is None or written[found[1]] != 1 or found[1] not in own:
        return False
    _add(module, found[1], condition, found[2], number)
    return True


def _add(module: Module, name: str, condition: str | None, value: str, line: int) -> None:
    form: list[str] = []
    operands: list[tuple[str, str]] = []
    looks_up, plain, end = False, True, 0
    for found in _OPERAND.finditer(value):
        operand, text = found["extended"] or found["name"], found[0]
        if operand is None:
            continue
        if found["table"]:
            looks_up = True
            plain &= operand not in module.widths
            continue
        form.append(value[end : found.start()])
        operands.append((operand, text))
        end = found.end()
    form.append(value[end:])
    if _COMMUTES.fullmatch("\0".join(form)):
        operands.sort(key=lambda operand: re.sub(r"\d+", "", operand[0]))
    width = module.widths[name]
    plain &= width <= WIDEST and all(0 < module.bits(*operand) <= WIDEST for operand in operands)
    module.statements[name] = Statement(name, width, condition, value, line, "\0".join(form), operands, looks_up, plain)


def _without_slices(lines: list[str]) -> Iterator[str]:
    """Every DSP as declarations (marked), assignments and writes."""
    source = iter(lines)
    for line in source:
        found = _SLICE.match(line)
        if found is None:
            yield line
            continue
        text = ""
        while (pin := next(source)) != "    );":
            text += pin
        yield from _slice(found[4], _pins(text), int(found[1]), found[2] != "0", int(found[3]))


def _pins(text: str) -> dict[str, str]:
    pins: dict[str, str] = {}
    for found in re.finditer(r"\.(\w+)\(", text):
        depth, end = 1, found.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        pins[found[1]] = text[found.end() : end - 1]
    return pins


def _slice(name: str, pins: dict[str, str], inputs: int, chained: bool, adds: int) -> Iterator[str]:
    def wire(signal: str, width: int, value: str) -> Iterator[str]:
        yield f"    wire [{width - 1}:0] {name}_{signal};"
        yield f"    assign {name}_{signal} = {value};"

    def register(signal: str, width: int, enable: str, value: str) -> Iterator[str]:
        yield f"    logic [{width - 1}:0] {name}_{signal};"
        yield "    always_ff @(posedge clock) begin"
        yield f"        if ({pins[enable]}) {name}_{signal} <= {value};"
        yield "    end"

    def lines() -> Iterator[str]:
        for factor, width in (("a", 27), ("b", 18)):
            yield from wire(f"{factor}_pin", width, pins[factor])
            first = f"{name}_{factor}_pin"
            if inputs == 2:
                yield from register(f"{factor}_first", width, "enable_first", first)
                first = f"{name}_{factor}_first"
            yield from register(f"{factor}_input", width, "enable_input", first)
            sign = 1 << (width - 1)  # x xor 2^n - 2^n takes bit n as the sign
            signed = f"({{{64 - width}'d0, {name}_{factor}_input}} ^ 64'd{sign}) - 64'd{sign}"
            yield from wire(f"{factor}_wide", 64, signed)
        yield from register("product", 64, "enable_product", f"{name}_a_wide * {name}_b_wide")
        total = f"{name}_product[47:0]"
        total = f"{pins['cascade_in']} + {total}" if chained else total
        if adds:
            yield from wire("c_pin", 48, pins["c"])
            if adds == 2:
                yield from register("addend", 48, "enable_addend", f"{name}_c_pin")
            total += f" + {name}_{'c_pin' if adds == 1 else 'addend'}"
        yield from wire("next", 48, total)
        yield from register("total", 48, "enable_sum", f"{name}_next")
        for pin in ("sum", "cascade_out"):
            if pins.get(pin):
                yield f"    assign {pins[pin]} = {name}_total;"

    for line in lines():
        yield line + _OF_A_SLICE if OWN.match(line) else line
