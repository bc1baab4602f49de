"""How many inputs of LUTs, DSPs and memories a value drives, bit by bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from moehls.rtl.graph import Node
from moehls.rtl.ir import Process

_WIRING = ("concat", "slice", "sext")


def loads(process: Process, nodes: Iterable[Node]) -> dict[int, int]:
    """By node id: the loads of its most loaded bit, over all stages; wiring has those of what it wires. Operands come first."""
    nodes = list(nodes)
    spans: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for user in nodes:
        if user.op not in _WIRING:
            for k, operand in enumerate(user.args):
                _add(spans, operand, _weight(user, k))
    for a in process.accesses:
        for n in (a.predicate, a.address, a.data, *a.arguments):
            if n is not None:
                _add(spans, n, 1)
    for w in process.writes:
        _add(spans, w.value, 1)
        _add(spans, w.predicate, w.value.width)
    for step in process.steps:
        for predicate, _ in step.successors:
            _add(spans, predicate, 1)
    result = {node: _most(found) for node, found in spans.items()}
    for node in nodes:
        if node.op in _WIRING:
            result[node.id] = max((result.get(a.id, 1) for a in node.args if a.op != "const"), default=1)
    return result


def _weight(user: Node, operand: int) -> int:
    """LUT inputs a bit of an operand drives."""
    if (user.op == "mux" and operand == 0) or (user.op in ("shl", "lshr", "ashr") and operand == 1):
        return user.width
    if user.op == "rom":
        return user.width * -(-(1 << user.args[0].width) // 64)
    return 2 if user.op in ("ctlz", "ctpop") else 1


def _add(spans: dict[int, list[tuple[int, int, int]]], operand: Node, weight: int) -> None:
    for base, low, high, times in _bits(operand, 0, operand.width):
        spans[base.id].append((low, high, weight * times))


def _bits(node: Node, low: int, high: int) -> Iterator[tuple[Node, int, int, int]]:
    """The (base, low, high, times) that bits low … high-1 of an expression are wired to."""
    if node.op == "slice":
        yield from _bits(node.args[0], low + node.low, high + node.low)
    elif node.op == "concat":
        at = 0
        for part in node.args:
            first, last = max(low, at), min(high, at + part.width)
            if first < last:
                yield from _bits(part, first - at, last - at)
            at += part.width
    elif node.op == "sext":
        inner = node.args[0]
        if low < inner.width:
            yield from _bits(inner, low, min(high, inner.width))
        if high > inner.width:
            for base, first, last, times in _bits(inner, inner.width - 1, inner.width):
                yield base, first, last, times * (high - max(low, inner.width))
    elif node.op != "const":
        yield node, low, high, 1


def _most(spans: list[tuple[int, int, int]]) -> int:
    steps: dict[int, int] = defaultdict(int)
    for low, high, n in spans:
        steps[low] += n
        steps[high] -= n
    most = current = 0
    for at in sorted(steps):
        current += steps[at]
        most = max(most, current)
    return most
