"""Paths of the modules written by hand, and of regions, by the delay model: what `timing` is for generated processes.

In go the units of a design, out come named paths for the parameters the design uses. A path that begins or ends in a process
(a FIFO's word or flag, a memory's word, address or enable) is counted there.
"""

from __future__ import annotations

import math

from moehls.rtl.delay import LUT, MEMORY_PIN, REGISTER, SUM_TO_SUM, copied, driven, gate, primitives
from moehls.rtl.elaborate import Elaborator, Unit
from moehls.rtl.ir import Memory
from moehls.rtl.masters import MOVERS
from moehls.rtl.timing import Path

DEEP = 64
"""places beyond which a FIFO lies in block or ultra RAM (`fifo.sv`)"""


def library_paths(e: Elaborator, control_words: int) -> list[Path]:
    """The worst path of each module of the library, longest first; `control_words`: registers of arguments, 0 without AXI."""
    found: dict[str, Path] = {}
    for unit in e.units.values():
        for path in _unit_paths(e, unit):
            if path.signals[0] not in found or found[path.signals[0]].ns < path.ns:
                found[path.signals[0]] = path
    paths = [*found.values(), *(_control(control_words) if control_words else [])]
    return sorted(paths, key=lambda path: (-path.ns, path.signals))


def add(width: int) -> float:
    """A sum, difference or comparison."""
    return 0.45 + 0.012 * width


def equal(width: int) -> float:
    """A comparison with a constant, or of two values for equality."""
    return 0.35 + 0.12 * math.log(max(width, 2), 6)


def _unit_paths(e: Elaborator, unit: Unit) -> list[Path]:
    found = []
    for name, shape in unit.declared.items():
        for lane in range(shape.lanes):
            key = (unit.name, name, str(lane))
            depth, slack = max(1, shape.depth or 2), e.slacks.get(key, 0)
            deep = depth > DEEP
            width = e.widths.get(key, 1)
            found += _deep_fifo(depth, width, unit.storage.get(name, "")) if deep else _queue(depth, slack, width)
    if unit.process is not None and any(n.op == "dot" for n in unit.process.graph.nodes):
        found.append(Path(("dsp_slice", "sum", "c", "sum"), REGISTER + SUM_TO_SUM))
    if unit.role in MOVERS:
        found += _mover(unit.role)
    if unit.role == "region":
        ends = len(unit.instances)
        found.append(Path(("region", "finished", "done", "finished"), REGISTER + gate(2 * ends) + LUT + copied(ends)))
    return found


def _queue(depth: int, slack: int, width: int) -> list[Path]:
    bits = (max(depth, slack + 1) + slack).bit_length() + 1
    return [
        Path(("fifo", "used", "out_valid", "read", "used"), REGISTER + equal(bits) + LUT + add(bits)),
        Path(("fifo", "used", "in_ready", "write", "tail"), REGISTER + equal(bits) + 2 * LUT),
        Path(("fifo", "tail", "places"), REGISTER + copied(width) + LUT),
    ]


def _deep_fifo(depth: int, width: int, storage: str) -> list[Path]:
    bits = depth.bit_length() + 1
    rams = primitives(Memory("words", 1, depth, 0, width, storage or "bram"), width)
    fetch = REGISTER + equal(bits) + LUT
    return [
        Path(("deep fifo", "used", "fetch", "words"), fetch + driven(rams) + MEMORY_PIN),
        Path(("deep fifo", "used", "fetch", "used"), fetch + driven(rams) + add(bits)),
    ]


def _mover(role: str) -> list[Path]:
    room = REGISTER + add(9) + add(32) + LUT
    return [
        Path((role, "address", "room", "length"), room),
        Path((role, "length", "address"), REGISTER + add(60)),
        Path((role, "in_flight", "asks", "unasked"), REGISTER + equal(5) + 2 * LUT + driven(64 + 60 + 32 + 8)),
        Path((role, "untaken", "running"), REGISTER + equal(32) + 2 * LUT),
    ]


def _control(words: int) -> list[Path]:
    return [
        Path(
            ("control", "s_axi_ARADDR", "read_index", "s_axi_RDATA"), REGISTER + copied(32) + equal(6) + gate(2 * words)
        ),
        Path(("control", "write_index", "arguments"), REGISTER + equal(6) + LUT + driven(32)),
    ]
