"""Control flow of a function: cuts, the acyclic region below each cut, and when control reaches what in it.

A *cut* is where a step begins: the entry, every loop header, and wherever a block was split (`Flow.split`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moehls.rtl.graph import Graph, Node
from moehls.rtl.llvm import Function, Instruction


class Flow:
    """The blocks of a function and the edges between them; phis name their predecessors by label."""

    def __init__(self, function: Function) -> None:
        self.blocks: dict[str, list[Instruction]] = {b.name: list(b.instructions) for b in function.blocks}
        self.entry = function.blocks[0].name
        self.cuts: set[str] = {self.entry}
        self.splits = 0
        self._cut_loop_headers()

    def successors(self, block: str) -> list[str]:
        last = self.blocks[block][-1] if self.blocks[block] else None
        return list(dict.fromkeys(last.labels)) if last and last.op in ("br", "switch") else []

    def _cut_loop_headers(self) -> None:
        state: dict[str, int] = {}
        stack = [(self.entry, iter(self.successors(self.entry)))]
        state[self.entry] = 1
        while stack:
            block, children = stack[-1]
            for child in children:
                if state.get(child) == 1:
                    self.cuts.add(child)
                elif child not in state:
                    state[child] = 1
                    stack.append((child, iter(self.successors(child))))
                    break
            else:
                state[block] = 2
                stack.pop()

    def split(self, block: str, at: int) -> str:
        """Cut a block before its instruction `at`; returns the new block, whose step begins there."""
        self.splits += 1
        fresh = f"{block}.{self.splits}"
        self.blocks[fresh] = self.blocks[block][at:]
        self.blocks[block] = [*self.blocks[block][:at], Instruction("br", "", [], labels=[fresh])]
        for target in self.successors(fresh):
            for instruction in self.blocks[target]:
                if instruction.op == "phi":
                    instruction.labels = [fresh if label == block else label for label in instruction.labels]
        self.cuts.add(fresh)
        return fresh

    def region(self, start: str) -> list[str]:
        """The blocks from a cut to the next ones, each after all before it."""
        order: list[str] = []
        seen = {start}
        path = [(start, iter(self.successors(start)))]
        while path:
            block, children = path[-1]
            child = next((c for c in children if c not in self.cuts and c not in seen), None)
            if child is None:
                order.append(block)
                path.pop()
            else:
                seen.add(child)
                path.append((child, iter(self.successors(child))))
        return order[::-1]


@dataclass
class Paths:
    """Conditions of reaching the blocks of a region, as nodes. `conditions` holds each edge's own condition."""

    graph: Graph
    start: str
    order: list[str]
    conditions: dict[tuple[str, str], Node]

    def __post_init__(self) -> None:
        self._position = {b: i for i, b in enumerate(self.order)}
        self._before: dict[str, list[str]] = {b: [] for b in self.order}
        self._after: dict[str, list[str]] = {b: [] for b in self.order}
        for a, b in self.conditions:
            self._after[a].append(b)
            if b in self._before and b != self.start:
                self._before[b].append(a)
        self._dominator: dict[str, str] = {self.start: self.start}
        for block in self.order[1:]:
            self._dominator[block] = self._meet(self._before[block])
        self._relative: dict[tuple[str, str], Node] = {}
        self._reached: dict[str, Node] = {self.start: self.graph.const(1, 1)}

    def _meet(self, blocks: list[str]) -> str:
        found = blocks[0]
        for other in blocks[1:]:
            while found != other:
                if self._position[found] > self._position[other]:
                    found = self._dominator[found]
                else:
                    other = self._dominator[other]
        return found

    def _from(self, dominator: str, block: str) -> Node:
        """When control that passed `dominator` passes `block` below it."""
        if block == dominator:
            return self.graph.const(1, 1)
        if (dominator, block) not in self._relative:
            own = self._dominator[block]
            result = self._inside(own, block)
            if own != dominator:
                result = self.graph.bitwise("and", self._from(dominator, own), result)
            self._relative[dominator, block] = result
        return self._relative[dominator, block]

    def _inside(self, dominator: str, block: str) -> Node:
        """`_from` where `dominator` is the immediate one."""
        if self._always_reaches(dominator, block):
            return self.graph.const(1, 1)
        terms = [self._edge_from(dominator, before, block) for before in self._before[block]]
        return self._any(terms)

    def _any(self, terms: list[Node]) -> Node:
        result = terms[0]
        for term in terms[1:]:
            result = self.graph.bitwise("or", result, term)
        return result

    def _edge_from(self, dominator: str, before: str, block: str) -> Node:
        return self.graph.bitwise("and", self._from(dominator, before), self.conditions[before, block])

    def _always_reaches(self, top: str, bottom: str) -> bool:
        """Whether every path from `top` passes `bottom`."""
        todo, seen = [top], {top}
        while todo:
            block = todo.pop()
            if not self._after[block]:
                return False
            for after in self._after[block]:
                if after == bottom:
                    continue
                if after not in self._position or after == self.start or self._position[after] > self._position[bottom]:
                    return False
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
        return True

    def reached(self, block: str) -> Node:
        """When the step passes a block."""
        if block not in self._reached:
            self._reached[block] = self._from(self.start, block)
        return self._reached[block]

    def edge(self, before: str, block: str) -> Node:
        """When the step takes an edge."""
        return self.graph.bitwise("and", self.reached(before), self.conditions[before, block])

    def join(self, block: str, values: dict[str, Node]) -> Node:
        """A phi: the value of the edge that was taken, by predecessor."""
        dominator = self._dominator[block]
        items = list(values.items())
        result = items[-1][1]
        for before, value in reversed(items[:-1]):
            result = self.graph.mux(self._edge_from(dominator, before, block), value, result)
        return result

    def precedes(self, a: str, b: str) -> bool:
        """Whether some path leads from block a to block b."""
        todo, seen = [a], {a}
        while todo:
            for after in self._after[todo.pop()]:
                if after == b:
                    return True
                if after in self._position and after != self.start and after not in seen:
                    seen.add(after)
                    todo.append(after)
        return False


def edge_conditions(
    flow: Flow, order: list[str], graph: Graph, value: Callable[[str, Instruction, int], Node]
) -> dict[tuple[str, str], Node]:
    """The condition of every edge that leaves a block of the region; `value(block, branch, operand)` evaluates."""
    conditions: dict[tuple[str, str], Node] = {}

    def add(edge: tuple[str, str], condition: Node) -> None:
        conditions[edge] = graph.bitwise("or", conditions[edge], condition) if edge in conditions else condition

    for block in order:
        last = flow.blocks[block][-1]
        if last.op == "br" and len(last.labels) == 1:
            add((block, last.labels[0]), graph.const(1, 1))
        elif last.op == "br":
            condition = value(block, last, 0)
            add((block, last.labels[0]), condition)
            add((block, last.labels[1]), graph.invert(condition))
        elif last.op == "switch":
            selector = value(block, last, 0)
            others = graph.const(1, 1)
            for i, label in enumerate(last.labels[1:], 1):
                case = graph.compare("eq", selector, value(block, last, i))
                add((block, label), case)
                others = graph.bitwise("and", others, graph.invert(case))
            add((block, last.labels[0]), others)
    return conditions
