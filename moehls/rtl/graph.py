"""The data flow of a process: nodes over bits.

`Graph` hash-conses nodes and folds while it builds: constants, slices and concatenations are kept in one normal form, so that
C++'s shifting and masking of packed words becomes wiring. Concatenations list their parts from bit 0 upwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, eq=False)
class Node:
    """A value of `width` bits. `aux` names a leaf's source, holds a constant's value, a slice's low bit or a ROM's name."""

    id: int
    op: str
    args: tuple[Node, ...]
    width: int
    aux: Hashable = None

    @property
    def value(self) -> int:
        assert self.op == "const" and isinstance(self.aux, int)
        return self.aux

    @property
    def low(self) -> int:
        assert self.op == "slice" and isinstance(self.aux, int)
        return self.aux

    @property
    def parts(self) -> tuple[Node, ...]:
        return self.args if self.op == "concat" else (self,)


WIRING = ("concat", "slice", "sext")
"""operations that are wires"""


@dataclass(frozen=True)
class Label:
    """What the source calls a value; the lowest `rank` is the closest."""

    rank: int
    name: str


class Graph:
    """Builds nodes; equal ones are one node. Ids grow from operands to users.

    `place` is where in the source the nodes made from now on come from, `places` where each does, `labels` what they are called.
    """

    def __init__(self) -> None:
        self.place = ""
        self.places: dict[int, str] = {}
        self.labels: dict[int, Label] = {}
        self.nodes: list[Node] = []
        self._known: dict[tuple[Hashable, ...], Node] = {}
        self._unsigned: dict[int, int] = {}
        self._signed: dict[int, int] = {}

    def make(self, op: str, args: Sequence[Node], width: int, aux: Hashable = None) -> Node:
        key = (op, tuple(a.id for a in args), width, aux)
        if key not in self._known:
            node = Node(len(self.nodes), op, tuple(args), width, aux)
            self.nodes.append(node)
            self.places[node.id] = self.place
            self._known[key] = node
        return self._known[key]

    def label(self, node: Node, label: Label) -> None:
        """Name a value, and what it is wired from, unless they have closer names."""
        if node.op == "const" or (node.id in self.labels and self.labels[node.id].rank <= label.rank):
            return
        self.labels[node.id] = label
        parts = [a for a in node.args if a.op != "const"] if node.op in WIRING else []
        for k, part in enumerate(parts):
            name = label.name if len(parts) == 1 else f"{label.name}_{k}"
            self.label(part, Label(label.rank + (3 if node.op == "slice" else len(parts[:2])), name))

    # leaves
    def const(self, value: int, width: int) -> Node:
        return self.make("const", (), width, value & ((1 << width) - 1))

    def leaf(self, op: str, name: str, width: int) -> Node:
        return self.make(op, (), width, name)

    # wiring
    def concat(self, parts: Iterable[Node]) -> Node:
        """Parts from bit 0 upwards."""
        merged: list[Node] = []
        for part in (p for whole in parts for p in whole.parts):
            if merged and (joined := self._join(merged[-1], part)):
                merged[-1] = joined
            else:
                merged.append(part)
        return merged[0] if len(merged) == 1 else self.make("concat", merged, sum(p.width for p in merged))

    def _join(self, a: Node, b: Node) -> Node | None:
        if a.op == "const" and b.op == "const":
            return self.const(a.value | b.value << a.width, a.width + b.width)
        if a.op == "slice" and b.op == "slice" and a.args == b.args and a.low + a.width == b.low:
            return self.slice(a.args[0], a.low, a.width + b.width)
        return None

    def slice(self, x: Node, low: int, width: int) -> Node:
        """Bits low … low+width-1."""
        assert width > 0 and low >= 0 and low + width <= x.width, (x.op, x.width, low, width)
        if width == x.width:
            return x
        if x.op == "const":
            return self.const(x.value >> low, width)
        if x.op == "slice":
            return self.slice(x.args[0], x.low + low, width)
        if x.op == "concat":
            return self.concat(self._pick(x, low, width))
        if x.op == "sext":
            inner = x.args[0]
            if low + width <= inner.width:
                return self.slice(inner, low, width)
            start = min(low, inner.width - 1)
            return self.sext(self.slice(inner, start, inner.width - start), width)
        if x.op in ("and", "or", "xor", "not") and x.args[0].op == "concat":
            return self._bitwise(x.op, [self.slice(a, low, width) for a in x.args])
        return self.make("slice", (x,), width, low)

    def _pick(self, x: Node, low: int, width: int) -> list[Node]:
        picked, at = [], 0
        for part in x.args:
            first, last = max(low, at), min(low + width, at + part.width)
            if first < last:
                picked.append(self.slice(part, first - at, last - first))
            at += part.width
        return picked

    def low_bits(self, x: Node, width: int) -> Node:
        """x cut to, or extended with zeros to, a width."""
        return self.slice(x, 0, width) if width <= x.width else self.zext(x, width)

    def zext(self, x: Node, width: int) -> Node:
        return x if width == x.width else self.concat((x, self.const(0, width - x.width)))

    def sext(self, x: Node, width: int) -> Node:
        if width == x.width:
            return x
        top = x.parts[-1]
        if top.op == "const":
            sign = top.value >> (top.width - 1)
            return self.concat((x, self.const(-sign, width - x.width)))
        return self.make("sext", (x.args[0] if x.op == "sext" else x,), width)

    # logic
    def bitwise(self, op: str, a: Node, b: Node) -> Node:
        if a is b:
            return a if op != "xor" else self.const(0, a.width)
        if any(p.op == "const" for x in (a, b) for p in x.parts):
            return self._by_segments(op, a, b)
        if a.width == 1 and (found := self._predicate(op, a, b)):
            return found
        return self._bitwise(op, sorted((a, b), key=lambda n: n.id))

    def _bitwise(self, op: str, args: Sequence[Node]) -> Node:
        if op == "not":
            return self.invert(args[0])
        return self.make(op, args, args[0].width)

    def _predicate(self, op: str, a: Node, b: Node) -> Node | None:
        """p·c + p·¬c = p, a·¬a = 0, a + ¬a = 1: what joins of branches come to."""
        inverted = self.invert(a)
        if inverted is b:
            return self.const(op != "and", 1)
        if op == "or":
            for x, y in ((a, b), (b, a)):
                if x.op == "and" and y in x.args:
                    return y
                if x.op == "and" and y.op == "and":
                    for i, common in enumerate(x.args):
                        other = self.invert(x.args[1 - i])
                        if common in y.args and other in y.args:
                            return common
        if op == "and":
            for x, y in ((a, b), (b, a)):
                if x.op in ("and", "or") and y in x.args:
                    return x if x.op == "and" else y
                if x.op == "and" and self.invert(y) in x.args:
                    return self.const(0, 1)
        return None

    def _by_segments(self, op: str, a: Node, b: Node) -> Node:
        pieces = self._aligned(a, b)
        if len(pieces) == 1:
            return self._with_constant(op, *pieces[0])
        result: list[Node] = []
        run: list[tuple[Node, Node]] = []
        for x, y in [*pieces, (None, None)]:
            if x is not None and y is not None and x.op != "const" and y.op != "const":
                run.append((x, y))
                continue
            if run:
                result.append(self.bitwise(op, self.concat(r[0] for r in run), self.concat(r[1] for r in run)))
                run = []
            if x is not None and y is not None:
                result.append(self._with_constant(op, x, y))
        return self.concat(result)

    def _aligned(self, a: Node, b: Node) -> list[tuple[Node, Node]]:
        """The pieces between the boundaries of both."""
        cuts = {0}
        for x in (a, b):
            at = 0
            for part in x.parts:
                at += part.width
                cuts.add(at)
        bounds = sorted(cuts)
        if len(bounds) == 2:
            return [(a, b)]
        return [(self.slice(a, i, j - i), self.slice(b, i, j - i)) for i, j in itertools.pairwise(bounds)]

    def _with_constant(self, op: str, a: Node, b: Node) -> Node:
        if a.op == "const":
            a, b = b, a
        ones = (1 << a.width) - 1
        if a.op == "const":
            fold = {"and": a.value & b.value, "or": a.value | b.value, "xor": a.value ^ b.value}
            return self.const(fold[op], a.width)
        if b.value == 0:
            return b if op == "and" else a
        if b.value == ones:
            return {"and": a, "or": b}.get(op) or self.invert(a)
        # mixed bits: run by run
        result, at = [], 0
        while at < a.width:
            bit, end = b.value >> at & 1, at
            while end < a.width and b.value >> end & 1 == bit:
                end += 1
            result.append(self._with_constant(op, self.slice(a, at, end - at), self.const(-bit, end - at)))
            at = end
        return self.concat(result)

    def invert(self, x: Node) -> Node:
        if x.op == "const":
            return self.const(~x.value, x.width)
        if x.op == "not":
            return x.args[0]
        if x.op == "concat" and any(p.op == "const" for p in x.args):
            return self.concat(self.invert(p) for p in x.args)
        return self.make("not", (x,), x.width)

    def mux(self, condition: Node, a: Node, b: Node) -> Node:
        """a where the condition holds, else b."""
        if condition.op == "const":
            return a if condition.value else b
        if a is b:
            return a
        if condition.op == "not":
            return self.mux(condition.args[0], b, a)
        if a.width == 1:
            if a.op == "const":
                return self.bitwise("or", condition, b) if a.value else self.bitwise("and", self.invert(condition), b)
            if b.op == "const":
                return self.bitwise("or", self.invert(condition), a) if b.value else self.bitwise("and", condition, a)
        if a.op == "const" and b.op == "const":
            chosen = {
                (0, 0): self.const(0, 1),
                (1, 1): self.const(1, 1),
                (1, 0): condition,
                (0, 1): self.invert(condition),
            }
            return self.concat(chosen[a.value >> i & 1, b.value >> i & 1] for i in range(a.width))
        if a.op == "sext" and b.op == "sext":
            inner = max(a.args[0].width, b.args[0].width)
            if inner < a.width:
                return self.sext(self.mux(condition, self.slice(a, 0, inner), self.slice(b, 0, inner)), a.width)
        if a.op == "concat" or b.op == "concat":
            pieces = self._aligned(a, b)
            if any(x is y for x, y in pieces):
                return self.concat(self._merge_runs(condition, pieces))
        return self.make("mux", (condition, a, b), a.width)

    def _merge_runs(self, condition: Node, pieces: list[tuple[Node, Node]]) -> list[Node]:
        result: list[Node] = []
        run: list[tuple[Node, Node]] = []
        for x, y in pieces:
            if x is not y:
                run.append((x, y))
                continue
            if run:
                result.append(self.mux(condition, self.concat(r[0] for r in run), self.concat(r[1] for r in run)))
                run = []
            result.append(x)
        if run:
            result.append(self.mux(condition, self.concat(r[0] for r in run), self.concat(r[1] for r in run)))
        return result

    # arithmetic
    def arithmetic(self, op: Literal["add", "sub", "mul"], a: Node, b: Node) -> Node:
        width = a.width
        if a.op == "const" and b.op == "const":
            return self.const({"add": a.value + b.value, "sub": a.value - b.value, "mul": a.value * b.value}[op], width)
        if op != "sub" and a.op == "const":
            a, b = b, a
        if b.op == "const":
            if b.value == 0:
                return b if op == "mul" else a
            if op == "mul" and b.value & (b.value - 1) == 0:
                return self.shift("shl", a, self.const(b.value.bit_length() - 1, width))
            if op == "mul" and b.value.bit_count() == 2:  # an adder, not a multiplier
                low = b.value & -b.value
                terms = [self.arithmetic("mul", a, self.const(n, width)) for n in (low, b.value - low)]
                return self.arithmetic("add", terms[0], terms[1])
            if op == "sub":
                return self.arithmetic("add", a, self.const(-b.value, width))
        return self.make(op, (a, b), width)

    def shift(self, op: Literal["shl", "lshr", "ashr"], x: Node, amount: Node) -> Node:
        width = x.width
        if amount.op != "const":
            needed = self.unsigned_bits(amount)
            amount = self.slice(amount, 0, min(max(needed, 1), amount.width))
            pieces = amount.args if amount.op == "concat" else (amount,)
            if pieces[-1].width == 1 and not any(piece.op != "const" or piece.value for piece in pieces[:-1]):
                by = self.const(1 << (amount.width - 1), amount.width)
                return self.mux(pieces[-1], self.shift(op, x, by), x)
            return self.make(op, (x, amount), width) if x.op != "const" or x.value else x
        n = min(amount.value, width)
        if n == 0:
            return x
        if op == "shl":
            zeros = self.const(0, n)
            return zeros if n == width else self.concat((zeros, self.slice(x, 0, width - n)))
        if op == "lshr":
            return self.const(0, width) if n == width else self.zext(self.slice(x, n, width - n), width)
        n = min(n, width - 1)
        return self.sext(self.slice(x, n, width - n), width)

    def compare(self, op: Literal["eq", "ult", "slt"], a: Node, b: Node) -> Node:
        if a is b:
            return self.const(op == "eq", 1)
        if a.op == "const" and b.op == "const":
            signed = [n.value - (n.value >> (n.width - 1) << n.width) for n in (a, b)]
            found = {"eq": a.value == b.value, "ult": a.value < b.value, "slt": signed[0] < signed[1]}
            return self.const(found[op], 1)
        unsigned = max(self.unsigned_bits(a), self.unsigned_bits(b), 1)
        signed_width = max(self.signed_bits(a), self.signed_bits(b))
        if op == "slt" and unsigned < a.width:
            op = "ult"
        width = unsigned if op == "ult" else min(signed_width, unsigned) if op == "eq" else signed_width
        width = min(width, a.width)
        a, b = self.slice(a, 0, width), self.slice(b, 0, width)
        if op == "eq" and width == 1:
            return self.invert(self.bitwise("xor", a, b))
        if op == "ult" and b.op == "const" and b.value == 0:
            return self.const(0, 1)
        if op == "ult" and b.op == "const" and b.value == 1:
            return self.compare("eq", a, self.const(0, width))
        if op == "slt" and b.op == "const" and b.value == 0:
            return self.slice(a, width - 1, 1)
        if op == "slt" and a.op == "const" and a.value == (1 << width) - 1:
            return self.invert(self.slice(b, width - 1, 1))
        if op == "eq" and a.op == "const":
            a, b = b, a
        return self.make(op, (a, b), 1)

    # how many low bits can differ from zero, or from the sign
    def unsigned_bits(self, x: Node) -> int:
        if x.id not in self._unsigned:
            self._unsigned[x.id] = self._unsigned_bits(x)
        return self._unsigned[x.id]

    def _unsigned_bits(self, x: Node) -> int:
        if x.op == "const":
            return x.value.bit_length()
        if x.op == "concat":
            top = x.args[-1]
            return x.width - top.width + self.unsigned_bits(top)
        if x.op == "mux":
            return max(self.unsigned_bits(a) for a in x.args[1:])
        if x.op == "and":
            return min(self.unsigned_bits(a) for a in x.args)
        if x.op in ("or", "xor"):
            return max(self.unsigned_bits(a) for a in x.args)
        if x.op == "lshr":
            return min(x.width, self.unsigned_bits(x.args[0]))
        if x.op in ("ctlz", "ctpop"):
            return x.args[0].width.bit_length()
        return x.width

    def signed_bits(self, x: Node) -> int:
        """The least width whose sign extension gives x."""
        if x.id not in self._signed:
            self._signed[x.id] = max(1, min(x.width, self._signed_bits(x)))
        return self._signed[x.id]

    def _signed_bits(self, x: Node) -> int:
        if x.op == "const":
            v = x.value - (x.value >> (x.width - 1) << x.width)
            return (v if v >= 0 else ~v).bit_length() + 1
        if x.op == "sext":
            return self.signed_bits(x.args[0])
        if x.op == "concat":
            top = x.args[-1]
            copies = sum(1 for _ in itertools.takewhile(lambda a: a is top, reversed(x.args))) if top.width == 1 else 1
            return x.width - top.width + self.signed_bits(top) - (copies - 1)
        if x.op == "mux":
            return max(self.signed_bits(a) for a in x.args[1:])
        if x.op in ("and", "or", "xor"):
            return min(max(self.signed_bits(a) for a in x.args), self.unsigned_bits(x) + 1)
        if x.op in ("not", "ashr"):
            return self.signed_bits(x.args[0])
        return self.unsigned_bits(x) + 1
