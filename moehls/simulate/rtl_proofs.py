"""Proofs that a broken process does what the good one does: sequential equivalence of two modules by yosys and its ABC.

In go a process's SystemVerilog and a broken text of it; out comes whether no input ever tells them apart. Both modules get
the same inputs, everything that the process's neighbours could give: any data at any time on streams and memories, resets at
any time, `start` while nothing runs, scalars that change with it alone and hold a legal step (`bounds`). What they
give is compared where somebody looks: data while it is valid, addresses and words while they are enabled, all else in every
cycle. Registers start at zero, as in the device. What holds only because of how several processes work together is not
proved, nor anything of a process that calls others.
"""

from __future__ import annotations

import enum
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.plan.shape import Shape
from moehls.simulate import aig
from moehls.simulate.aig import Bit, Graph, Netlist
from moehls.simulate.rtl_neighbours import AROUND, around, looked_at

_YOSYS = "from pyosys import libyosys as l; import sys; d = l.Design(); [l.run_pass(c, d) for c in sys.argv[1:]]"
_INSTANCE = re.compile(r"^    (\w+) (?:#\(.*\) )?\w+ \($", re.MULTILINE)
_SEARCH = "bmc3 -F 20 -T 10"
"""a difference within so many cycles"""
_PROVE = "scleanup; lcorr; scorr; sat; pdr -T 150"
"""what is alike is merged, which may leave nothing (`sat` says so); invariants"""
_PROVED = re.compile(r"^(?:UNSATISFIABLE|Property proved)\b", re.MULTILINE)
_DIFFERS = re.compile(r"was asserted in frame")
_BOX = "box"
_PRODUCT = re.compile(r"^    assign (\w+) = (\$signed\()?([^()*;]+?)\)? \* (\$signed\()?([^()*;]+?)\)?;$", re.MULTILINE)
_WIRE = re.compile(
    r"^    (?:\(\*.*\*\) )?(?:(?:output|input)\s+)?(?:wire|logic) (?:\[(\d+):0\] )?(\w+)[;,]?$", re.MULTILINE
)
_OPERAND = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")
_TABLE = re.compile(r"^    logic \[(\d+):0\] (\w+) \[0:\d+\];\n", re.MULTILINE)
_STEADY = 12
"""boxes up to which each gives the same in the next cycle where it is given the same; more make proofs slow"""
_SECONDS = 300
"""a proof that takes longer is none"""


class Proof(enum.Enum):
    """What became of a proof."""

    EQUAL = "proved equal"
    DIFFERS = "differs for inputs that its neighbours may never give"
    UNKNOWN = "no proof in time"


def compared(source: Path, broken: str, shape: Shape, folder: Path) -> Proof:
    """Whether the module of file `source` and its `broken` text are equivalent. `folder` holds what the tools write."""
    source, folder = source.absolute(), folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "good.sv").write_text(_boxed(source.read_text()))
    (folder / "bad.sv").write_text(_boxed(broken))
    good, bad = (_netlist(folder / f"{name}.sv", source, shape) for name in ("good", "bad"))
    if good is None or bad is None:
        return Proof.UNKNOWN
    own = set(bad.registers) - set(good.registers)
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        joined = _joined(good, bad, own)
        if joined.differs == 0:
            return Proof.EQUAL
        said, inputs = _prove(joined, folder)
        if said is not Proof.DIFFERS:
            return said
        apart = joined.apart(inputs)
        if not apart:
            return Proof.DIFFERS
        own |= {bit for bit in joined.changed if bit[0] in apart}
    return Proof.UNKNOWN


def _prove(joined: _Joined, folder: Path) -> tuple[Proof, list[str]]:
    """Whether nothing ever differs, and if something does, the inputs of every cycle until then."""
    graph, found = folder / "joined.aig", folder / "found.cex"
    joined.graph.write(graph, joined.differs)
    for commands in (_SEARCH, _PROVE):
        found.unlink(missing_ok=True)
        said = _run([str(_abc()), "-c", f"read {graph}; {commands}; write_cex -a {found}"], folder)
        if _PROVED.search(said):
            return Proof.EQUAL, []
        if _DIFFERS.search(said):
            lines = [line for line in found.read_text().splitlines() if line[:1] in ("0", "1")]
            return Proof.DIFFERS, lines[1:]
    return Proof.UNKNOWN, []


def _netlist(text: Path, source: Path, shape: Shape) -> Netlist | None:
    """The module of `text` between its neighbours, without the modules that it calls; None where yosys fails."""
    name = source.stem
    outside, graph, names = (text.with_suffix(end) for end in (".around.sv", ".aig", ".map"))
    outside.write_text(around(name, text.read_text(), shape))
    others = sorted(
        path for path in source.parent.glob("*.sv") if path != source and path.stem in _called(text, source)
    )
    graph.unlink(missing_ok=True)
    commands = [
        f"read_verilog -sv {' '.join(map(str, [text, outside, *others]))}",
        f"hierarchy -top {AROUND}",
        f"blackbox =A:* {AROUND} %d {name} %d",
        *("proc", "flatten", "opt_clean", f"expose -evert {AROUND}/c:*", "memory_map", "techmap", "dffunmap"),
        *(
            "setundef -undriven -zero -init",
            "opt_clean",
            "aigmap",
            "opt_clean",
            f"write_aiger -zinit -map {names} {graph}",
        ),
    ]
    _run([sys.executable, "-c", _YOSYS, *commands], text.parent)
    return aig.read(graph, names) if graph.exists() else None


def _boxed(text: str) -> str:
    """The module whose products and constant tables are modules of their own: all that matters of them is what they are given."""
    boxes = [
        f"module product_{_BOX} (input wire [127:0] a, input wire [127:0] b, output wire [127:0] value);\nendmodule\n"
    ]
    widths = {name: int(msb or 0) + 1 for msb, name in _WIRE.findall(text)}
    text = _PRODUCT.sub(lambda found: _product(found, widths), text)
    for bits, name in _TABLE.findall(text):
        filled = re.compile(rf"^    initial begin\n(?:        {name}\[.*\n)+    end\n", re.MULTILINE)
        read = re.compile(rf"^    assign (\w+) = {name}\[(.*)\];$", re.MULTILINE)
        without = read.sub(rf"    {name}_{_BOX} \1_{_BOX} (.a(\2), .value(\1));", filled.sub("", text))
        if filled.search(text) and f" {name}[" not in without:
            text = re.sub(rf"^    logic \[{bits}:0\] {name} \[.*\n", "", without, flags=re.MULTILINE)
            boxes.append(f"module {name}_{_BOX} (input wire [31:0] a, output wire [{bits}:0] value);\nendmodule\n")
    return "".join([*boxes, text])


def _product(found: re.Match[str], widths: Mapping[str, int]) -> str:
    """A box in the place of a product, which gives no more than a product of such operands can be, and zero for zero alone."""
    name, sign_a, a, sign_b, b = found.groups()
    box = f"product_{_BOX} {name}_{_BOX} (.a({a}), .b({b}), .value"
    ranges = [_range(text, sign is not None, widths) for text, sign in ((a, sign_a), (b, sign_b))]
    width = widths.get(name, 0)
    if ranges[0] is None or ranges[1] is None:
        return f"    {box}({name}));"
    ends = [x * y for x in ranges[0] for y in ranges[1]]
    low, high = min(ends), max(ends)
    if high < 1 or not (-(1 << (width - 1)) <= low and high < 1 << (width - (low < 0))):
        return f"    {box}({name}));"
    free = f"{name}_free"
    if low < 0:
        fits = f"($signed({free}) >= -{width}'sd{-low}) && ($signed({free}) <= {width}'sd{high})"
    else:
        fits = f"{free} <= {width}'d{high}"
    inside = f"({fits}) && ({free} != 0) ? {free} : {width}'d1"
    return (
        f"    wire [{width - 1}:0] {free}; {box}({free}));"
        f" assign {name} = ({a} == 0) || ({b} == 0) ? {width}'d0 : {inside};"
    )


def _range(text: str, signed: bool, widths: Mapping[str, int]) -> tuple[int, int] | None:
    """Least and largest value of an operand as the generated RTL writes them; None where its width is not known."""
    unsigned = text.startswith("{1'h0, ")
    parts = text.removeprefix("{1'h0, ").removesuffix("}").split(", ") if text.startswith("{") else [text]
    bits = 0
    for part in parts:
        found = _OPERAND.fullmatch(part)
        if found is None or found[1] not in widths:
            return None
        bits += widths[found[1]] if found[2] is None else int(found[2]) - int(found[3] or found[2]) + 1
    return (0, (1 << bits) - 1) if unsigned or not signed else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def _called(text: Path, source: Path) -> set[str]:
    """Modules below one."""
    found: set[str] = set()
    todo = [text]
    while todo:
        for name in set(_INSTANCE.findall(todo.pop().read_text())) - found:
            found.add(name)
            if (path := source.with_name(f"{name}.sv")).exists():
                todo.append(path)
    return found


@dataclass(frozen=True)
class _Joined:
    """Both modules on the same inputs and on the same registers, but for some that the broken one has for its own.

    Attributes:
        changed: common registers that may take different values, with both literals.
        differs: the literal of "anything differs". While that never holds, the common registers are those of both modules.
    """

    graph: Graph
    changed: dict[Bit, tuple[int, int]]
    differs: int

    def apart(self, inputs: Sequence[str]) -> set[str]:
        """Common registers that take different values with these inputs, when anything does for the first time."""
        for values in self.graph.run(inputs):
            if values[self.differs >> 1] != bool(self.differs & 1):
                pairs = self.changed.items()
                return {
                    b[0] for b, (x, y) in pairs if (values[x >> 1] != bool(x & 1)) != (values[y >> 1] != bool(y & 1))
                }
        return set()


def _joined(good: Netlist, bad: Netlist, own: set[Bit]) -> _Joined:
    graph = Graph()
    inputs = {bit: graph.variable(bit) for bit in dict.fromkeys((*good.inputs, *bad.inputs))}
    others = {bit: graph.variable(("other " + bit[0], bit[1])) for bit in inputs if f"_{_BOX}." in bit[0]}
    common = {bit: graph.variable(bit) for bit in good.registers}
    owned = {bit: graph.variable(("bad " + bit[0], bit[1])) for bit in bad.registers if bit in own}
    given_good = inputs
    steady = _Steady(graph, {bit: inputs[bit] for bit in others}).values
    nexts: list[dict[Bit, int]] = []
    outputs: list[dict[Bit, int]] = []
    for netlist, registers in ((good, common), (bad, common | owned)):
        given = dict(inputs)
        while True:  # what a box gives is known once what it is given is
            values = graph.add(netlist, given, registers)
            own_outputs = {bit: values[n >> 1] ^ (n & 1) for bit, n in netlist.outputs.items()}
            boxes = _boxes(graph, given_good, others, outputs[0], own_outputs) if outputs else steady(own_outputs)
            if all(given[bit] == literal for bit, literal in boxes.items()):
                break
            given |= boxes
        taken = zip(netlist.registers, netlist.nexts, strict=True)
        nexts.append({bit: values[n >> 1] ^ (n & 1) for bit, n in taken})
        outputs.append(own_outputs)
        given_good = given
    graph.nexts |= {common[bit] >> 1: literal for bit, literal in nexts[0].items()}
    graph.nexts |= {owned[bit] >> 1: nexts[1][bit] for bit in owned}
    changed = {
        bit: (nexts[0][bit], literal)
        for bit, literal in nexts[1].items()
        if bit not in own and literal != nexts[0][bit]
    }
    differs = 0
    for one, other in changed.values():
        differs = graph.either(differs, graph.differ(one, other))
    names = {name for name, _ in outputs[0]}
    for bit in sorted(bit for bit in outputs[0] if f"_{_BOX}." not in bit[0]):
        different = graph.differ(outputs[0][bit], outputs[1].get(bit, 0))
        looked = looked_at(bit[0], names)
        if looked is not None:
            different = graph.both(different, (inputs | outputs[0]).get((looked, 0), 1))
        differs = graph.either(differs, different)
    return _Joined(graph, changed, differs)


class _Steady:
    """Boxes that give what they gave in the cycle before where they are given what they were given then."""

    def __init__(self, graph: Graph, free: Mapping[Bit, int]) -> None:
        self.graph, self.free = graph, free
        self.before: dict[Bit, int] = {}
        """registers of what each box was given and gave"""
        boxes = {bit[0] for bit in free}
        self.few = len(boxes) <= _STEADY
        self.later = graph.variable(("later", 0))
        graph.nexts[self.later >> 1] = 1

    def values(self, outputs: Mapping[Bit, int]) -> dict[Bit, int]:
        """What the boxes give, where the module's outputs are `outputs`."""
        if not self.few:
            return dict(self.free)
        changed: dict[str, int] = {}
        for bit, literal in sorted(outputs.items()):
            if f"_{_BOX}." in bit[0]:
                box = bit[0].rpartition(".")[0]
                changed[box] = self.graph.either(
                    changed.get(box, 0), self.graph.differ(literal, self._kept(bit, literal))
                )
        found = {}
        for bit, literal in self.free.items():
            fresh = self.graph.either(self.later ^ 1, changed.get(bit[0].rpartition(".")[0], 1))
            before = self._kept(bit, 0)
            found[bit] = self.graph.either(self.graph.both(fresh, literal), self.graph.both(fresh ^ 1, before))
            self._kept(bit, found[bit])
        return found

    def _kept(self, bit: Bit, literal: int) -> int:
        """The register that holds what `literal` was in the cycle before."""
        if bit not in self.before:
            self.before[bit] = self.graph.variable(("before " + bit[0], bit[1]))
        self.graph.nexts[self.before[bit] >> 1] = literal
        return self.before[bit]


def _boxes(
    graph: Graph, same: Mapping[Bit, int], other: Mapping[Bit, int], good: Mapping[Bit, int], bad: Mapping[Bit, int]
) -> dict[Bit, int]:
    """What the broken module's boxes give: the good one's value where both are given the same, else any."""
    apart: dict[str, int] = {}
    for bit in sorted(good.keys() & bad.keys()):
        if f"_{_BOX}." in bit[0]:
            box = bit[0].rpartition(".")[0]
            apart[box] = graph.either(apart.get(box, 0), graph.differ(good[bit], bad[bit]))
    found = {}
    for bit in other:
        differs = apart.get(bit[0].rpartition(".")[0], 1)
        found[bit] = graph.either(graph.both(differs ^ 1, same[bit]), graph.both(differs, other[bit]))
    return found


def _run(command: list[str], folder: Path) -> str:
    try:  # ABC writes files where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _abc() -> Path:
    import pyosys

    return Path(pyosys.__file__).parent / "yosys-abc"
