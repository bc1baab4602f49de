"""C++ sources in, one optimised LLVM module out, with what each function is: region, program or process.

clang (of the `ziglang` package) translates the sources; LLVM (of `llvmlite`, the same major) runs the passes named here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moehls.errors import MoehlsError
from moehls.rtl.debug import without_library
from moehls.rtl.llvm import Module
from moehls.rtl.llvm_text import parse

Role = Literal["region", "program", "process"]

_CLANG = (
    "-std=c++20 -O2 -fno-unroll-loops -fwrapv -fno-sanitize=all -fno-discard-value-names -fno-exceptions -fno-rtti -w "
    "-Xclang -disable-llvm-passes -g -gno-column-info -DMOEHLS_RTL -S -emit-llvm "
    # an ABI that passes every wide number by reference, which LLVM turns into values; others cut them into words of 64 bits
    "-target x86_64-windows-gnu"
).split()

_PASSES = (
    "always_inliner global_dead_code_eliminate sroa instruction_combine simplify_cfg loop_simplify lcssa loop_rotate "
    "instruction_combine loop_unroll loop_deletion sroa new_gvn sccp instruction_combine simplify_cfg "
    "dead_store_elimination aggressive_dce instruction_combine aggressive_dce mem_copy_opt "
    # a header passed by reference becomes a value: once a level of the call graph
    "argument_promotion sroa instruction_combine argument_promotion sroa instruction_combine argument_promotion sroa "
    "instruction_combine simplify_cfg new_gvn aggressive_dce simplify_cfg dead_arg_elimination"
).split()


@dataclass(frozen=True)
class Design:
    """The optimised module; `roles` by function name; `storage` by (function, variable) as the pragmas bind it."""

    module: Module
    top: str
    roles: dict[str, Role]
    storage: dict[tuple[str, str], str]
    masters: dict[str, dict[str, str]]
    """options of the m_axi pragma, by parameter of the top function"""


def compile_design(sources: Sequence[Path], includes: Sequence[Path], build: Path, top: str | None = None) -> Design:
    """Translate and optimise.

    Args:
        sources: the C++ files.
        includes: folders of headers; `ap_int.h` and `hls_stream.h` of the shim among them.
        build: a folder for compiler output and caches.
        top: the function to start from; by default the one dataflow function that nobody calls.

    Raises:
        MoehlsError: a source does not compile, or there is no one top function.
    """
    build.mkdir(parents=True, exist_ok=True)
    graph = _CallGraph()
    text = graph.scan(without_library(_translate(sources, includes, build)))
    start = graph.top(top)
    roles = graph.roles(start)
    module = parse(_optimise(text, roles, start))
    return Design(
        module, start, {f: r for f, r in roles.items() if f in module.functions}, graph.storage, graph.masters
    )


def _translate(sources: Sequence[Path], includes: Sequence[Path], build: Path) -> str:
    """LLVM's text of all sources, compiled as one (as the C simulation does): the headers cost more than the sources."""
    unity, output = build / "unity.cpp", build / "unity.ll"
    unity.write_text("".join(f'#include "{source.resolve()}"\n' for source in sources))
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "c++",
        *_CLANG,
        *(f"-I{i}" for i in includes),
        str(unity),
        "-o",
        str(output),
    ]
    environment = dict(os.environ)
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(build / "zig-cache"))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(build / "zig-cache"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise MoehlsError(f"the C++ does not compile for the RTL generator:\n{done.stderr.strip()}")
    return output.read_text()


class _CallGraph:
    """Who calls whom, who is a dataflow region, and which storage variables are bound to; read from unoptimised text."""

    def __init__(self) -> None:
        self.calls: dict[str, list[str]] = {}
        self.external: set[str] = set()
        self.dataflow: set[str] = set()
        self.storage: dict[tuple[str, str], str] = {}
        self.masters: dict[str, dict[str, str]] = {}

    def scan(self, text: str) -> str:
        """Collect; returns the text without the markers that the pragmas left."""
        strings = dict(re.findall(r'^(@[\w."?@$]+) = .*constant \[\d+ x i8\] c"([^"\\]*)\\00"', text, re.M))
        kept, function = [], ""
        for line in text.splitlines():
            if line.startswith("define "):
                found = re.search(r"(@[\w.$]+|@\"[^\"]*\")\(", line)
                assert found
                function = found[1]
                self.calls.setdefault(function, [])
                # a number passed by value lies in a copy of its own
                line = line.replace("ptr dead_on_return noundef", "ptr noalias dereferenceable(65536) noundef")
                if not re.search(r"\b(internal|linkonce_odr)\b", line):
                    self.external.add(function)
            elif "@moehls_dataflow(" in line and "call" in line:
                self.dataflow.add(function)
                continue
            elif "@moehls_storage(" in line and "call" in line:
                found = re.search(r"\(ptr noundef ([%@][\w.$]+), ptr noundef (@[^)]+)\)", line)
                assert found, line
                self.storage[function, found[1]] = strings[found[2]]
                continue
            elif "@moehls_interface(" in line and "call" in line:
                found = re.search(r"\(ptr noundef (@[^)]+)\)", line)
                assert found, line
                self._interface(strings[found[1]])
                continue
            elif "call " in line and (callee := re.search(r"(@[\w.$]+)\(", line)):
                self.calls[function].append(callee[1])
            kept.append(re.sub(r",? comdat\b(?: any|\(\$[^)]*\))?", "", line) if not line.startswith("$") else "")
        return "\n".join(kept)

    def _interface(self, options: str) -> None:
        words = dict(re.findall(r"(\w+) *= *(\w+)", options))
        if options.startswith("m_axi"):
            self.masters[words["port"]] = words

    def top(self, name: str | None) -> str:
        if name is not None:
            found = [f for f in sorted(self.external) if _plain_name(f) == name]
            if len(found) != 1:
                raise MoehlsError(f"there is no one function '{name}' in the sources")
            return found[0]
        called = {c for f in self.calls for c in self.calls[f]}
        tops = sorted(f for f in self.dataflow if f not in called)
        if len(tops) != 1:
            raise MoehlsError(f"the top function is the one with DATAFLOW that nobody calls; found {tops or 'none'}")
        return tops[0]

    def roles(self, top: str) -> dict[str, Role]:
        roles: dict[str, Role] = {}

        def reaches_region(function: str) -> bool:
            return any(c in self.dataflow or reaches_region(c) for c in self.calls.get(function, []))

        def visit(function: str) -> None:
            if function in roles:
                return
            if function in self.dataflow:
                roles[function] = "region"
                for callee in self.calls[function]:
                    if callee in self.calls and not _is_helper(callee):
                        visit(callee)
            elif reaches_region(function):
                roles[function] = "program"
                for callee in self.calls[function]:
                    if callee in self.external or callee in self.dataflow:
                        visit(callee)
            else:
                roles[function] = "process"

        visit(top)
        return roles


def _is_helper(function: str) -> bool:
    """A constructor or method, which a region's declarations call."""
    return function.startswith(("@_ZN3hls", "@_ZN7ap_uint", "@_ZN6ap_int", "@_ZN11ap_int_base", "@_ZNK", "@llvm."))


def _plain_name(function: str) -> str:
    found = re.match(r"@_ZL?(\d+)(.*)", function)
    return found[2][: int(found[1])] if found else function[1:]


def _optimise(text: str, roles: dict[str, Role], top: str) -> str:
    binding = _binding()
    try:
        module = binding.parse_assembly(text)
    except RuntimeError as error:
        raise MoehlsError(f"clang of ziglang and LLVM of llvmlite do not match: {error}") from error
    for function in module.functions:
        if function.is_declaration:
            continue
        name = f"@{function.name}"
        function.linkage = "external" if name == top else "internal"
        if name in roles:
            function.add_function_attribute("noinline")
        else:
            function.add_function_attribute("alwaysinline")
    machine = binding.Target.from_default_triple().create_target_machine(opt=2)
    options = binding.create_pipeline_tuning_options(speed_level=2)
    builder = binding.create_pass_builder(machine, options)
    manager = binding.create_new_module_pass_manager()
    for name in _PASSES:
        getattr(manager, f"add_{name}_pass")()
    manager.run(module, builder)
    return str(module)


def _binding() -> Any:
    import llvmlite.binding as binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    binding.set_option("", "-pragma-unroll-threshold=1000000000")
    binding.set_option("", "-unroll-max-iteration-count-to-analyze=0")
    return binding
