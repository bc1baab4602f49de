"""Random C++ in the generator's subset: regions of processes over streams, memories, tables and registers, and programs that
call them with swapped memories."""

from __future__ import annotations

import random

from tests.rtl.bench import Design

PREAMBLE = """#include "ap_int.h"
#include "hls_stream.h"
#ifdef MOEHLS_RTL
extern "C" void moehls_dataflow();
#define DATAFLOW moehls_dataflow();
#else
#define DATAFLOW
#endif
#define UNROLL _Pragma("clang loop unroll(full)")
"""
WIDTHS = (1, 3, 7, 8, 12, 16, 17, 24, 31, 32, 33, 40, 64, 65, 72, 130)


class Scope:
    """Variables of a process body: name -> type. `assignable` ones live across iterations."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.states: dict[str, str] = {}


class Generator:
    """One random design, a function of its seed."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        self.name = f"d{seed}"
        self.parts: list[str] = []
        self.count = 0

    def design(self) -> Design:
        body, inputs, outputs = self.program() if self.r.random() < 0.25 else self.region()
        return Design(self.name, PREAMBLE + "\n".join([*self.parts, body]), tuple(inputs), tuple(outputs))

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

    # processes: each takes `n` words of type `source` a call and gives so many of `target`
    def process(self, source: str, target: str, n: int) -> tuple[str, int]:
        """Adds a process; returns its name and how many words it writes."""
        name = f"{self.name}_{self.fresh('p')}"
        kinds = (
            *(self.map, self.filter, self.buffer, self.update, self.nested, self.table, self.shifts, self.kept),
            *(self.records, self.flat, self.grid),
        )
        lines, written = self.r.choice(kinds)(source, target, n)
        self.parts.append(
            f"void {name}(hls::stream<{source}, 3>& from, hls::stream<{target}, 3>& to) {{\n  "
            + "\n  ".join(lines)
            + "\n}"
        )
        return name, written

    def loop(self, n: int, body: list[str]) -> list[str]:
        counter = self.r.choice(("int i", "unsigned i", "ap_uint<16> i"))
        return [f"for ({counter} = 0; i < {n}; ++i) {{", *(f"  {b}" for b in body), "}"]

    def body(self, source: str, scope: Scope, extra: dict[str, str] | None = None) -> list[str]:
        """Reads `x`, computes on it, and leaves `scope` with what there is."""
        scope.values["x"] = source
        scope.values["ap_uint<8>(i)"] = "ap_uint<8>"
        scope.values.update(extra or {})
        return [f"{source} x = from.read();", *self.statements(scope, self.r.randrange(1, 5))]

    def map(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        scope = Scope()
        states = self.states(scope)
        body = self.body(source, scope)
        return [*states, *self.loop(n, [*body, f"to.write({target}({self.expression(scope)}));"])], n

    def filter(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        scope = Scope()
        states = self.states(scope)
        keep, of = self.r.choice(((1, 2), (3, 4), (2, 3)))
        body = self.body(source, scope)
        write = f"to.write({target}({self.expression(scope)}));"
        counted = ["ap_uint<4> phase = 0;"]
        step = f"if (phase == {of - 1}) phase = 0; else ++phase;"
        written = sum(1 for i in range(n) if i % of < keep)
        return [*states, *counted, *self.loop(n, [*body, f"if (phase < {keep}) {{ {write} }}", step])], written

    def buffer(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        scope, depth = Scope(), self.r.choice((64, 100, 300))
        n_out = self.r.randrange(1, n + 1)
        stored = self.type(8)
        stride = self.r.choice((1, 3, 5))
        write = self.body(source, scope)
        index = f"ap_uint<16>(i) * {stride} < {n} ? int(ap_uint<16>(i) * {stride}) : int(i)"
        after = Scope()
        after.values = {"y": stored, "ap_uint<8>(i)": "ap_uint<8>"}
        return [
            f"static {stored} m[{depth}];" if self.r.random() < 0.5 else f"{stored} m[{depth}];",
            *self.loop(n, [*write, f"m[i] = {stored}({self.expression(scope)});"]),
            *self.loop(n_out, [f"{stored} y = m[{index}];", f"to.write({target}({self.expression(after)}));"]),
        ], n_out

    def update(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """Read, modify, write, often of the word written just before."""
        scope, depth = Scope(), self.r.choice((2, 4, 32, 256))
        stored = self.type(8, 72)
        body = self.body(source, scope)
        bits = (depth - 1).bit_length()
        scope.values["old"] = stored
        guard = self.condition(scope)
        update = f"m[a] = {stored}({self.expression(scope)});"
        return [
            f"static {stored} m[{depth}];",
            *self.loop(n, [
                *body,
                f"ap_uint<{bits}> a = {self.expression(scope_without(scope, 'old'))};",
                f"{stored} old = m[a];",
                f"if {guard} {{ {update} }}" if self.r.random() < 0.5 else update,
                f"to.write({target}({self.expression(scope)}));",
            ]),
        ], n  # fmt: skip

    def nested(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        scope = Scope()
        states = self.states(scope)
        inner = self.r.choice((1, 2, 3, 4))
        outer = n // inner
        scope.values["x"] = source
        scope.values["ap_uint<5>(j)"] = "ap_uint<5>"
        scope.values["ap_uint<8>(i)"] = "ap_uint<8>"
        body = [f"{source} x = from.read();", *self.statements(scope, self.r.randrange(1, 4))]
        often = self.r.random() < 0.5
        write = f"to.write({target}({self.expression(scope)}));"
        late = Scope()
        late.states = scope.states
        after = f"to.write({target}({self.expression(late)}));"
        rest = n - outer * inner
        lines = [
            *states,
            f"for (int i = 0; i < {outer}; ++i) {{",
            f"  for (int j = 0; j < {inner}; ++j) {{",
            *(f"    {b}" for b in body),
            *([f"    {write}"] if often else []),
            "  }",
            *([] if often else [f"  {after}"]),
            "}",
            f"for (int i = 0; i < {rest}; ++i) from.read();",
        ]
        return lines, outer * inner if often else outer

    def table(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        scope, size = Scope(), self.r.choice((4, 16, 64))
        entry = self.type(3, 33)
        table = self.fresh("TABLE")
        values = ", ".join(str(self.r.randrange(-4, 100)) for _ in range(size))
        self.parts.append(f"static const {entry} {self.name}_{table}[{size}] = {{{values}}};")
        body = self.body(source, scope)
        bits = (size - 1).bit_length()
        lookup = [
            f"{entry} t{k} = {self.name}_{table}[ap_uint<{bits}>({self.expression(scope, 2)})];" for k in range(2)
        ]
        scope.values.update({"t0": entry, "t1": entry})
        return self.loop(n, [*body, *lookup, f"to.write({target}({self.expression(scope)}));"]), n

    def shifts(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """A line of registers that moves now and then."""
        scope, length = Scope(), self.r.choice((2, 3, 5))
        kept = self.type()
        body = self.body(source, scope)
        move = [
            f"if ({self.condition(scope)}) {{",
            "UNROLL",
            f"for (int k = {length - 1}; k > 0; k--) line[k] = line[k - 1];",
            f"line[0] = {kept}({self.expression(scope)});",
            "}",
        ]
        scope.values |= {f"line[{k}]": kept for k in range(length)}
        clear = ["UNROLL", f"for (int k = 0; k < {length}; k++) line[k] = k;"]
        return [
            f"{kept} line[{length}];",
            *clear,
            *self.loop(n, [*body, *move, f"to.write({target}({self.expression(scope)}));"]),
        ], n

    def kept(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """Words kept at a first pass and used again, as `weights` does."""
        passes = self.r.choice((1, 2, 3))
        scope = Scope()
        scope.values = {"word": source, "ap_uint<8>(n)": "ap_uint<8>"}
        depth = self.r.choice((n, max(n, 70)))
        return [
            f"static {source} words[{depth}];",
            "ap_uint<8> turn = 0, place = 0;",
            f"for (ap_uint<16> n = 0; n < {passes * n}; ++n) {{",
            f"  {source} word = 0;",
            "  if (turn == 0) { word = from.read(); words[place] = word; } else { word = words[place]; }",
            f"  to.write({target}({self.expression(scope)}));",
            f"  if (place == {n - 1}) {{ place = 0; ++turn; }} else ++place;",
            "}",
        ], passes * n

    def records(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """An array of structs that functions take by value and by reference and give back."""
        size, first, second = self.r.choice((2, 3)), self.type(3, 72), self.type(1, 40)
        struct, update, choose = (self.fresh(stem) for stem in ("S", "update", "choose"))
        struct, update, choose = (f"{self.name}_{name}" for name in (struct, update, choose))
        scope, late = Scope(), Scope()
        scope.values = {"x": source, "old.a": first, "old.b": second, "ap_uint<2>(k)": "ap_uint<2>"}
        late.values = {"one.a": first, "one.b": second, "two.a": first, "x": source}
        self.parts.append(f"""
struct {struct} {{ {first} a; {second} b; }};
static {struct} {choose}(const {struct} one, const {struct} two, {source} x) {{
  {struct} made = one;
  if ({self.condition(late)}) made = two; else made.b = {second}({self.expression(late)});
  return made;
}}
static void {update}({struct}& old, int k, {source} x) {{
  old.a = {first}({self.expression(scope)});
  if ({self.condition(scope)}) old.b = {second}({self.expression(scope)});
}}""")
        after = Scope()
        after.values = {"x": source} | {f"s[{k}].{m}": t for k in range(size) for m, t in (("a", first), ("b", second))}
        target_record = self.r.randrange(size)
        return [
            f"{struct} s[{size}];",
            "UNROLL",
            f"for (int k = 0; k < {size}; ++k) {{ s[k].a = k + 1; s[k].b = 0; }}",
            *self.loop(n, [
                f"{source} x = from.read();",
                "UNROLL",
                f"for (int k = 0; k < {size}; ++k) {{ if (k != {self.r.randrange(size)} || x[0]) {update}(s[k], k, x); }}",
                f"s[{target_record}] = {choose}(s[0], s[{size - 1}], x);",
                f"to.write({target}({self.expression(after)}));",
            ]),
        ], n  # fmt: skip

    def flat(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """A nest of loops whose bounds are data, as one flat loop with counters that a class steps, as the engine's `Nest`."""
        nest = f"{self.name}_{self.fresh('Nest')}"
        self.parts.append(f"""
struct {nest} {{
  ap_uint<16> n0, n1, i0, i1, end1;
  {nest}(ap_uint<16> a, ap_uint<16> b) : n0(a), n1(b), i0(0), i1(0), end1(b - 1) {{}}
  bool some() const {{ return n0 != 0 && n1 != 0; }}
  bool last1() const {{ return i1 == end1; }}
  bool last() const {{ return last1() && i0 == n0 - 1; }}
  void next() {{
    if (last1()) {{ i1 = 0; ++i0; }} else ++i1;
  }}
}};""")
        scope = Scope()
        states = self.states(scope)
        scope.values = {"x": source, "nest.i0": "ap_uint<16>", "nest.i1": "ap_uint<16>", "ap_uint<4>(b)": "ap_uint<4>"}
        body = self.statements(scope, self.r.randrange(1, 4))
        bound = self.r.choice((2, 4))
        late = Scope()
        late.values, late.states = {"ap_uint<8>(i)": "ap_uint<8>"}, scope.states
        return [
            *states,
            *self.loop(n, [
                f"const {source} head = from.read();",
                f"const ap_uint<16> a = ap_uint<16>(ap_uint<64>(head)) & {bound - 1};",
                f"const ap_uint<16> b = (ap_uint<16>(ap_uint<64>(head) >> 1) & {bound - 1}) + {self.r.choice((0, 1))};",
                f"{source} x = head;",
                f"{nest} nest(a, b);",
                "bool more = nest.some();",
                "while (more) {",
                *(f"  {line}" for line in body),
                f"  x = {source}({self.expression(scope, 2)});",
                "  more = !nest.last();",
                "  nest.next();",
                "}",
                f"to.write({target}(ap_uint<130>({self.expression(late)}) ^ ap_uint<130>(x)));",
            ]),
        ], n  # fmt: skip

    def grid(self, source: str, target: str, n: int) -> tuple[list[str], int]:
        """Accumulators in rows and columns, their sums over unrolled loops, and a part of them sent on by a switch."""
        rows, columns, kind = self.r.choice((1, 2, 3)), self.r.choice((2, 4)), self.type(8, 40)
        scope, late = Scope(), Scope()
        scope.values = {"x": source, "m[r][c]": kind, "ap_uint<3>(r)": "ap_uint<3>", "ap_uint<3>(c)": "ap_uint<3>"}
        late.values = {"total": "ap_int<64>", "most": kind, "x": source}
        cases = [f"case {c}: most = m[{self.r.randrange(rows)}][{self.r.randrange(columns)}]; break;" for c in range(2)]
        value, condition = self.expression(scope), self.condition(scope)
        return [
            f"{kind} m[{rows}][{columns}];",
            "UNROLL",
            f"for (int r = 0; r < {rows}; ++r) {{ UNROLL for (int c = 0; c < {columns}; ++c) m[r][c] = r - c; }}",
            *self.loop(n, [
                f"{source} x = from.read();",
                "ap_int<64> total = 0;",
                f"{kind} most = m[0][0];",
                "UNROLL",
                f"for (int r = 0; r < {rows}; ++r) {{",
                "  UNROLL",
                f"  for (int c = 0; c < {columns}; ++c) {{",
                f"    if ({condition}) m[r][c] += {kind}({value});",
                "    total += m[r][c];",
                "    if (m[r][c] > most) most = m[r][c];",
                "  }",
                "}",
                "switch (int(ap_uint<2>(ap_uint<64>(x)))) {",
                *(f"  {case}" for case in cases),
                "  default: break;",
                "}",
                f"to.write({target}({self.expression(late)}));",
            ]),
        ], n  # fmt: skip

    # whole designs
    def region(self) -> tuple[str, list[tuple[str, int]], list[tuple[str, int]]]:
        r = self.r
        n = r.randrange(2, 30)
        stages = r.randrange(1, 4)
        width_in, width_out = r.choice(WIDTHS), r.choice(WIDTHS)
        types = [f"ap_uint<{width_in}>", *(self.type(3, 130) for _ in range(stages - 1)), f"ap_uint<{width_out}>"]
        calls, declarations, previous = [], [], "in_0"
        self.parts.append(self.forward(f"{self.name}_take", types[0], types[0], n, "", "3"))
        calls.append(f"{self.name}_take(in, in_0);")
        declarations.append(f"hls::stream<{types[0]}, 3> in_0;")
        for k in range(stages):
            following = f"t_{k}"
            declarations.append(f"hls::stream<{types[k + 1]}, 3> {following};")
            if r.random() < 0.35:
                declared, called = self.lanes(types[k], types[k + 1], n, previous, following)
                declarations += declared
                calls += called
            else:
                name, n = self.process(types[k], types[k + 1], n)
                calls.append(f"{name}({previous}, {following});")
            previous = following
        self.parts.append(self.forward(f"{self.name}_give", types[-1], types[-1], n, "3", ""))
        calls.append(f"{self.name}_give({previous}, out);")
        inside = "\n  ".join([*declarations, *calls])
        text = f"void {self.name}(hls::stream<{types[0]}>& in, hls::stream<{types[-1]}>& out) {{\n  DATAFLOW\n  {inside}\n}}"
        return text, [("in", width_in)], [("out", width_out)]

    def lanes(self, source: str, target: str, n: int, previous: str, following: str) -> tuple[list[str], list[str]]:
        """A fork to an array of streams and back: one lane goes through a process of its own, which makes the others wait."""
        r = self.r
        count, kind = r.choice((2, 3)), self.type(3, 72)
        fork, join, link = (f"{self.name}_{self.fresh(stem)}" for stem in ("fork", "join", "link"))
        scope, late = Scope(), Scope()
        scope.values = {"x": source, "ap_uint<2>(k)": "ap_uint<2>"}
        late.values = {f"y[{k}]": kind for k in range(count)}
        body, _ = r.choice((self.map, self.update, self.shifts))(kind, kind, n)
        through = f"{self.name}_{self.fresh('through')}"
        self.parts.append(f"""
void {fork}(hls::stream<{source}, 3>& from, hls::stream<{kind}, 3> to[{count}]) {{
  for (int i = 0; i < {n}; ++i) {{
    {source} x = from.read();
    UNROLL
    for (int k = 0; k < {count}; ++k) to[k].write({kind}({self.expression(scope)}));
  }}
}}
void {through}(hls::stream<{kind}, 3>& from, hls::stream<{kind}, 3>& to) {{
  {chr(10).join(body)}
}}
void {join}(hls::stream<{kind}, 3> from[{count}], hls::stream<{kind}, 3>& last, hls::stream<{target}, 3>& to) {{
  for (int i = 0; i < {n}; ++i) {{
    {kind} y[{count}];
    UNROLL
    for (int k = 0; k < {count}; ++k) {{ if (k == 0) y[k] = last.read(); else y[k] = from[k].read(); }}
    to.write({target}({self.expression(late)}));
  }}
}}""")
        declared = [f"hls::stream<{kind}, 3> {link}[{count}];", f"hls::stream<{kind}, 3> {link}_last;"]
        calls = [
            f"{fork}({previous}, {link});",
            f"{through}({link}[0], {link}_last);",
            f"{join}({link}, {link}_last, {following});",
        ]
        return declared, calls

    def forward(self, name: str, source: str, target: str, n: int, depth_in: str, depth_out: str) -> str:
        def stream(type_: str, depth: str) -> str:
            return f"hls::stream<{type_}{', ' + depth if depth else ''}>&"

        return (
            f"void {name}({stream(source, depth_in)} from, {stream(target, depth_out)} to) {{\n"
            f"  for (int i = 0; i < {n}; ++i) to.write(from.read());\n}}"
        )

    def program(self) -> tuple[str, list[tuple[str, int]], list[tuple[str, int]]]:
        """A step machine over two memories of two banks, driven by headers in its stream."""
        r, n = self.r, self.name
        width = r.choice((24, 40, 72))
        word, depth, rows = f"ap_uint<{width}>", r.choice((20, 90)), r.randrange(3, 15)
        scope, more, inner = Scope(), Scope(), Scope()
        scope.values = {"x": word, "ap_uint<8>(i)": "ap_uint<8>", "h": "ap_uint<16>"}
        more.values = {"a": word, "b": word, "ap_uint<8>(i)": "ap_uint<8>"}
        inner.values = {"y": word}
        memory = f"{word} %s[2][{depth}]"
        text = f"""
void {n}_fill(ap_uint<16> h, hls::stream<{word}>& in, {memory % "m"}) {{
  for (ap_uint<8> i = 0; i < {rows}; ++i) {{
    {word} x = in.read();
    UNROLL
    for (int t = 0; t < 2; ++t) {{ if (t == (h[3] ? 1 : 0) || h[4]) m[t][i] = {word}({self.expression(scope)}); }}
  }}
}}
void {n}_send({memory % "m"}, hls::stream<{word}, 4>& link) {{
  for (int i = 0; i < {rows}; ++i) {{
    {word} a = m[0][i], b = m[1][i];
    link.write({word}({self.expression(more)}));
  }}
}}
void {n}_receive(ap_uint<16> h, hls::stream<{word}, 4>& link, {memory % "m"}) {{
  for (int i = 0; i < {rows}; ++i) {{
    {word} y = link.read();
    m[0][i] = {word}({self.expression(inner)});
    m[1][h[5] ? i : {rows - 1} - i] = y;
  }}
}}
void {n}_move(ap_uint<16> h, {memory % "x"}, {memory % "y"}) {{
  DATAFLOW
  hls::stream<{word}, 4> link;
  {n}_send(x, link);
  {n}_receive(h, link, y);
}}
void {n}_dump({memory % "m"}, hls::stream<{word}>& out) {{
  for (int i = 0; i < {rows}; ++i) {{
    UNROLL
    for (int t = 0; t < 2; ++t) {{ if (t == 0 || i < {rows // 2}) out.write(m[t][i]); }}
  }}
}}
void {n}_compute(hls::stream<{word}>& in, hls::stream<{word}>& out) {{
  static {memory % "m0"};
  static {memory % "m1"};
  ap_uint<8> turns = 0;
  while (turns != {r.randrange(3, 9)}) {{
    ap_uint<16> h = ap_uint<16>(in.read());
    switch (int(ap_uint<2>(h))) {{
      case 0: {n}_fill(h, in, m0); break;
      case 1: {n}_fill(h, in, m1); break;
      case 2: if (h[2]) {n}_move(h, m0, m1); else {n}_move(h, m1, m0); break;
      default: if (h[6]) {n}_dump(m0, out); break;
    }}
    ++turns;
  }}
  {n}_dump(m1, out);
  {n}_dump(m0, out);
}}
void {n}(hls::stream<{word}>& in, hls::stream<{word}>& out) {{
  DATAFLOW
  {n}_compute(in, out);
}}
"""
        return text, [("in", width)], [("out", width)]


def scope_without(scope: Scope, name: str) -> Scope:
    """A copy of a scope that lacks a variable not declared yet."""
    copy = Scope()
    copy.values = {k: v for k, v in scope.values.items() if k != name}
    copy.states = scope.states
    return copy
