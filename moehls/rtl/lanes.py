"""Parts of a module that are alike: a lane of a process, wherever it occurs.

In goes the text of a module in yosys's format, word-level, memories aside; out come `Part`s, each a module of its own with how
often it occurs. A part is what hangs together without passing another module or a net with many readers, which is control; its
registers are within it, as shift registers and the enables they share are found over several. So a process of a hundred lanes is
mapped at the cost of one.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

READERS = 8
"""cells that read a net before it counts as control"""
_SMALL = 200
"""cells below which a module is one part"""
_ROUNDS = 3
"""how far, in cells, a neighbourhood reaches that tells one part from another"""
_OUTPUTS = ("Y", "Q", "CO", "X")
Bit = tuple[str, int] | str
"""of a wire, or a constant"""


@dataclass(frozen=True)
class Part:
    """A module that stands for `count` alike parts."""

    name: str
    text: str
    count: int


@dataclass
class _Cell:
    kind: str
    number: int
    head: list[str]
    """attributes aside: its parameters"""
    pins: dict[str, list[Bit]]


def parts(name: str, text: str) -> list[Part]:
    """The distinct parts of a module; the module whole where it is small or holds a memory."""
    cells, widths, ports, aliases = _read(text)
    if len(cells) < _SMALL or any(cell.kind.startswith("$mem") for cell in cells):
        return [Part(f"{name}_part0", text.replace(f"module \\{name}\n", f"module \\{name}_part0\n", 1), 1)]
    for cell in cells:
        for pin, bits in cell.pins.items():
            cell.pins[pin] = [_root(aliases, bit) for bit in bits]
    own = [cell for cell in cells if cell.kind.startswith("$")]
    outside = {_root(aliases, (wire, i)) for wire in ports for i in range(widths[wire])}
    outside |= {bit for cell in cells if not cell.kind.startswith("$") for pin in cell.pins.values() for bit in pin}
    driven = outside.union(*(cell.pins.get(pin, ()) for cell in own for pin in _OUTPUTS))
    for cell in own:  # entries that a table does not have
        for pin, bits in cell.pins.items():
            cell.pins[pin] = [bit if isinstance(bit, str) or bit in driven else "1'x" for bit in bits]
    readers: dict[Bit, set[int]] = defaultdict(set)
    for k, cell in enumerate(own):
        for pin, bits in cell.pins.items():
            if pin not in _OUTPUTS:
                for bit in bits:
                    readers[bit].add(k)
    groups = _joined(own, readers, outside)
    alike: dict[Hashable, list[list[int]]] = defaultdict(list)
    kinds = [tuple(sorted(Counter(_label(own[k]) for k in group).items())) for group in groups]
    repeated = Counter(kinds)
    for group, kind in zip(groups, kinds, strict=True):
        alike[_structure([own[k] for k in group]) if repeated[kind] > 1 else kind].append(group)
    bodies = [
        (_rendered([own[k] for k in same[0]], set(same[0]), readers, outside), len(same)) for same in alike.values()
    ]
    return [
        Part(f"{name}_part{i}", f"module \\{name}_part{i}\n{body}end\n", count)
        for i, (body, count) in enumerate(sorted(bodies))
    ]


def cells_in(text: str) -> list[tuple[str, dict[str, list[Hashable]]]]:
    """(type, bits a pin) of every cell of a module, each net by one name."""
    cells, _, _, aliases = _read(text)
    return [
        (cell.kind.removeprefix("\\"), {pin: [_root(aliases, bit) for bit in bits] for pin, bits in cell.pins.items()})
        for cell in cells
    ]


def _joined(own: Sequence[_Cell], readers: dict[Bit, set[int]], outside: set[Bit]) -> list[list[int]]:
    """Cells that hang together, in the order of the first of each."""
    up = list(range(len(own)))

    def top(k: int) -> int:
        while up[k] != k:
            up[k] = up[up[k]]
            k = up[k]
        return k

    for k, cell in enumerate(own):
        for pin in _OUTPUTS:
            for bit in cell.pins.get(pin, ()):
                reading = readers.get(bit, set())
                if not isinstance(bit, str) and bit not in outside and len(reading) < READERS:
                    for other in reading:
                        up[top(other)] = top(k)
    groups: dict[int, list[int]] = defaultdict(list)
    for k in sorted(range(len(own)), key=lambda k: own[k].number):
        groups[top(k)].append(k)
    return list(groups.values())


def _structure(cells: Sequence[_Cell]) -> tuple[tuple[int, int], ...]:
    """What parts that are alike have in common: how often each neighbourhood of a cell occurs (Weisfeiler and Leman 1968).

    The names and the order of cells and nets play no part, as lanes of one loop are not always written in one order.
    """
    labels = [_label(cell) for cell in cells]
    pins = [
        [(zlib.crc32(f"{pin} {i}".encode()), bit) for pin, bits in cell.pins.items() for i, bit in enumerate(bits)]
        for cell in cells
    ]
    nets: dict[Bit, int] = {}
    for _ in range(_ROUNDS):
        sums: dict[Bit, int] = defaultdict(int)
        for label, own in zip(labels, pins, strict=True):
            for pin, bit in own:
                if isinstance(bit, str):
                    nets[bit] = zlib.crc32(bit.encode())
                else:
                    sums[bit] += _mixed(label, pin)
        nets.update((bit, _mixed(total, 1)) for bit, total in sums.items())
        labels = [
            _mixed(label, sum(_mixed(nets[bit], pin) for pin, bit in own))
            for label, own in zip(labels, pins, strict=True)
        ]
    return tuple(sorted(Counter(labels).items()))


def _label(cell: _Cell) -> int:
    return zlib.crc32("\n".join([cell.kind, *cell.head]).encode())


def _mixed(a: int, b: int) -> int:
    """A number of 61 bits that depends on both."""
    return ((a * 0x9E3779B97F4A7C15 + b) ^ (a >> 29) ^ (b << 7)) * 0xBF58476D1CE4E5B9 % 0x1FFFFFFFFFFFFFFF


def _rendered(cells: Sequence[_Cell], group: set[int], readers: dict[Bit, set[int]], outside: set[Bit]) -> str:
    """The body of a part's module, the same text for alike parts."""
    numbers: dict[Bit, int] = {}
    driven: dict[Bit, None] = {}
    body: list[str] = []
    for i, cell in enumerate(cells):
        body += [f"  cell {cell.kind} \\c{i}", *cell.head]
        for pin, bits in cell.pins.items():
            for bit in bits:
                if not isinstance(bit, str):
                    numbers.setdefault(bit, len(numbers))
            if pin in _OUTPUTS:
                driven.update(dict.fromkeys(bits))
            signal = " ".join(bit if isinstance(bit, str) else f"\\n{numbers[bit]}" for bit in reversed(bits))
            body.append(f"    connect \\{pin} {{ {signal} }}")
        body.append("  end")
    wires, port = [], 0
    for bit, number in numbers.items():
        way = ""
        if bit not in driven or bit in outside or readers.get(bit, set()) - group:
            port += 1
            way = f"{'output' if bit in driven else 'input'} {port} "
        wires.append(f"  wire {way}\\n{number}")
    return "\n".join([*wires, *body]) + "\n"


def _root(aliases: dict[Bit, Bit], bit: Bit) -> Bit:
    while bit in aliases:
        bit = aliases[bit]
    return bit


def _read(text: str) -> tuple[list[_Cell], dict[str, int], list[str], dict[Bit, Bit]]:
    """Cells, widths of wires, wires that are ports, and what a bit is connected to."""
    cells: list[_Cell] = []
    widths: dict[str, int] = {}
    ports: list[str] = []
    aliases: dict[Bit, Bit] = {}
    cell: _Cell | None = None
    for line in text.splitlines():
        words = line.split()
        if line.startswith("  wire "):
            widths[words[-1]] = int(words[words.index("width") + 1]) if "width" in words else 1
            if "input" in words or "output" in words:
                ports.append(words[-1])
        elif line.startswith("  cell "):
            number = re.search(r"\d+$", words[2])
            cell = _Cell(words[1], int(number[0]) if number else 0, [], {})
            cells.append(cell)
        elif line.startswith("  connect "):
            target, source = _two(words[1:], widths)
            aliases.update((a, b) for a, b in zip(target, source, strict=True) if not isinstance(a, str) and a != b)
        elif cell is not None and line.startswith("    parameter "):
            cell.head.append(line)
        elif cell is not None and line.startswith("    connect "):
            cell.pins[words[1].removeprefix("\\")] = _signal(words[2:], widths)
    return cells, widths, ports, aliases


def _two(tokens: Sequence[str], widths: dict[str, int]) -> tuple[list[Bit], list[Bit]]:
    """Both sides of a connection."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token == "{") - (token == "}")
        if depth == 0 and not (i + 1 < len(tokens) and tokens[i + 1].startswith("[")):
            return _signal(tokens[: i + 1], widths), _signal(tokens[i + 1 :], widths)
    raise AssertionError(tokens)


def _signal(tokens: Sequence[str], widths: dict[str, int]) -> list[Bit]:
    """Bits of a signal, the lowest first."""
    pieces: list[list[Bit]] = []
    for token in tokens:
        if token in "{}":
            continue
        if token.startswith("["):
            high, _, low = token[1:-1].partition(":")
            pieces[-1] = pieces[-1][int(low or high) : int(high) + 1]
        elif "'" in token and not token.startswith(("\\", "$")):
            width, digits = token.split("'")
            digits = digits.removeprefix("s")
            fill = digits[0] if digits[0] in "xz" else "0"  # one digit may stand for all
            pieces.append([f"1'{digit}" for digit in reversed(digits.rjust(int(width), fill))])
        elif token.removeprefix("-").isdigit():  # of 32 bits
            pieces.append([f"1'{int(token) >> i & 1}" for i in range(32)])
        else:
            pieces.append([(token, i) for i in range(widths[token])])
    return [bit for piece in reversed(pieces) for bit in piece]
