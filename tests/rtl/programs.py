"""Random C++ in the generator's subset: regions of processes over streams, memories, tables and registers, and programs that
call them with swapped memories."""

from __future__ import annotations

from tests.rtl.bench import Design
from tests.rtl.random_processes import Processes
from tests.rtl.random_statements import WIDTHS, Scope

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


class Generator(Processes):
    """One random design, a function of its seed."""

    def design(self) -> Design:
        body, inputs, outputs = self.program() if self.r.random() < 0.25 else self.region()
        return Design(self.name, PREAMBLE + "\n".join([*self.parts, body]), tuple(inputs), tuple(outputs))

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
