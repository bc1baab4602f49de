"""Resources of RTL by yosys: every distinct module synthesised for UltraScale+ on its own, then summed over the hierarchy.

In go SystemVerilog files and the top module; out comes `Usage`: DSP48E2, block RAM (of 36 kbit), URAM, LUTs and flip-flops a
process, a memory or FIFO, and in all. A module is synthesised with its children as black boxes, in a process of its own, and
its counts are kept by content in the build folder. docs/simulation.md says how yosys's counts differ from Vivado's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.rtl.lanes import cells_in, parts
from moehls.rtl.netlist import Module, elaborate, parse, run_yosys
from moehls.rtl.sites import shared_sites

STORAGE = ("memory", "fifo", "queue")
LIBRARY = (*STORAGE, "dsp_slice")
"""modules that count to whoever instantiates them"""
_XILINX = "synth_xilinx -family xcup -uram -noiopad -noclkbuf -run "
_SYNTHESIS = (
    # synth_xilinx's own order, with fewer and faster optimisations between its stages: the counts differ by 1 %
    "read_verilog -lib -specify +/xilinx/cells_sim.v",
    "read_verilog -lib +/xilinx/cells_xtra.v",
    "opt",
    "wreduce",
    "peepopt",
    "opt_clean",
    _XILINX + "map_dsp:coarse",
    # without alumacc: it makes a chain of additions one cell, whose carry-save adders take twice the LUTs of carry chains
    "techmap -map +/cmp2lut.v -map +/cmp2lcu.v -D LUT_WIDTH=6",
    "opt -fast",
    "memory -nomap",
    "opt_clean",
    _XILINX + "map_memory:map_ffram",
    "opt -fast -full",
    "memory_map",
    "xilinx_srl -variable -minlen 3",
    "techmap -map +/techmap.v -D LUT_SIZE=6 -map +/xilinx/arith_map.v",
    "opt -fast",
    _XILINX + "map_cells:map_luts",
    "opt_expr -mux_undef -noclkinv",
    # a flip-flop's enable and reset are inverted bit by bit, and the mapper would make a LUT of each inverter
    "opt_merge",
    "abc -luts 2:2,3,6:5,10,20",  # in the place of abc9, which takes many times as long
    "clean",
    "xilinx_srl -fixed -minlen 3",
    "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
    "xilinx_dffopt",
    "opt_lut_ins -tech xilinx",
    "clean",
)
_BATCH = 1 << 20
"""characters of small modules that one run of yosys takes together"""
_FLIP_FLOPS = ("FDRE", "FDSE", "FDCE", "FDPE", "LDCE", "LDPE")
_LUT_MEMORIES = {
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X1D": 2, "RAM64X1D": 2,
    "RAM128X1D": 4, "RAM256X1D": 8, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8, "RAM32X16DR8": 8,
    "RAM64X8SW": 8, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip
SHARED = "shared sites"
"""what `sites.shared_sites` finds, among the cells of a module"""
_BANK = re.compile(r"(_\d+)?_(memory|fifo)$")


@dataclass(frozen=True)
class Cells:
    """Resources of a module or of a design."""

    dsp: int = 0
    bram36: float = 0.0
    uram: int = 0
    lut: int = 0
    """every function that yosys maps, LUT RAM and shift registers"""
    ff: int = 0
    lut_sites: int = 0
    """`lut` with two functions of five inputs together in one LUT6 with two outputs (`sites.py`)"""

    def __add__(self, other: Cells) -> Cells:
        return Cells(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Usage:
    """Resources of a design; `total` is the sum of `processes`."""

    processes: dict[str, Cells]
    """of all instances of a module, with the memories and FIFOs that it holds, without the other modules below it"""
    storage: dict[str, Cells]
    """of memories and FIFOs, all banks or lanes together, as `module.name`; they are part of `processes`"""
    total: Cells

    def as_json(self) -> dict[str, dict[str, dict[str, float]] | dict[str, float]]:
        """For report/resources.json."""
        return {
            "processes": {name: asdict(cells) for name, cells in self.processes.items()},
            "storage": {name: asdict(cells) for name, cells in self.storage.items()},
            "total": asdict(self.total),
        }


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
    modules = elaborate(sources, top, build)
    wanted = {name: _Wanted(modules, name, build) for name in modules}
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        tuple(pool.map(lambda batch: _synthesise(batch, build), _batches(list(wanted.values()))))
    own = {name: cells_of(Counter(json.loads(one.kept.read_text()))) for name, one in wanted.items()}
    return _sum_up(modules, own, top)


def _sum_up(modules: dict[str, Module], own: dict[str, Cells], top: str) -> Usage:
    processes: dict[str, Cells] = {}
    storage: dict[str, Cells] = {}

    def below(name: str) -> Cells:
        """A module of the library with what it holds."""
        return sum((below(kind) for kind, _ in modules[name].instances(modules)), own[name])

    def visit(name: str) -> None:
        """One instance of a module."""
        processes[name] = processes.get(name, Cells()) + own[name]
        for kind, instance in modules[name].instances(modules):
            if kind.split("__")[0] in LIBRARY:
                cells, group = below(kind), f"{name}.{_BANK.sub('', instance)}"
                processes[name] += cells
                if kind.split("__")[0] not in STORAGE:
                    continue
                storage[group] = storage.get(group, Cells()) + cells
            else:
                visit(kind)

    visit(top)
    total = sum(processes.values(), Cells())
    plain = {name.split("__")[0]: Cells() for name in sorted(processes)}
    for name, cells in processes.items():
        plain[name.split("__")[0]] += cells
    return Usage(plain, dict(sorted(storage.items())), total)


class _Wanted:
    """A module to be counted, and the file that keeps its count: cells by type."""

    def __init__(self, modules: dict[str, Module], name: str, build: Path) -> None:
        self.parts = parts(name, modules[name].text)
        self.boxes = {kind: modules[kind].interface for kind, _ in modules[name].instances(modules)}
        text = "".join(part.text for part in self.parts)
        content = (_SYNTHESIS, sorted(self.boxes.items()), [part.count for part in self.parts], text)
        self.kept = build / f"{name}.{hashlib.sha256(repr(content).encode()).hexdigest()[:16]}.json"
        self.size = len(text)


def _batches(wanted: Sequence[_Wanted]) -> list[list[_Wanted]]:
    """What is not known yet, the largest first, small ones together: a run of yosys takes a second to start."""
    batches: list[list[_Wanted]] = []
    room = 0
    for one in sorted((one for one in wanted if not one.kept.exists()), key=lambda one: (-one.size, one.kept.name)):
        if one.size > room:
            batches.append([])
            room = _BATCH
        batches[-1].append(one)
        room -= one.size
    return batches


def _synthesise(batch: Sequence[_Wanted], build: Path) -> None:
    name = batch[0].kept.stem
    before, after = build / f"{name}.il", build / f"{name}.mapped.il"
    boxes = {kind: text for one in batch for kind, text in one.boxes.items()}
    before.write_text("\n".join([*boxes.values(), *(part.text for one in batch for part in one.parts)]))
    run_yosys([f"read_rtlil {before}", *_SYNTHESIS, f"write_rtlil -selected {after}"], build / f"{name}.log")
    mapped = parse(after.read_text())
    before.unlink()
    after.unlink()
    for one in batch:
        found: Counter[str] = Counter()
        for part in one.parts:
            cells = cells_in(mapped[f"\\{part.name}"].text)
            for kind, _ in cells:
                found[kind] += part.count
            found[SHARED] += part.count * shared_sites(cells)
        one.kept.write_text(json.dumps(dict(sorted(found.items()))) + "\n")


def cells_of(number: Counter[str]) -> Cells:
    """What cells of the Xilinx library take, by type; a RAMB18 is half a block RAM."""
    memories = sum(n * number[name] for name, n in _LUT_MEMORIES.items())
    luts = number["INV"], *(number[f"LUT{inputs}"] for inputs in range(1, 7))
    return Cells(
        dsp=number["DSP48E2"],
        bram36=sum(n for name, n in number.items() if name.startswith("RAMB36"))
        + sum(n for name, n in number.items() if name.startswith("RAMB18")) / 2,
        uram=number["URAM288"],
        lut=memories + sum(luts),
        ff=sum(number[name] for name in _FLIP_FLOPS),
        lut_sites=memories + sum(luts) - number[SHARED],
    )
