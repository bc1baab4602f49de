"""Fault injection: breaks in a project's C++, and whether verification sees them.

In go a project and a number; out comes for every break whether a check went red. All breaks of a campaign are compiled into one
C simulation: every source file stands in a namespace of its own, a broken copy of it in another, and a call of a process goes
to the copy whose number is set. A break is an operator, a constant, a width, an index or a condition of one line.

It is seen by wrong values, by a stream that is read while it is empty or left with values (the hardware would hang), and by
iterations: every pipelined loop is counted, and the cycles that docs/hls.md gives a process are those of its loop.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import CheckFailed, MoehlsError
from moehls.project import Project
from moehls.resources import resource as package_file
from moehls.simulate.csim import Library
from moehls.simulate.faults import KINDS, Check, Fault

_INLINE = ("arithmetic", "nest")
"""headers with functions: a break in one is tried in every file that reads it"""
_FRAME = ("burst", "kernel")
"""files that stay as they are: the movers stand for AXI masters, the kernel only calls"""
_FLAGS = ("-std=c++20", "-O1", "-w", "-fPIC", "-fno-sanitize=all", "-fno-exceptions", "-fno-rtti", "-ferror-limit=0")
_SECONDS = 20
"""CPU time after which a broken frame hangs"""
_DEFINED = re.compile(r"^(?:static )?void (\w+)\(", re.MULTILINE)
_INCLUDE = re.compile(r'^#(?:pragma once|include "[^"]+")\n', re.MULTILINE)
_OPERATORS = {" + ": " - ", " - ": " + ", " < ": " >= ", " == ": " != ", " > ": " <= ", " != ": " == ", " && ": " || ",
              " || ": " && ", " >> ": " << ", " << ": " >> ", " * ": " + ", " += ": " -= ", " | ": " & "}  # fmt: skip
_CONSTANT = re.compile(r"(?<![\w.<>])\d+(?![\w.>])")
_WIDTH = re.compile(r"\bap_u?int<([^<>]+)>")
_INDEX = re.compile(r"(?<=\w)\[([^\[\]]+)\](?!\s*;)")
_INITIAL = re.compile(r"^    +[\w:<>* ]+ \w+ = \d+;$")
"""a first value, which the subset wants where it means nothing too"""
_NARROW = 8
"""bits up to which a width may be more than this machine needs"""
_CONDITION = re.compile(r"\bif \((.+)\)(?= |$)")
_PIPELINE = re.compile(r"^ +PIPELINE\b", re.MULTILINE)
_SPARE = 8
"""one in so many breaks may not compile: so many more are drawn"""


@dataclass(frozen=True)
class Outcome:
    """What a break did to the frames: `seen` names the check that went red, None where none did."""

    fault: Fault
    seen: str | None


def sites(path: Path) -> Iterator[Fault]:
    """Every break of a file: of the lines inside its functions."""
    signature = False
    for number, line in enumerate(path.read_text().splitlines()):
        code = line.split("//")[0].rstrip()
        if line[:1] not in ("", " ", "}", "/", "#"):
            signature = "(" in code and not code.endswith(("{", ";"))
        elif signature:
            signature = not code.endswith(("{", ";"))
        elif code.startswith("    ") and not code.lstrip().startswith(("UNROLL", "PIPELINE", "static_assert")):
            for kind, broken in _breaks(code):
                yield Fault(path.name, number, kind, code.strip(), broken)


def _breaks(code: str) -> Iterator[tuple[str, str]]:
    for operator, other in _OPERATORS.items():
        if code.count(operator) == 1:
            yield "operator", code.replace(operator, other)
    changes: dict[str, tuple[re.Pattern[str], Callable[[re.Match[str]], str]]] = {
        "constant": (_CONSTANT, lambda m: str(int(m[0]) ^ 1)),
        "width": (_WIDTH, lambda m: m[0].replace(m[1], f"({m[1]} + 3) / 4")),
        "index": (_INDEX, lambda m: "[1]" if m[1] == "0" else "[0]"),
        "condition": (_CONDITION, lambda m: f"if (!({m[1]}))"),
    }
    for kind, (pattern, change) in changes.items():
        for found in list(pattern.finditer(code))[:1]:
            if kind == "width" and found[1].isdigit() and int(found[1]) <= _NARROW:
                continue
            if kind == "constant" and _INITIAL.match(code):
                continue
            yield kind, code[: found.start()] + change(found) + code[found.end() :]


def choose(project: Project, number: int, seed: int) -> list[Fault]:
    """`number` breaks, as evenly as can be over the kinds and files, one a line."""
    generator = random.Random(seed)
    found: dict[tuple[str, str], list[Fault]] = {}
    for path in _files(project.path):
        for fault in sites(path):
            found.setdefault((fault.kind, fault.file), []).append(fault)
    queues = list(found.values())
    generator.shuffle(queues)
    queues.sort(key=lambda queue: KINDS.index(queue[0].kind))
    for queue in queues:
        generator.shuffle(queue)
    by_kind = [[queue for queue in queues if queue[0].kind == kind] for kind in KINDS]
    chosen: list[Fault] = []
    taken: set[tuple[str, int]] = set()
    while len(chosen) < number and any(by_kind):
        for group in by_kind:
            while group:
                queue = group.pop(0)
                fault = queue.pop()
                if queue:
                    group.append(queue)
                if (fault.file, fault.line) not in taken:
                    taken.add((fault.file, fault.line))
                    chosen.append(fault)
                    break
    return chosen[:number]


def broken_text(project: Path, fault: Fault) -> str:
    """The text of the file with the break in it."""
    path = next(path for path in _files(project) if path.name == fault.file)
    lines = path.read_text().splitlines()
    lines[fault.line] = fault.broken
    return "\n".join([*lines, ""])


def _files(project: Path) -> list[Path]:
    sources = [path for path in sorted((project / "src").glob("*.cpp")) if path.stem not in _FRAME]
    return [*(project / "include" / f"{name}.hpp" for name in _INLINE), *sources]


class Campaign:
    """A C simulation with faults built in."""

    def __init__(self, project: Project, number: int, seed: int, checks: Sequence[Check]) -> None:
        """Draw `number` breaks that compile, build, and run every check once without a fault.

        Raises:
            MoehlsError: the C++ does not compile, or a check is red, without any fault.
        """
        self.project, self.checks = project, list(checks)
        self.folder = project.path / "build/csim/faults"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.faults = self._compiled(choose(project, number + number // _SPARE + 2, seed))[:number]
        self.library = Library(self.folder / "libfaults.so")
        library = ctypes.CDLL(str(self.folder / "libfaults.so"))
        self.chosen = ctypes.c_int.in_dll(library, "moehls_fault")
        self.loops = [name for name, text in _texts(project.path).items() for _ in _PIPELINE.findall(text)]
        self.iterations = (ctypes.c_uint64 * len(self.loops)).in_dll(library, "moehls_iterations")
        self.expected: list[tuple[int, ...]] = []
        for check in self.checks:
            wrong = self._checked(check)
            if wrong is not None:
                raise MoehlsError(f"the C++ is wrong without a fault: {wrong}")
            self.expected.append(tuple(self.iterations))
        wrong = self._run(0)
        if wrong is not None:
            raise MoehlsError(f"the C++ is wrong without a fault: {wrong}")

    def run(self, number: int) -> Outcome:
        """Run the checks with fault `number`, in a process of its own, until one goes red."""
        return Outcome(self.faults[number], self._run(number + 1))

    def _run(self, chosen: int) -> str | None:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            self._child(chosen, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            said = f"the simulation dies ({signal.Signals(os.WTERMSIG(status)).name})"
        return said or None

    def _child(self, chosen: int, writing: int) -> None:
        """What the forked process does; it does not return."""
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()  # a simulation that dies is what is looked for
        with tempfile.TemporaryFile() as spoken:
            os.dup2(spoken.fileno(), 2)  # streams that are left with values say so here
            self.chosen.value = chosen
            try:
                said = self._first_difference() or ""
            except (CheckFailed, IndexError, MemoryError) as problem:
                said = str(problem) or "a queue holds tokens that there are not"
            spoken.seek(0)
            said = said or spoken.readline().decode(errors="replace").strip()
        os.write(writing, said.encode()[:4000])
        os._exit(0)

    def _first_difference(self) -> str | None:
        for check, expected in zip(self.checks, self.expected, strict=True):
            said = self._checked(check)
            if said is not None:
                return said
            for name, own, usual in zip(self.loops, self.iterations, expected, strict=True):
                if own != usual:
                    return f"cycles: a loop of {name} runs {own} times in place of {usual}"
        return None

    def _checked(self, check: Check) -> str | None:
        ctypes.memset(self.iterations, 0, ctypes.sizeof(self.iterations))
        return check.csim(self.library)

    def _compiled(self, faults: list[Fault]) -> list[Fault]:
        """Compile; faults that the compiler refuses are left out."""
        while True:
            unity = self.folder / "faults.cpp"
            unity.write_text(_unity(self.project.path, faults, self.folder))
            object_file = self.folder / "faults.o"
            include, shim = self.project.path / "include", package_file("templates") / "hls" / "shim"
            compiler = ["c++", *_FLAGS, f"-I{include}", f"-I{shim}", "-c", str(unity), "-o", str(object_file)]
            said = self._zig(compiler)
            if said is None:
                said = self._zig(["ld.lld", "-shared", str(object_file), "-o", str(self.folder / "libfaults.so")])
                if said is None:
                    return faults
            refused = {int(number) for number in re.findall(r"fault_(\d+)\.inc:\d+:\d+:", said)}
            if not refused:
                first = next((line for line in said.splitlines() if "error" in line), said.strip())
                raise MoehlsError(f"the C++ with faults does not compile: {first}")
            faults = [fault for n, fault in enumerate(faults) if n + 1 not in refused]

    def _zig(self, arguments: list[str]) -> str | None:
        cache = str(self.folder / "zig")
        environment = dict(os.environ) | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ziglang", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else None


def _unity(project: Path, faults: Sequence[Fault], folder: Path) -> str:
    """One translation unit: every file in its namespace, the broken copies in theirs, and calls that choose."""
    files = _texts(project)
    loops = sum(len(_PIPELINE.findall(text)) for text in files.values())
    files = {name: _counted(project, name, text) for name, text in files.items()}
    headers = {name: text for name, text in files.items() if name.endswith(".hpp")}
    sources = {name: text for name, text in files.items() if name.endswith(".cpp")}
    owner = {name: file for file, text in sources.items() for name in _functions(text)}
    own = "".join(f'#include "{path.name}"\n' for path in sorted((project / "include").glob("*.hpp"))
                  if path.stem not in (*_INLINE, "operations", "kernel"))  # fmt: skip
    parts = ["#define MOEHLS_CSIM", own]
    parts += [f'extern "C" {{ int moehls_fault = 0; unsigned long long moehls_iterations[{loops}]; }}']
    parts += [f"template <class... A> void {name}(A&&... a);" for name in owner]
    parts += [(project / "src/burst.cpp").read_text().replace('#include "operations.hpp"', "")]
    parts += ["namespace good_headers {", *map(_bare, headers.values()), "}"]
    for name, text in sources.items():
        parts += [f"namespace good_{Path(name).stem} {{ using namespace good_headers;", _bare(text), "}"]
    choices: dict[str, list[str]] = {name: [] for name in owner}
    for n, fault in enumerate(faults, start=1):
        path = folder / f"fault_{n}.inc"
        if fault.file in headers:
            broken = {**headers, fault.file: _counted(project, fault.file, broken_text(project, fault))}
            readers = [name for name, text in sources.items() if f'"{fault.file}"' in text]
            path.write_text("\n".join([*map(_bare, broken.values()), *(_bare(sources[name]) for name in readers)]))
            parts += [f'namespace fault_{n} {{\n#include "{path.absolute()}"\n}}']
        else:
            readers = [fault.file]
            path.write_text(_bare(_counted(project, fault.file, broken_text(project, fault))))
            parts += [f'namespace fault_{n} {{ using namespace good_headers;\n#include "{path.absolute()}"\n}}']
        for name, file in owner.items():
            if file in readers:
                choices[name].append(f"case {n}: return fault_{n}::{name}(static_cast<A&&>(a)...);")
    for name, file in owner.items():
        good = f"default: return good_{Path(file).stem}::{name}(static_cast<A&&>(a)...);"
        cases = "\n".join([*choices[name], good])
        parts.append(f"template <class... A> void {name}(A&&... a) {{ switch (moehls_fault) {{\n{cases}\n}} }}")
    parts += [
        '#include "kernel.hpp"',
        (project / "src/kernel.cpp").read_text().replace('#include "operations.hpp"', ""),
    ]
    parts += [f'#include "{(project / "csim/harness.cpp").absolute()}"']
    return "\n".join([*parts, ""])


def _texts(project: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in _files(project)}


def _counted(project: Path, name: str, text: str) -> str:
    """A file whose pipelined loops count their iterations, from the number of its first loop on."""
    texts = _texts(project)
    before = list(texts)[: list(texts).index(name)]
    numbers = itertools.count(sum(len(_PIPELINE.findall(texts[other])) for other in before))
    return _PIPELINE.sub(lambda found: f"{found[0]} ++moehls_iterations[{next(numbers)}];", text)


def _functions(text: str) -> list[str]:
    """Names of the functions that other files call."""
    return [found[1] for found in _DEFINED.finditer(text) if not found[0].startswith("static")]


def _bare(text: str) -> str:
    """A file without what it includes: that stands outside the namespaces."""
    return _INCLUDE.sub("", text)


def same_code(project: Project, fault: Fault) -> bool:
    """Whether the compiler makes the very same code of the broken C++, every file on its own: then the break is none."""
    folder = project.path / "build/csim/same" / f"{fault.file}.{fault.line}.{fault.kind}"
    folder.mkdir(parents=True, exist_ok=True)
    return _code(project.path, fault.file, None, folder) == _code(project.path, fault.file, fault, folder)


def _code(project: Path, file: str, fault: Fault | None, folder: Path) -> str:
    """Optimised LLVM of the files that the one with the fault is part of."""
    texts = {path.name: path.read_text() for path in (project / "src").glob("*.cpp")}
    headers = {path.name: path.read_text() for path in (project / "include").glob("*.hpp")}
    if fault is not None:
        (headers if file in headers else texts)[file] = broken_text(project, fault)
    for name, text in headers.items():
        (folder / name).write_text(text)
    readers = [file] if file in texts else sorted(name for name, text in texts.items() if f'"{file}"' in text)
    (folder / "code.cpp").write_text("\n".join(texts[name] for name in readers))
    shim = package_file("templates") / "hls" / "shim"
    flags = [*(flag for flag in _FLAGS if flag != "-O1"), "-O2", f"-I{folder}", f"-I{shim}", "-S", "-emit-llvm"]
    cache = str(folder.parent / "zig")
    environment = dict(os.environ) | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "c++",
        *flags,
        "-g0",
        str(folder / "code.cpp"),
        "-o",
        str(folder / "code.ll"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return (folder / "code.ll").read_text() if done.returncode == 0 else repr(fault)
