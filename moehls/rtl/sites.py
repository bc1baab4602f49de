"""How many LUT6 sites mapped functions take: a LUT6 of UltraScale+ has two outputs, for two functions of five inputs together.

In goes the netlist of a mapped module; out comes the number of pairs. Two functions pair if they have an input in common
and at most five together, as Vivado's synthesis combines them; what drives a carry chain or a wide multiplexer stays alone. Two
shift registers of up to 16 bits of one length and enable share a LUT as well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from itertools import combinations

Pins = dict[str, list[Hashable]]
_OUTPUT = "O"
_INPUTS = 5
"""of both functions together"""
_LARGEST_FIRST = (5, 4, 3, 2)
_ALONE = {"CARRY4": ("S", "DI"), "CARRY8": ("S", "DI"), "MUXF7": ("I0", "I1"), "MUXF8": ("I0", "I1")}
"""pins whose drivers keep their site"""
_SHIFTS = ("SRL16E",)


def shared_sites(cells: Iterable[tuple[str, Pins]]) -> int:
    """Sites saved: pairs of functions and of shift registers.

    Args:
        cells: (type without backslash, bits a pin, constants as text) of a module's cells.
    """
    cells = list(cells)
    alone = {bit for kind, pins in cells for pin in _ALONE.get(kind, ()) for bit in pins.get(pin, ())}
    functions = []
    shifts: Counter[Hashable] = Counter()
    for kind, pins in cells:
        if kind.startswith("LUT") and pins[_OUTPUT][0] not in alone:
            functions.append(
                frozenset(bits[0] for pin, bits in pins.items() if pin != _OUTPUT and not isinstance(bits[0], str))
            )
        elif kind in _SHIFTS:
            shifts[tuple((pin, *pins.get(pin, ())) for pin in ("CE", "A0", "A1", "A2", "A3"))] += 1
    return _pairs(functions) + sum(n // 2 for n in shifts.values())


def _pairs(functions: list[frozenset[Hashable]]) -> int:
    """Pairs, each function in one at most: those of many inputs choose first, and take who has most in common with them."""
    waiting: dict[tuple[int, frozenset[Hashable]], list[int]] = defaultdict(list)
    for number, inputs in enumerate(functions):
        for share in range(1, len(inputs) + 1):
            for common in _subsets(inputs, share):
                waiting[len(inputs), common].append(number)
    paired: set[int] = set()
    pairs = 0
    for size in _LARGEST_FIRST:
        for number, inputs in enumerate(functions):
            if len(inputs) != size or number in paired:
                continue
            paired.add(number)
            partner = _partner(inputs, waiting, paired)
            if partner is None:
                paired.discard(number)
            else:
                paired.add(partner)
                pairs += 1
    return pairs


def _partner(
    inputs: frozenset[Hashable], waiting: dict[tuple[int, frozenset[Hashable]], list[int]], paired: set[int]
) -> int | None:
    for size in range(min(len(inputs), _INPUTS), 0, -1):
        for common in _subsets(inputs, max(1, len(inputs) + size - _INPUTS)):
            line = waiting.get((size, common), [])
            while line and line[-1] in paired:
                line.pop()
            if line:
                return line.pop()
    return None


def _subsets(inputs: frozenset[Hashable], size: int) -> Iterator[frozenset[Hashable]]:
    return map(frozenset, combinations(sorted(inputs, key=str), size)) if size <= len(inputs) else iter(())
