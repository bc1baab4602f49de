"""C++ run natively against the RTL made of it: same random inputs, equal outputs, under random stalls.

Many designs share one Verilator build and one native binary, since compiling costs far more than running.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from moehls.rtl.generate import Generated, generate_modules
from moehls.simulate import verilator
from moehls.simulate.looped import looped

SHIM = Path(__file__).parents[2] / "templates" / "hls" / "shim"


@dataclass(frozen=True)
class Design:
    """A C++ source whose top function `name` has single streams as parameters: (name, type's width)."""

    name: str
    text: str
    inputs: tuple[tuple[str, int], ...]
    outputs: tuple[tuple[str, int], ...]
    calls: int = 2


RANDOM = """
#include <cstdint>
#include <cstdio>
#include <cstdlib>
static uint32_t mix(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  uint64_t z = a * 0x9E3779B97F4A7C15ull + b * 0xBF58476D1CE4E5B9ull + c * 0x94D049BB133111EBull + d * 0xD6E8FEB86659FD93ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return uint32_t(z ^ (z >> 31));
}
// word w of value k of an input: zeros, ones and small numbers are as likely as the rest
static uint32_t stimulus(int design, int stream, int k, int w) {
  switch (mix(design, stream, k, 999) % 6) {
    case 0: return w ? 0 : mix(design, stream, k, 7) % 5;
    case 1: return 0xFFFFFFFF;
    default: return mix(design, stream, k, w);
  }
}
"""

SUPPLY = 6000


def native_source(design: Design, index: int) -> str:
    """A translation unit that runs one design and prints what comes out."""
    declarations = "".join(f"  static hls::stream<ap_uint<{w}>> {n};\n" for n, w in (*design.inputs, *design.outputs))
    fill = "".join(
        f"  for (int k = 0; k < {SUPPLY}; k++) {{ ap_uint<{w}> v = 0; for (int i = {(w - 1) // 32}; i >= 0; i--) "
        f"{{ {'v <<= 32;' if w > 32 else ''} v |= ap_uint<{w}>(stimulus({index}, {s}, k, i)); }} {n}.write(v); }}\n"
        for s, (n, w) in enumerate(design.inputs)
    )
    drain = "".join(
        f'  while (!{n}.empty()) {{ ap_uint<{w}> v = {n}.read(); std::printf("{design.name} {n}"); '
        f'for (int i = 0; i < {(w + 31) // 32}; i++) {{ std::printf(" %08x", v.to_uint()); '
        f'{"v >>= 32;" if w > 32 else ""} }} std::printf("\\n"); }}\n'
        for n, w in design.outputs
    )
    arguments = ", ".join(n for n, _ in (*design.inputs, *design.outputs))
    calls = f"{design.name}({arguments}); " * design.calls
    return f"{design.text}\n{RANDOM}\nvoid run_{design.name}() {{\n{declarations}{fill}  {calls}\n{drain}}}\n"


def run_native(designs: list[Design], folder: Path) -> dict[str, list[str]]:
    """Outputs of the C++ by "design stream"."""
    zig = [
        sys.executable,
        "-m",
        "ziglang",
        "c++",
        "-c",
        "-std=c++20",
        "-O0",
        "-w",
        "-fno-sanitize=all",
        "-fno-exceptions",
        "-fno-rtti",
    ]
    environment = dict(os.environ)
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(folder / "zig-cache"))
    objects = []
    for i, design in enumerate(designs):
        source = folder / f"native_{design.name}.cpp"
        source.write_text(native_source(design, i))
        objects.append(str(source.with_suffix(".o")))
        _call([*zig, f"-I{SHIM}", str(source), "-o", objects[-1]], environment)
    main = folder / "native_main.cpp"
    names = [d.name for d in designs]
    main.write_text(
        "".join(f"void run_{n}();\n" for n in names) + "int main() { " + "".join(f"run_{n}(); " for n in names) + "}\n"
    )
    _call([*verilator.compiler(), str(main), *objects, "-o", str(folder / "native")], environment)
    return _collect(_call([str(folder / "native")], environment))


def _call(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=600)
    assert done.returncode == 0, f"{' '.join(command)[:300]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _collect(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        design, stream, *words = line.split()
        found.setdefault(f"{design} {stream}", []).append(" ".join(words))
    return found


def generate(design: Design, folder: Path) -> Generated:
    """The RTL of one design."""
    source = folder / f"{design.name}.cpp"
    source.write_text(design.text)
    return generate_modules([source], [SHIM], folder, design.name)


def _wrapper(designs: list[Design], made: list[Generated]) -> str:
    """All designs in one module; a stream is wired out at its C++ width."""
    ports, lines = ["input wire clock", "input wire reset"], []
    for d, g in zip(designs, made, strict=True):
        top = g.units.units[g.units.design.top]
        known = {p.name: p for p in g.ports(top)}
        ports += [f"input wire {d.name}_start", f"output wire {d.name}_done"]
        pairs = [".clock(clock)", ".reset(reset)", f".start({d.name}_start)", f".done({d.name}_done)"]
        for direction, streams in (("in", d.inputs), ("out", d.outputs)):
            for n, w in streams:
                inward, outward = ("input", "output") if direction == "in" else ("output", "input")
                ports += [f"{inward} wire [{w - 1}:0] {d.name}_{n}_data", f"{inward} wire {d.name}_{n}_valid"]
                ports += [f"{outward} wire {d.name}_{n}_ready"]
                if f"{n}_data" not in known:
                    lines.append(f"assign {d.name}_{n}_{'ready' if direction == 'in' else 'valid'} = 1'b0;")
                    continue
                width = known[f"{n}_data"].width
                data = f"{d.name}_{n}_data"
                pairs.append(f".{n}_data({data}{f'[{min(width, w) - 1}:0]' if direction == 'in' else ''})")
                pairs += [f".{n}_valid({d.name}_{n}_valid)", f".{n}_ready({d.name}_{n}_ready)"]
        lines.append(f"{g.top} {d.name}_instance ({', '.join(pairs)});")
    return f"module bench ({', '.join(ports)});\n" + "\n".join(lines) + "\nendmodule\n"


def _driver(designs: list[Design]) -> str:
    parts = []
    for i, d in enumerate(designs):
        p = d.name
        sends = "".join(
            f"""    if (!held[{i}][{s}] && chance(stall, {i}, {s})) held[{i}][{s}] = true;
    {{ uint32_t w[{(width + 31) // 32 + 1}];
      for (int k = 0; k < {(width + 31) // 32 + 1}; k++) w[k] = stimulus({i}, {s}, sent[{i}][{s}], k);
      put(m.{p}_{n}_data, w, {width}); m.{p}_{n}_valid = held[{i}][{s}]; }}
"""
            for s, (n, width) in enumerate(d.inputs)
        )
        takes = "".join(f"    m.{p}_{n}_ready = chance(stall, {i}, {50 + s});\n" for s, (n, _) in enumerate(d.outputs))
        sent = "".join(
            f"    if (m.{p}_{n}_valid && m.{p}_{n}_ready) {{ sent[{i}][{s}]++; held[{i}][{s}] = false; }}\n"
            for s, (n, _) in enumerate(d.inputs)
        )
        taken = "".join(
            f'    if (m.{p}_{n}_valid && m.{p}_{n}_ready) {{ std::printf("{p} {n}"); show(m.{p}_{n}_data, {(w + 31) // 32}); }}\n'
            for n, w in d.outputs
        )
        parts.append((
            f"    m.{p}_start = ready_to_start({i}, {d.calls});\n{sends}{takes}",
            f"{sent}{taken}    if (m.{p}_done) finished({i}, {d.calls});\n",
        ))  # fmt: skip
    before = "".join(b for b, _ in parts)
    after = "".join(a for _, a in parts)
    n = len(designs)
    return f"""#include "Vbench.h"
#include "verilated.h"
{RANDOM}
template <class T> static void put(T& s, const uint32_t* w, int width) {{
  if constexpr (std::is_integral_v<T>) {{
    uint64_t v = w[0] | (width > 32 ? uint64_t(w[1]) << 32 : 0);
    s = T(width < 64 ? v & ((1ull << width) - 1) : v);
  }} else {{
    for (int i = 0; i * 32 < width; i++) s[i] = w[i];
    if (width % 32) s[width / 32] &= (1u << width % 32) - 1;
  }}
}}
template <class T> static void show(const T& s, int words) {{
  for (int i = 0; i < words; i++) {{
    if constexpr (std::is_integral_v<T>) std::printf(" %08x", uint32_t(uint64_t(s) >> (i ? 32 : 0)));
    else std::printf(" %08x", uint32_t(s[i]));
  }}
  std::printf("\\n");
}}
static uint64_t cycle = 0;
static bool held[{n}][50];
static int sent[{n}][50], calls[{n}], state[{n}], remaining = 0;
static bool chance(int stall, int design, int what) {{ return int(mix(design, what, cycle, 31) % 100) >= stall; }}
static bool ready_to_start(int i, int most) {{
  if (state[i] || calls[i] == most) return false;
  state[i] = 1;
  return true;
}}
static void finished(int i, int most) {{ state[i] = 0; if (++calls[i] == most) remaining--; }}
int main(int argc, char** argv) {{
  const int stall = std::atoi(argv[1]);
  Vbench m;
  remaining = {n};
  m.reset = 1;
  for (int i = 0; i < 4; i++) {{ m.clock = 0; m.eval(); m.clock = 1; m.eval(); }}
  m.reset = 0;
  for (cycle = 0; cycle < 400000 && remaining; cycle++) {{
    m.clock = 0;
{before}    m.eval();
{after}    m.clock = 1;
    m.eval();
  }}
  for (int i = 0; i < {n}; i++) if (state[i] || calls[i] == 0) std::printf("hung %d\\n", i);
  std::fprintf(stderr, "%llu cycles\\n", (unsigned long long)cycle);
}}
"""


def compare(designs: list[Design], folder: Path, stalls: tuple[int, ...] = (0, 40)) -> list[str]:
    """Differences between C++ and RTL, one text each; every second design `looped`, with all lanes there are."""
    made = [generate(d, folder) for d in designs]
    sources: dict[str, str] = {}
    for n, g in enumerate(made):
        for name, emitted in g.files.items():
            text = looped(emitted, least=2, statements=4) if n % 2 else emitted
            assert sources.setdefault(name, text) == text, f"two designs have a module {name}"
    sources["bench.sv"] = _wrapper(designs, made)
    paths = []
    for name, text in sorted(sources.items()):
        (folder / name).write_text(text)
        paths.append(folder / name)
    (folder / "driver.cpp").write_text(_driver(designs))
    # compiling takes far longer than running: no optimisation
    job = verilator.Build("bench", "Vbench", tuple(paths), (folder / "driver.cpp",), fast=False)
    program = verilator.build(job, folder / "verilated")
    expected = run_native(designs, folder)
    problems = []
    for stall in stalls:
        found = _collect(_call([str(program), str(stall)]))
        problems += [
            f"stall {stall}: design {designs[int(k.split()[1])].name} hangs" for k in found if k.startswith("hung")
        ]
        for key in sorted(set(expected) | set(found)):
            if key.startswith("hung"):
                continue
            e, f = expected.get(key, []), found.get(key, [])
            if e != f:
                at = next((i for i, (x, y) in enumerate(zip(e, f, strict=False)) if x != y), min(len(e), len(f)))
                problems.append(
                    f"stall {stall}: {key} value {at} of {len(e)}/{len(f)}: C++ {e[at : at + 1]}, RTL {f[at : at + 1]}"
                )
    return problems
