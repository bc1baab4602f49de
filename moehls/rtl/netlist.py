"""A design elaborated by yosys, module by module: what the resource count synthesises one at a time.

In go SystemVerilog files and the top module; out comes the RTLIL text of every module with its instances. The text of a
module depends on its own source and parameters alone (no paths, no running numbers), so results can be kept by content.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import MoehlsError

_MEMORY = 6 << 30
"""bytes of address space that a run of yosys may take"""
_RUN = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY}, {_MEMORY}))
from pyosys import libyosys
design = libyosys.Design()
for line in sys.stdin:
    libyosys.run_pass(line.strip(), design)
"""
_PREPARE = (
    "proc",
    "opt_clean",
    "memory_collect",
    "memory_map -rom-only",  # tables lie in LUTs; the mapping of memories takes them port by port, without end
    "opt_expr",
    "opt_merge",
    "opt_clean",
)
_NUMBERED = re.compile(r"\$\S*\$\d+\S*")
"""a name that yosys made, with the place in the source or a running number in it"""


@dataclass(frozen=True)
class Module:
    """A module in yosys's text format."""

    name: str
    text: str
    interface: str
    """the same without contents"""
    cells: tuple[tuple[str, str], ...]
    """(type, instance name) of its cells, types as yosys names them"""

    def instances(self, modules: dict[str, Module]) -> tuple[tuple[str, str], ...]:
        """(module, instance name) of the cells that are modules of the design."""
        return tuple((kind, name) for kind, name in self.cells if kind in modules)


def elaborate(sources: Sequence[Path], top: str, build: Path) -> dict[str, Module]:
    """Modules by name, parameters resolved; a module with parameters is `name__` and a digest of them.

    Args:
        sources: SystemVerilog files.
        top: the top module.
        build: folder for yosys's files.

    Raises:
        MoehlsError: yosys refuses the RTL.
    """
    out = build / "design.il"
    files = " ".join(str(path.absolute()) for path in sources)
    read = ["read_verilog -lib +/xilinx/cells_xtra.v", f"read_verilog -sv {files}"]  # primitives are black boxes
    commands = [*read, f"hierarchy -check -purge_lib -top {top}", *_PREPARE, f"write_rtlil {out}"]
    run_yosys(commands, build / "read.log")
    text = out.read_text()
    for name in parse(text):
        if name.startswith("$paramod"):
            plain = name.split("\\")[1] if name.startswith("$paramod\\") else name.rsplit("\\", 1)[-1]
            new = f"\\{plain}__{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            text = text.replace(f" {name}\n", f" {new}\n").replace(f" {name} ", f" {new} ")
    return {name.removeprefix("\\"): module for name, module in parse(text).items()}


def parse(text: str) -> dict[str, Module]:
    """The modules of an RTLIL text, by their escaped names; without black boxes."""
    found: dict[str, Module] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith(("attribute \\src ", "attribute \\dynports ")):
            continue
        lines.append(line)
        if line == "end":
            start = next(i for i, x in enumerate(lines) if x.startswith("module "))
            body, attributes = lines[start:], lines[:start]
            lines = []
            if "attribute \\blackbox 1" in attributes:
                continue
            name = body[0].split()[1]
            ports = [x for x in body if x.startswith("  wire ") and (" input " in x or " output " in x)]
            cells = tuple(
                (x.split()[1].removeprefix("\\"), x.split()[2].removeprefix("\\"))
                for x in body
                if x.startswith("  cell ")
            )
            box = ["attribute \\blackbox 1", body[0], *ports, "end"]
            found[name] = Module(
                name.removeprefix("\\"), _renumbered("\n".join(body)) + "\n", "\n".join(box) + "\n", cells
            )
    return found


def _renumbered(text: str) -> str:
    """The text with the names that yosys made numbered in the order in which they appear."""
    numbers: dict[str, str] = {}
    return _NUMBERED.sub(lambda found: numbers.setdefault(found[0], f"$made${len(numbers)}"), text)


def run_yosys(commands: Sequence[str], log: Path) -> None:
    """Run commands in a yosys of their own.

    Raises:
        MoehlsError: a command fails; names yosys's error and the log.
    """
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
