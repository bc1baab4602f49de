"""Resources of RTL by yosys: every module synthesised for UltraScale+ on its own, then summed over the hierarchy.

In go SystemVerilog files and the top module; out comes `Usage`: DSP48E2, block RAM (of 36 kbit), URAM, LUTs and flip-flops a
module and in all. A module is synthesised with its children as black boxes, in a process of its own, and its counts are
kept by content in the build folder. yosys leaves adder trees in LUTs where Vivado chains DSPs, so its LUTs are pessimistic.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from moehls.errors import MoehlsError

_MEMORY = 6 << 30
"""bytes that one synthesis may take"""
_RUN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
from pyosys import libyosys
design = libyosys.Design()
for line in sys.stdin:
    libyosys.run_pass(line.strip(), design)
"""
_SYNTHESIS = (
    "scratchpad -set abc9.fast 1",
    "proc",
    "opt_clean",
    "memory_collect",
    "memory_map -rom-only",  # tables lie in LUTs; the mapping of memories takes them port by port, without end
    "synth_xilinx -family xcup -uram -noiopad -noclkbuf -top {top}",
)
_FLIP_FLOPS = ("FDRE", "FDSE", "FDCE", "FDPE", "LDCE", "LDPE")
_LUT_MEMORIES = {
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X16DR8": 8,
    "RAM64X8SW": 8, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Resources of a module or of a design."""

    dsp: int = 0
    bram36: float = 0.0
    uram: int = 0
    lut: int = 0
    ff: int = 0

    def __add__(self, other: Cells) -> Cells:
        return Cells(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Usage:
    """Resources by module name with all below it, and of the whole design."""

    modules: dict[str, Cells]
    total: Cells

    def as_json(self) -> dict[str, dict[str, float]]:
        """For report/resources.json."""
        return {name: asdict(cells) for name, cells in {**self.modules, "total": self.total}.items()}


@dataclass(frozen=True)
class Module:
    """A module of the elaborated design in yosys's text format (RTLIL)."""

    name: str
    text: str
    interface: str
    """the same without contents"""
    cells: tuple[str, ...]
    """types of its cells"""


def count(sources: Sequence[Path], top: str, build: Path, jobs: int | None = None) -> Usage:
    """Synthesise every module below `top`.

    Args:
        sources: SystemVerilog files.
        top: the top module.
        build: folder for yosys's files and the counts that are kept.
        jobs: modules at a time; all processors without it.

    Raises:
        MoehlsError: pyosys is missing, or yosys refuses the RTL.
    """
    if importlib.util.find_spec("pyosys") is None:
        raise MoehlsError("resources are counted by yosys, which is not installed; pip install 'moehls[rtl]'")
    build.mkdir(parents=True, exist_ok=True)
    modules = _elaborate(sources, top, build)
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        own = dict(zip(modules, pool.map(lambda name: _synthesise(modules, name, build), modules), strict=True))
    whole: dict[str, Cells] = {}

    def below(name: str) -> Cells:
        if name not in whole:
            children = (below(cell) for cell in modules[name].cells if cell in modules)
            whole[name] = sum(children, own[name])
        return whole[name]

    total = below(top)
    return Usage({name: whole[name] for name in sorted(whole) if "__" not in name}, total)


def _elaborate(sources: Sequence[Path], top: str, build: Path) -> dict[str, Module]:
    """Modules by name, parameters resolved; instances of one module with other parameters are `name__n`."""
    out = build / "design.il"
    files = " ".join(str(path.absolute()) for path in sources)
    _yosys([f"read_verilog -sv {files}", f"hierarchy -check -top {top}", f"write_rtlil {out}"], build / "read.log")
    modules = parse(out.read_text())
    names: dict[str, str] = {}
    kinds: Counter[str] = Counter()
    for name in sorted(modules):
        plain = name.rsplit("\\", 1)[-1]
        kinds[plain] += name.startswith("$paramod")
        names[name] = f"\\{plain}__{kinds[plain]}" if name.startswith("$paramod") else name
    text = out.read_text()
    for name, new in names.items():
        if name != new:
            text = text.replace(f" {name}\n", f" {new}\n").replace(f" {name} ", f" {new} ")
    return {name.removeprefix("\\"): module for name, module in parse(text).items()}


def parse(text: str) -> dict[str, Module]:
    """The modules of an RTLIL text, by their escaped names."""
    found: dict[str, Module] = {}
    lines: list[str] = []
    for line in text.splitlines():
        lines.append(line)
        if line == "end":
            start = next(i for i, x in enumerate(lines) if x.startswith("module "))
            body = lines[start:]
            name = body[0].split()[1]
            ports = [x for x in body if x.startswith("  wire ") and (" input " in x or " output " in x)]
            cells = tuple(x.split()[1].removeprefix("\\") for x in body if x.startswith("  cell "))
            box = ["attribute \\blackbox 1", body[0], *ports, "end"]
            found[name] = Module(name.removeprefix("\\"), "\n".join(lines) + "\n", "\n".join(box) + "\n", cells)
            lines = []
    return found


def _synthesise(modules: dict[str, Module], name: str, build: Path) -> Cells:
    module = modules[name]
    boxes = [modules[cell].interface for cell in sorted(set(module.cells)) if cell in modules]
    text = "\n".join([*boxes, module.text])
    key = hashlib.sha256((repr(_SYNTHESIS) + text).encode()).hexdigest()[:16]
    kept = build / f"{name}.{key}.json"
    if not kept.exists():
        before, after = build / f"{name}.{key}.il", build / f"{name}.{key}.mapped.il"
        before.write_text(text)
        commands = [f"read_rtlil {before}", *(x.format(top=name) for x in _SYNTHESIS), f"write_rtlil {after}"]
        _yosys(commands, build / f"{name}.log")
        mapped = parse(after.read_text())[f"\\{name}"]
        kept.write_text(json.dumps(asdict(cells_of(mapped.cells))) + "\n")
        before.unlink()
        after.unlink()
    return Cells(**json.loads(kept.read_text()))


def cells_of(types: Iterable[str]) -> Cells:
    """What cells of the Xilinx library take; a RAMB18 is half a block RAM."""
    number = Counter(types)
    luts = sum(n for name, n in number.items() if name.startswith("LUT") or name == "INV")
    luts += sum(_LUT_MEMORIES.get(name, 0) * n for name, n in number.items())
    return Cells(
        dsp=number["DSP48E2"],
        bram36=sum(n for name, n in number.items() if name.startswith("RAMB36"))
        + sum(n for name, n in number.items() if name.startswith("RAMB18")) / 2,
        uram=number["URAM288"],
        lut=luts,
        ff=sum(number[name] for name in _FLIP_FLOPS),
    )


def _yosys(commands: list[str], log: Path) -> None:
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", _RUN],
            input="\n".join(commands) + "\n",
            stdout=file,
            stderr=file,
            text=True,
            check=False,
        )
    if done.returncode:
        errors = [line for line in log.read_text().splitlines() if line.startswith("ERROR")]
        raise MoehlsError(f"yosys fails on the RTL ({errors[0] if errors else 'perhaps out of memory'}); see {log}")
