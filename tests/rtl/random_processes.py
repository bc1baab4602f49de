"""Random C++ in the generator's subset: processes over streams, memories, tables and registers."""

from __future__ import annotations

from tests.rtl.random_statements import Scope, Statements, scope_without


class Processes(Statements):
    """Random processes: each takes `n` words of type `source` a call and gives so many of `target`."""

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
