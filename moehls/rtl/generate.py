"""C++ of a project to SystemVerilog: the entry point of the generator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.resources import resource
from moehls.rtl import elaborate as elaboration
from moehls.rtl import frontend
from moehls.rtl.interface import interface, interface_ports
from moehls.rtl.kernel import arguments, emit_kernel, words
from moehls.rtl.masters import MOVERS
from moehls.rtl.pointers import MasterShape, Shape, StreamShape
from moehls.rtl.ports import Port
from moehls.rtl.report import RtlReport, design_report
from moehls.rtl.structure import emit_unit, emit_wrapper, needs_wrapper

LIBRARY = Path(__file__).parent / "sv"
DEFAULT_MHZ = 300.0


@dataclass(frozen=True)
class Generated:
    """The files of a design, by name, and its units."""

    top: str
    files: dict[str, str]
    units: elaboration.Elaborator
    report: RtlReport

    def ports(self, unit: elaboration.Unit) -> list[Port]:
        """The ports of a unit's module."""
        return interface_ports(interface(self.units, unit))


def generate(project: Path, build: Path | None = None) -> RtlReport:
    """Write `rtl/*.sv` and `report/rtl.json` of a project from its `src/*.cpp`, for the clock of its `moehls.json`.

    Args:
        project: folder written by `moehls compile`.
        build: folder for the compiler's output; by default `build/rtl-compile` of the project.

    Raises:
        MoehlsError: there is no C++, it leaves the subset (with file and line), or a loop misses its interval.
    """
    sources = sorted((project / "src").glob("*.cpp"))
    if not sources:
        raise MoehlsError(f"{project} holds no C++ in src/; is it a folder written by 'moehls compile'?")
    manifest = project / "moehls.json"
    clock = json.loads(manifest.read_text()).get("clock_mhz", DEFAULT_MHZ) if manifest.exists() else DEFAULT_MHZ
    made = generate_modules(
        sources, [project / "include", shim()], build or project / "build" / "rtl-compile", period=1000.0 / clock
    )
    folder = project / "rtl"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.sv"):
        old.unlink()
    for name, text in made.files.items():
        (folder / name).write_text(text)
    (project / "report").mkdir(exist_ok=True)
    (project / "report" / "rtl.json").write_text(json.dumps(made.report.as_json(), indent=2) + "\n")
    if missed := made.report.missed():
        raise MoehlsError("loops miss their interval of 1:\n" + "\n".join(missed))
    return made.report


def shim() -> Path:
    """The folder of `ap_int.h` and `hls_stream.h` for clang."""
    return resource("templates") / "hls" / "shim"


def generate_modules(
    sources: Sequence[Path], includes: Sequence[Path], build: Path, top: str | None = None, period: float = 10 / 3
) -> Generated:
    """SystemVerilog of a top function and of all it calls.

    A top function with m_axi pragmas becomes a kernel (`emit_kernel`); of any other, every pointer parameter is one stream.

    Args:
        sources: the C++ files.
        includes: folders of headers.
        build: folder for the compiler's output.
        top: name of the top function; by default the dataflow function that nobody calls.
        period: of the clock, in ns.

    Raises:
        MoehlsError: the C++ does not compile or leaves the subset.
    """
    design = frontend.compile_design(sources, includes, build, top)
    shapes: dict[str, Shape] = {
        name: MasterShape(name.strip("%")) if name.strip("%") in design.masters else StreamShape(1 << 30, 1)
        for type_, name in design.module.functions[design.top].parameters
        if type_ == "ptr"
    }
    units = elaboration.elaborate(design, shapes, period)
    files = {}
    for unit in units.units.values():
        if unit.role in MOVERS:
            continue
        is_kernel = unit.function == design.top and bool(design.masters)
        if unit.function == design.top and not is_kernel and needs_wrapper(units, unit):
            inner = f"{unit.name}_unbuffered"
            files[f"{inner}.sv"] = emit_unit(units, unit, inner)
            files[f"{unit.name}.sv"] = emit_wrapper(units, unit, inner, unit.name)
        else:
            files[f"{unit.name}.sv"] = emit_kernel(units, unit) if is_kernel else emit_unit(units, unit)
    files |= {f.name: f.read_text() for f in sorted(LIBRARY.glob("*.sv"))}
    name = units.units[design.top].name
    control_words = words(arguments(units, units.units[design.top])) if design.masters else 0
    return Generated(name, files, units, design_report(name, period, tuple(sorted(files)), units, control_words))
