"""C++ of a project to SystemVerilog: the entry point of the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.rtl import elaborate as elaboration
from moehls.rtl import frontend
from moehls.rtl.pointers import Shape, StreamShape
from moehls.rtl.emit import Port
from moehls.rtl.structure import emit_unit, interface, interface_ports

LIBRARY = Path(__file__).parent / "sv"


@dataclass(frozen=True)
class Generated:
    """The files of a design, by name, and its units."""

    top: str
    files: dict[str, str]
    units: elaboration.Elaborator

    def ports(self, unit: elaboration.Unit) -> list[Port]:
        """The ports of a unit's module."""
        return interface_ports(interface(self.units, unit))


def generate_modules(
    sources: Sequence[Path], includes: Sequence[Path], build: Path, top: str | None = None, period: float = 10 / 3
) -> Generated:
    """SystemVerilog of a function whose pointer parameters are single streams, and of all it calls.

    Raises:
        MoehlsError: the C++ leaves the subset, or misses its interval.
    """
    design = frontend.compile_design(sources, includes, build, top)
    shapes: dict[str, Shape] = {
        name: StreamShape(1 << 30, 1) for type_, name in design.module.functions[design.top].parameters if type_ == "ptr"
    }
    units = elaboration.elaborate(design, shapes, period)
    files = {f"{u.name}.sv": emit_unit(units, u, "C++") for u in units.units.values()}
    files |= {f.name: f.read_text() for f in sorted(LIBRARY.glob("*.sv"))}
    return Generated(units.units[design.top].name, files, units)
