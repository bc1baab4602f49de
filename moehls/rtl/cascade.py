"""Sums of products as DSPs: which sums, and how the DSPs of one are chained.

A DSP48E2 multiplies 27 by 18 bits and adds two more numbers: the sum of its neighbour (PCIN, wires of the column) and one through
its C port. So a sum of products needs no adder outside the DSPs, and neither does a term beside them. In go the terms of a sum,
out comes a "dot" node, whose operands are the factors, two a product, and the addend; and the layout by which it is built and
scheduled: chains of up to `CHAIN` DSPs, the sums of whole chains added through C ports. Every register of the DSPs is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from moehls.rtl.graph import Graph, Node

CHAIN = 4
"""DSPs that follow each other: each adds a cycle later than the one before, so its factors are wanted a cycle later"""
FIRST = 2
"""cycles from the factors' arrival to the addition: a register at the factors, one behind the product"""
LARGE, SMALL, SUM = 27, 18, 48
"""bits of the two factors and of the sum, signed"""
_LEAST = 4
"""bits of the smaller factor from which a product is worth a DSP"""


@dataclass(frozen=True)
class Slot:
    """The DSP of one product of a sum."""

    adds: int
    """cycle of its addition, counted from the arrival of the first factors"""
    chained: bool
    """adds the sum of the slot before it"""
    other: int | None
    """the slot whose sum it adds through its C port"""
    addend: bool = False
    """adds the addend of the whole sum"""

    @property
    def inputs(self) -> int:
        """Registers at the factors: the second waits for the neighbour."""
        return 1 if self.adds == FIRST else 2

    @property
    def factors(self) -> int:
        """Cycle in which the factors are wanted."""
        return self.adds - FIRST - (self.inputs - 1)


@cache
def layout(products: int) -> tuple[Slot, ...]:
    """The slots of a sum; the last one has the whole sum, the cycle after its addition."""
    slots: list[Slot] = []
    last = FIRST + min(products, CHAIN) - 1
    while _capacity(last) < products:
        last += 1
    _lay(slots, products, last)
    free = max((i for i, slot in enumerate(slots) if slot.other is None), key=lambda i: slots[i].adds)
    slots[free] = Slot(slots[free].adds, slots[free].chained, None, addend=True)
    return tuple(slots)


def _capacity(last: int) -> int:
    """Products that can be summed by a cycle."""
    if last < FIRST + CHAIN - 1:
        return max(0, last - FIRST + 1)
    return CHAIN + sum(_capacity(last - 1 - j) for j in range(CHAIN) if last - 1 - j >= FIRST + CHAIN - 1)


def _lay(slots: list[Slot], products: int, last: int) -> int:
    """Append the slots of a sum that ends in cycle `last`; returns the one that has it."""
    own = min(products, CHAIN)
    left = products - own
    others: dict[int, int] = {}
    for j in range(own):
        part = min(left, _capacity(last - 1 - j))
        if part:
            others[j] = _lay(slots, part, last - 1 - j)
            left -= part
    for j in reversed(range(own)):
        slots.append(Slot(last - j, j < own - 1, others.get(j)))
    return len(slots) - 1


def latency(products: int) -> int:
    """Cycles from the first factors to the sum."""
    return layout(products)[-1].adds + 1


def lag(node: Node, operand: int) -> int:
    """Stages from where an operand of a node is wanted to where the result is."""
    if node.op != "dot":
        return 0
    products = len(node.args) // 2
    slots = layout(products)
    if operand == len(node.args) - 1:
        wanted = next(slot.adds for slot in slots if slot.addend) - 1  # it has a register of its own
    else:
        wanted = slots[operand // 2].factors
    return latency(products) - wanted


def dot(graph: Graph, args: Sequence[Node], width: int) -> Node:
    """A sum of products: two factors a product and the addend in `args`, taken as signed; modulo 2^width."""
    signed = [graph.slice(a, 0, graph.signed_bits(a)) for a in args]
    bits = min(width, sum_bits(graph, signed))
    return graph.sext(graph.make("dot", signed, bits), width)


def sum_bits(graph: Graph, args: Sequence[Node]) -> int:
    """Bits of a sum of products, signed."""
    widths = [graph.signed_bits(a) for a in args]
    largest = sum(1 << (a + b - 2) for a, b in zip(widths[:-1:2], widths[1::2], strict=True))
    return (largest + (1 << (widths[-1] - 1))).bit_length() + 1


def fits(graph: Graph, a: Node, b: Node) -> bool:
    """Whether a DSP multiplies two factors: not too wide for one, and not so narrow that LUTs would do."""
    small, large = sorted(graph.signed_bits(x) for x in (a, b))
    return "const" not in (a.op, b.op) and _LEAST <= small <= SMALL and large <= LARGE


def sum_of_products(
    graph: Graph, products: Sequence[tuple[Node, Node]], addend: Node | None, width: int
) -> Node | None:
    """The node of a sum of products and an addend, if a DSP can hold it; the larger factor of each takes the larger port."""
    args: list[Node] = []
    for a, b in products:
        args += (a, b) if graph.signed_bits(a) >= graph.signed_bits(b) else (b, a)
    args.append(addend or graph.const(0, width))
    return dot(graph, args, width) if min(width, sum_bits(graph, args)) <= SUM else None
