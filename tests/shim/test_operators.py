"""`ap_int.h` gives what the open Xilinx `ap_types` give: every operator × width mix × random values.

One C++ program, generated from a seed, is compiled twice: by g++ against the headers that come with the `hls4ml` package, and by
the clang of `ziglang` against ours. Each prints a line for each operation: width and sign of the result's type, and its value.
"""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from moehls.simulate.verilator import compiler

SHIM = Path(__file__).parents[2] / "templates" / "hls" / "shim"
WIDTHS = (1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 48, 63, 64, 65, 100, 128, 264, 513)
C_TYPES = {
    "bool": (1, False),
    "char": (8, True),
    "signed char": (8, True),
    "unsigned char": (8, False),
    "short": (16, True),
    "unsigned short": (16, False),
    "int": (32, True),
    "unsigned": (32, False),
    "long": (64, True),
    "unsigned long": (64, False),
    "long long": (64, True),
    "unsigned long long": (64, False),
}

PRELUDE = r"""
#include "ap_int.h"
#include <cstdio>

template <class T> struct Type { static void print() { std::printf("%c%zu ", T(-1) < T(0) ? 's' : 'u', 8 * sizeof(T)); } };
template <> struct Type<bool> { static void print() { std::printf("bool "); } };
template <int W> struct Type<ap_int<W>> { static void print() { std::printf("i%d ", W); } };
template <int W> struct Type<ap_uint<W>> { static void print() { std::printf("u%d ", W); } };
template <int W> void digits(const ap_uint<W>& x) {
  ap_uint<W> v = x;
  for (int i = 0; i < W; i += 32) { std::printf("%08x", v.to_uint()); if (W > 32) v >>= 32; }
}
template <class T> void value(const T& x) { std::printf("%llx", (unsigned long long)x); }
template <int W> void value(const ap_int<W>& x) { digits(ap_uint<W>(x)); }
template <int W> void value(const ap_uint<W>& x) { digits(x); }
template <class T> void show(int id, const T& x) { std::printf("%d ", id); Type<T>::print(); value(x); std::printf("\n"); }
template <int W, class T> ap_uint<W> make(const T* words) {
  ap_uint<W> v = 0;
  for (int i = 0; i < W; i += 32) { if (W > 32) v <<= 32; v |= ap_uint<W>(words[i / 32]); }
  return v;
}
"""


class Program:
    """A random program: `lines` of C++ in functions of `CHUNK` operations each."""

    CHUNK = 40

    def __init__(self, seed: int, operations: int) -> None:
        self.random = random.Random(seed)
        self.functions: list[str] = []
        self.lines: list[str] = []
        self.count = 0
        generators = (
            self.arithmetic,
            self.arithmetic,
            self.division,
            self.shift,
            self.comparison,
            self.assignment,
            self.unary,
            self.slice,
            self.bits,
            self.concatenation,
            self.conversion,
        )
        for i in range(operations):
            generators[i % len(generators)]()
            if i % self.CHUNK == self.CHUNK - 1 or i == operations - 1:
                body = "\n  ".join(self.lines)
                self.functions.append(f"static void f{len(self.functions)}() {{\n  {body}\n}}")
                self.lines = []

    def text(self) -> str:
        calls = " ".join(f"f{i}();" for i in range(len(self.functions)))
        return PRELUDE + "\n".join(self.functions) + f"\nint main() {{ {calls} }}\n"

    def show(self, expression: str) -> None:
        self.lines.append(f"show({self.count}, {expression});")
        self.count += 1

    def number(self, sign: bool | None = None) -> tuple[str, int, bool]:
        """Declares a random number; its name, width and sign. Extremes are as likely as the rest."""
        r = self.random
        width = r.choice(WIDTHS)
        signed = r.random() < 0.5 if sign is None else sign
        kind = r.randrange(6)
        words = [{0: 0, 1: 0xFFFFFFFF}.get(kind, r.getrandbits(32)) for _ in range(width // 32 + 1)]
        if kind == 2:
            words = [r.choice((0, 1, 2, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF)) for _ in words]
        name = f"v{self.count}"
        self.count += 1
        values = ", ".join(f"{w:#x}u" for w in words)
        self.lines.append(f"const unsigned w{name}[] = {{{values}}};")
        self.lines.append(f"{'ap_int' if signed else 'ap_uint'}<{width}> {name} = make<{width}>(w{name});")
        return name, width, signed

    def integer(self, sign: bool | None = None) -> tuple[str, int, bool]:
        r = self.random
        ctype = r.choice([t for t, (_, s) in C_TYPES.items() if sign is None or s == sign])
        width, signed = C_TYPES[ctype]
        name = f"c{self.count}"
        self.count += 1
        value = r.choice((0, 1, (1 << width) - 1, 1 << (width - 1), r.getrandbits(width), r.getrandbits(width)))
        self.lines.append(f"{ctype} {name} = ({ctype}){value:#x}ull;")
        return name, width, signed

    def bounds(self, width: int) -> tuple[int, int]:
        low = self.random.randrange(width)
        return self.random.randrange(low, width), low

    def operands(self, sign: bool | None = None) -> tuple[str, str]:
        """Two operands, at least one a number or a slice."""
        r = self.random
        kind = r.randrange(7)
        a, wa, _ = self.number(sign)
        if kind < 3:
            return a, self.number(sign)[0]
        if kind == 3:
            return a, self.integer(sign)[0]
        if kind == 4:
            return self.integer(sign)[0], a
        if sign:
            return a, a
        high, low = self.bounds(wa)
        piece = f"{a}.range({high}, {low})"
        other = r.choice((self.number, self.integer))(sign)[0]
        return (piece, other) if kind == 5 else (other, piece)

    def arithmetic(self) -> None:
        a, b = self.operands()
        self.show(f"({a} {self.random.choice('+-*&|^')} {b})")

    def division(self) -> None:
        sign = self.random.random() < 0.5
        a, b = self.number(sign)[0], self.random.choice((self.number, self.integer))(sign)[0]
        self.lines.append(f"if ({b} == 0) {b} = 1;")
        self.show(f"({a} {self.random.choice('/%')} {b})")

    def shift(self) -> None:
        r = self.random
        a, width, _ = self.number()
        kind = r.randrange(4)
        places = r.randrange(-width - 2, width + 3) if kind else r.randrange(width)
        if kind == 0:
            amount = str(places)
        elif kind == 1:
            amount = f"ap_int<{max(places.bit_length() + 1, 2)}>({places})"
        elif kind == 2:
            places = abs(places)
            amount = f"ap_uint<{max(places.bit_length(), 1)}>({places})"
        else:
            amount = f"(short){places}"
        operator = r.choice(("<<", ">>"))
        if r.random() < 0.3:
            self.lines.append(f"{a} {operator}= {amount};")
            self.show(a)
        else:
            self.show(f"({a} {operator} {amount})")

    def comparison(self) -> None:
        a, b = self.operands()
        for operator in ("==", "!=", "<", "<=", ">", ">="):
            self.show(f"({a} {operator} {b})")

    def assignment(self) -> None:
        a, _, _ = self.number()
        b = self.random.choice((self.number, self.integer))()[0]
        self.lines.append(f"{a} {self.random.choice('+-*&|^')}= {b};")
        self.show(a)

    def unary(self) -> None:
        a, width, signed = self.number()
        for expression in (f"(-{a})", f"(~{a})", f"(+{a})", f"(!{a})", f"({a}++)", f"({a}--)"):
            self.show(expression)
        self.lines.append(f"++{a}; --{a}; --{a};")
        self.show(a)
        self.show(f"(bool({a}.and_reduce()))")
        self.show(f"(bool({a}.or_reduce()))")
        if not signed:  # the vendor's simulation model counts the sign extension, its hardware cannot
            self.show(f"(bool({a}.xor_reduce()))")
        if width > 1:
            self.show(f"(int({a}.countLeadingZeros()))")

    def slice(self) -> None:
        a, width, _ = self.number()
        high, low = self.bounds(width)
        b = self.random.choice((self.number, self.integer))()[0]
        self.show(f"(ap_uint<{width}>({a}.range({high}, {low})))")
        self.show(f"({a}.range({high}, {low}).to_int())")
        self.lines.append(f"{a}({high}, {low}) = {b};")
        self.show(a)
        c, other, _ = self.number()
        high, low = self.bounds(other)
        self.lines.append(f"{c}.range({high}, {low}) = {a}.range({width - 1}, {width // 2});")
        self.show(c)

    def bits(self) -> None:
        a, width, _ = self.number()
        b, other, _ = self.number()
        i, j = self.random.randrange(width), self.random.randrange(other)
        self.show(f"(bool({a}[{i}]))")
        self.show(f"({a}[{i}] {self.random.choice('+-*&|^')} {b})")
        self.show(f"({b} {self.random.choice(('==', '<', '>='))} {a}[{i}])")
        self.show(f"(int({a}[{i}] + {b}[{j}]))")
        self.lines.append(
            f"{a}[{i}] = {b}; {b}[{j}] = {a}[{i}]; {a}.set_bit(0, {self.random.choice(('true', 'false'))});"
        )
        self.show(a)
        self.show(b)

    def concatenation(self) -> None:
        a, wa, _ = self.number()
        b, wb, _ = self.number()
        c, wc, _ = self.number()
        ha, la = self.bounds(wa)
        hb, lb = self.bounds(wb)
        total = wa + wb + wc
        self.show(f"(ap_uint<{total}>(({a}, {b}, {c})))")
        self.show(f"(ap_uint<{total}>(({a}.range({ha}, {la}), {b}.range({hb}, {lb}), {c}[0])))")
        self.show(f"(ap_uint<{total}>({a}.concat({b})))")
        self.show(f"(({a}, {b}) == {c})")
        self.lines.append(f"({a}, {b}) = {c};")
        self.show(a)
        self.show(b)

    def conversion(self) -> None:
        a, _, _ = self.number()
        b, wb, sb = self.number()
        c = self.integer()[0]
        self.lines.append(f"{a} = {b};")
        self.show(a)
        self.lines.append(f"{a} = {c};")
        self.show(a)
        methods = ("to_int", "to_uint", "to_int64", "to_uint64", "to_short", "to_ushort")
        for method in methods if wb > 64 else (*methods, "to_bool"):
            self.show(f"({b}.{method}())")
        self.show(f"(long({b}))")
        self.show(f"(bool({b} && {a}))")
        self.show(f"({'ap_int' if sb else 'ap_uint'}<{wb}>({b} != 0 ? {b} : {b}))")


def vendor_headers() -> Path:
    spec = importlib.util.find_spec("hls4ml")
    assert spec and spec.submodule_search_locations, "hls4ml is in the dev extra"
    return Path(spec.submodule_search_locations[0]) / "templates" / "vivado" / "ap_types"


def run(command: list[str], cache: Path) -> str:
    environment = dict(os.environ, ZIG_GLOBAL_CACHE_DIR=os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(cache)))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("seed", [1])
def test_operators_have_the_vendors_type_and_value(seed: int, tmp_path: Path) -> None:
    source = tmp_path / "operators.cpp"
    source.write_text(Program(seed, 220).text())
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    compiled = tmp_path / "ours.o"
    run(
        [
            sys.executable,
            "-m",
            "ziglang",
            "c++",
            "-c",
            "-std=c++20",
            "-O0",
            "-w",
            "-fno-sanitize=all",
            f"-I{SHIM}",
            str(source),
            "-o",
            str(compiled),
        ],
        tmp_path,
    )
    run([*compiler(), str(compiled), "-o", str(ours)], tmp_path)
    # without the vendor's std::complex of an ap_int, which is not for the C++ library of the ziglang package
    run(
        [
            *compiler(),
            "-std=c++17",
            "-O0",
            "-w",
            "-D__AP_INT_SPECIAL_H__",
            "-D__AP_FIXED_SPECIAL_H__",
            "-DAP_INT_MAX_W=4096",
            f"-I{vendor_headers()}",
            str(source),
            "-o",
            str(theirs),
        ],
        tmp_path,
    )
    found, printed = run([str(ours)], tmp_path).splitlines(), run([str(theirs)], tmp_path).splitlines()
    expected = [line for line in printed if line[0].isdigit()]  # the vendor's model warns on stdout
    differences = [(e, f) for e, f in zip(expected, found, strict=True) if e != f]
    assert not differences, f"seed {seed}, {source}: (vendor, ours) of show(first number, …): {differences[:20]}"
