"""And-inverter graphs with registers: read what yosys writes (AIGER, its map of names), join two, write one for ABC.

A literal is twice a variable's number, plus one where it is inverted; 0 and 1 are the constants. A bit is (name, index).
Every register starts at zero: yosys inverts those that start at one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Bit = tuple[str, int]


@dataclass(frozen=True)
class Netlist:
    """One module: its variables are inputs, then registers, then conjunctions, from 1 on.

    Attributes:
        inputs: name of each input.
        registers: name of each register; one that is kept inverted has a `~` in front.
        nexts: literal that each register takes.
        ands: two literals of each conjunction.
        outputs: literal of each output.
    """

    inputs: tuple[Bit, ...]
    registers: tuple[Bit, ...]
    nexts: tuple[int, ...]
    ands: tuple[tuple[int, int], ...]
    outputs: Mapping[Bit, int]


def read(graph: Path, names: Path) -> Netlist:
    """A binary AIGER file and the map that `write_aiger -zinit -map` wrote beside it."""
    data = graph.read_bytes()
    header, _, rest = data.partition(b"\n")
    _, _, inputs, latches, outputs, ands = header.split()[:6]
    lines = rest.split(b"\n", int(latches) + int(outputs))
    numbers = [int(line.split()[0]) for line in lines[:-1]]
    found: dict[str, dict[int, Bit]] = {"input": {}, "latch": {}, "output": {}}
    for line in names.read_text().splitlines():
        kind, number, index, name = line.split(" ", 3)
        sign = "~" if kind == "invlatch" else ""
        if kind.removeprefix("inv") in found:
            found[kind.removeprefix("inv")][int(number)] = (sign + name, int(index))
    return Netlist(
        tuple(found["input"][n] for n in range(int(inputs))),
        tuple(found["latch"][n] for n in range(int(latches))),
        tuple(numbers[: int(latches)]),
        tuple(_conjunctions(lines[-1], int(inputs) + int(latches) + 1, int(ands))),
        {found["output"][n]: literal for n, literal in enumerate(numbers[int(latches) :]) if n in found["output"]},
    )


def _conjunctions(data: bytes, first: int, count: int) -> list[tuple[int, int]]:
    """AIGER's differences, seven bits a byte."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while data[at] & 0x80:
            value |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        value |= data[at] << shift
        at += 1
        return value

    found = []
    for n in range(count):
        larger = 2 * (first + n) - number()
        found.append((larger, larger - number()))
    return found


@dataclass
class Graph:
    """A graph in the making, in which equal conjunctions are one."""

    kinds: list[tuple[int, int] | Bit | None] = field(default_factory=lambda: [None])
    """of each variable: what it joins, or the name of an input or register"""
    nexts: dict[int, int] = field(default_factory=dict)
    """register's variable -> literal that it takes"""
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def variable(self, name: Bit) -> int:
        """The literal of a new input, or register where `nexts` gets it."""
        self.kinds.append(name)
        return 2 * (len(self.kinds) - 1)

    def both(self, a: int, b: int) -> int:
        """a & b."""
        a, b = max(a, b), min(a, b)
        if b == 0 or a == b ^ 1:
            return 0
        if b == 1 or a == b:
            return a
        if (a, b) not in self._known:
            self.kinds.append((a, b))
            self._known[a, b] = 2 * (len(self.kinds) - 1)
        return self._known[a, b]

    def either(self, a: int, b: int) -> int:
        """a | b."""
        return self.both(a ^ 1, b ^ 1) ^ 1

    def differ(self, a: int, b: int) -> int:
        """a ^ b."""
        if a == b:
            return 0
        return self.either(self.both(a, b ^ 1), self.both(a ^ 1, b))

    def add(self, netlist: Netlist, inputs: Mapping[Bit, int], registers: Mapping[Bit, int]) -> list[int]:
        """The module's logic over these literals: the literal of each of its variables."""
        literals = [0, *(inputs[bit] for bit in netlist.inputs), *(registers[bit] for bit in netlist.registers)]
        for a, b in netlist.ands:
            literals.append(self.both(literals[a >> 1] ^ (a & 1), literals[b >> 1] ^ (b & 1)))
        return literals

    def run(self, inputs: Sequence[str]) -> Iterator[list[bool]]:
        """The values of all variables in every cycle, from `inputs` on: a digit each of those in order, a text a cycle."""
        state = dict.fromkeys(self.nexts, False)
        for digits in inputs:
            given = iter(digits)
            values: list[bool] = []
            for n, kind in enumerate(self.kinds):
                if kind is None:
                    values.append(False)
                elif isinstance(kind[0], str):
                    values.append(state[n] if n in state else next(given) == "1")
                else:
                    a, b = kind
                    values.append(values[a >> 1] != bool(a & 1) and values[int(b) >> 1] != bool(b & 1))
            yield values
            state = {n: values[literal >> 1] != bool(literal & 1) for n, literal in self.nexts.items()}

    def write(self, path: Path, output: int) -> None:
        """The graph as AIGER with one output."""
        registers = list(self.nexts)
        inputs = [n for n, kind in enumerate(self.kinds) if kind and isinstance(kind[0], str) and n not in self.nexts]
        ands = [n for n, kind in enumerate(self.kinds) if kind and isinstance(kind[0], int)]
        order = {n: at for at, n in enumerate([0, *inputs, *registers, *ands])}

        def literal(old: int) -> int:
            return 2 * order[old >> 1] + (old & 1)

        head = f"aig {len(order) - 1} {len(inputs)} {len(registers)} 1 {len(ands)}\n"
        lines = [f"{literal(self.nexts[n])}\n" for n in registers] + [f"{literal(output)}\n"]
        body = bytearray((head + "".join(lines)).encode())
        for n in ands:
            a, b = sorted((literal(self.kinds[n][0]), literal(self.kinds[n][1])), reverse=True)  # type: ignore[index,arg-type]
            for difference in (2 * order[n] - a, a - b):
                while difference >= 0x80:
                    body.append(difference & 0x7F | 0x80)
                    difference >>= 7
                body.append(difference)
        path.write_bytes(bytes(body))
