"""Random C++ in the generator's subset: expressions and statements over the variables of a scope."""

from __future__ import annotations

import random

WIDTHS = (1, 3, 7, 8, 12, 16, 17, 24, 31, 32, 33, 40, 64, 65, 72, 130)


class Scope:
    """Variables of a process body: name -> type. `assignable` ones live across iterations."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.states: dict[str, str] = {}


class Statements:
    """Random statements, a function of the seed."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.name = f"d{seed}"
        self.parts: list[str] = []
        self.count = 0

    def fresh(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def type(self, low: int = 1, high: int = 200) -> str:
        width = self.r.choice([w for w in WIDTHS if low <= w <= high])
        return f"ap_{'u' if self.r.random() < 0.5 else ''}int<{width}>"

    # expressions
    def expression(self, scope: Scope, depth: int = 3) -> str:
        r = self.r
        names = [*scope.values, *scope.states]
        if depth == 0 or r.random() < 0.15:
            if names and r.random() < 0.8:
                return r.choice(names)
            return f"{self.type(3, 33)}({r.randrange(-100, 1 << r.choice((3, 8, 20)))})"
        kind = r.randrange(11)
        a, b = self.expression(scope, depth - 1), self.expression(scope, depth - 1)
        if kind < 4:
            return f"{self.type()}({a} {r.choice('+-*&|^+-')} {b})"
        if kind == 4:
            return f"{self.type()}({a} {r.choice(('<<', '>>'))} ap_uint<{r.randrange(1, 6)}>({b}))"
        if kind == 5:
            t = self.type()
            return f"({self.condition(scope, depth - 1)} ? {t}({a}) : {t}({b}))"
        if kind == 6:
            width = r.choice((8, 17, 40, 72))
            low = r.randrange(width)
            return f"{self.type(1, 72)}(ap_uint<{width}>({a}).range({r.randrange(low, width)}, {low}))"
        if kind == 7:
            return f"ap_uint<{r.choice((24, 65))}>((ap_uint<{r.randrange(1, 20)}>({a}), ap_uint<{r.randrange(1, 40)}>({b})))"
        if kind == 8:
            return f"{self.type()}({r.choice(('-', '~'))}{self.type(3)}({a}))"
        if kind == 9:
            return f"ap_uint<1>({self.condition(scope, depth - 1)})"
        return f"{self.type(3, 40)}({a} {r.choice(('<<', '>>'))} {r.randrange(0, 12)})"

    def condition(self, scope: Scope, depth: int = 2) -> str:
        r = self.r
        if r.random() < 0.2 and depth > 0:
            return f"({self.condition(scope, depth - 1)} {r.choice(('&&', '||'))} {self.condition(scope, depth - 1)})"
        a = self.expression(scope, depth)
        b = self.expression(scope, depth) if r.random() < 0.5 else f"ap_int<9>({r.randrange(-20, 200)})"
        t = self.type(3)  # one type for both: an order of mixed signs is C's
        return f"({t}({a}) {r.choice(('<', '<=', '==', '!=', '>', '>='))} {t}({b}))"

    # statements
    def statements(self, scope: Scope, n: int, depth: int = 2) -> list[str]:
        lines: list[str] = []
        for _ in range(n):
            lines += self.statement(scope, depth)
        return lines

    def statement(self, scope: Scope, depth: int) -> list[str]:
        r = self.r
        kind = r.randrange(8)
        if kind < 3 or depth == 0:
            name, type_ = self.fresh("v"), self.type()
            text = f"{type_} {name} = {self.expression(scope)};"
            scope.values[name] = type_
            return [text]
        if kind < 5 and scope.states:
            state = r.choice(list(scope.states))
            return [f"{state} {r.choice(('=', '+=', '^=', '-='))} {self.expression(scope)};"]
        if kind == 5:
            inner = Scope()
            inner.values, inner.states = dict(scope.values), scope.states
            lines = [f"if ({self.condition(scope)}) {{", *self.statements(inner, r.randrange(1, 3), depth - 1)]
            if r.random() < 0.6:
                inner.values = dict(scope.values)
                lines += ["} else {", *self.statements(inner, r.randrange(1, 3), depth - 1)]
            return [*lines, "}"]
        if kind == 6:
            return self.unrolled(scope)
        return self.selection(scope, depth)

    def unrolled(self, scope: Scope) -> list[str]:
        """A packed word, lane by lane."""
        r = self.r
        lanes, bits = r.choice((2, 4, 5, 8)), r.choice((4, 7, 8, 9, 16))
        name = self.fresh("w")
        source = self.fresh("x")
        inner = Scope()
        inner.values = {f"ap_int<{bits}>(e)": f"ap_int<{bits}>", "ap_uint<4>(k)": "ap_uint<4>"}
        inner.states = {}
        value = self.expression(inner, 2)
        lines = [
            f"ap_uint<{lanes * bits}> {source} = {self.expression(scope)};",
            f"ap_uint<{lanes * bits}> {name} = 0;",
            "UNROLL",
            f"for (int k = 0; k < {lanes}; k++) {{",
            f"  ap_uint<{bits}> e = {source}.range(k * {bits} + {bits - 1}, k * {bits});",
            f"  {name}.range(k * {bits} + {bits - 1}, k * {bits}) = ap_uint<{bits}>({value});",
            "}",
        ]
        scope.values[name] = f"ap_uint<{lanes * bits}>"
        return lines

    def selection(self, scope: Scope, depth: int) -> list[str]:
        if not scope.states:
            return []
        state = self.r.choice(list(scope.states))
        cases = [f"case {c}: {state} = {self.expression(scope, 2)}; break;" for c in range(self.r.randrange(2, 5))]
        return [
            f"switch (int(ap_uint<2>({self.expression(scope, 2)}))) {{",
            *cases,
            f"default: {state} ^= {self.expression(scope, 1)}; break;",
            "}",
        ]

    def states(self, scope: Scope) -> list[str]:
        lines = []
        for _ in range(self.r.randrange(0, 4)):
            name, type_ = self.fresh("s"), self.type()
            scope.states[name] = type_
            lines.append(f"{type_} {name} = {self.r.randrange(0, 50)};")
        return lines


def scope_without(scope: Scope, name: str) -> Scope:
    """A copy of a scope that lacks a variable not declared yet."""
    copy = Scope()
    copy.values = {k: v for k, v in scope.values.items() if k != name}
    copy.states = scope.states
    return copy
