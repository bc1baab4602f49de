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
from collections.abc import Mapping
from pathlib import Path

from moehls.plan.instruction import FIELDS, Kind
from moehls.plan.shape import Shape

_LIBRARY = ("dsp_slice", "fifo", "memory")
_YOSYS = "from pyosys import libyosys as l; import sys; d = l.Design(); [l.run_pass(c, d) for c in sys.argv[1:]]"
_PORT = re.compile(r"^    (input|output)\s+wire (?:\[(\d+):0\] )?(\w+),?$", re.MULTILINE)
_INSTANCE = re.compile(r"^    (\w+) (?:#\(.*\) )?\w+ \($", re.MULTILINE)
_FLATTEN = (
    *("hierarchy -check -top miter", "proc", "flatten", "opt_clean", "memory_map", "opt_expr", "opt_clean"),
    *("opt_merge -share_all", "opt_clean", "techmap", "dffunmap", "setundef -zero -init", "opt_clean", "aigmap", "opt_clean"),
)  # fmt: skip
_PROVE = "scleanup; lcorr; scorr; sat; bmc3 -F 20 -T 20; pdr -T 60"
"""what is alike is merged, which may leave nothing (`sat` says so); a counterexample; invariants"""
_PROVED = re.compile(r"^(?:UNSATISFIABLE|Property proved)\b", re.MULTILINE)
_DIFFERS = re.compile(r"was asserted in frame")
_SECONDS = 120
"""a proof that takes longer is none"""
KINDS = {
    **dict.fromkeys(("moments", "inverse_deviation", "normalise"), Kind.NORM),
    **dict.fromkeys(("rank", "exponentials", "enqueue", "prune"), Kind.ROUTE),
    **dict.fromkeys(("form_passes", "copy_tokens"), Kind.GATHER),
    **dict.fromkeys(("fetch", "send"), Kind.STORE),
    **{"pool": Kind.POOL, "load": Kind.LOAD, "input_pixels": Kind.INPUT},
}
"""processes that run in steps of one kind alone"""


def bounds(kind: Kind | None, shape: Shape) -> dict[str, tuple[int, int]]:
    """Least and largest values of a legal step's header fields (docs/accelerator.md, section 3), where there are some."""
    lane = {"w_base": (0, shape.token_parallel - 1)}
    rows = {"rows": (1, shape.token_parallel * max(shape.activation_depth, shape.residual_depth))}
    match kind:
        case Kind.NORM:
            return lane | rows | {"n2": (1, shape.norm_depth), "channels": (1, shape.norm_depth * shape.block)}
        case Kind.POOL | Kind.STORE:
            return lane | rows
        case Kind.INPUT | Kind.LOAD:
            return rows
        case Kind.ROUTE:
            experts = {"n0": (1, shape.max_experts), "n1": (1, shape.max_experts)}
            return experts | {"n2": (1, -(-shape.max_experts // shape.block)), "rows": (1, shape.max_tokens)}
        case Kind.GATHER:
            return {"rows": (1, shape.max_tokens)}
    return {}


class Proof(enum.Enum):
    """What became of a proof."""

    EQUAL = "proved equal"
    DIFFERS = "differs for inputs that its neighbours may never give"
    UNKNOWN = "no proof in time"
    CALLS = "not tried: it calls other processes"


def compared(source: Path, broken: str, shape: Shape, folder: Path) -> Proof:
    """Whether the module of file `source` and its `broken` text are equivalent. `folder` holds what the tools write."""
    good = source.read_text()
    if set(_INSTANCE.findall(good)) - set(_LIBRARY):
        return Proof.CALLS
    source, folder = source.absolute(), folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    head = good[good.index(f"module {source.stem} (") :]
    ports = [(way, int(msb or 0) + 1, name) for way, msb, name in _PORT.findall(head[: head.index(");")])]
    texts = {"miter": _miter(ports, bounds(KINDS.get(source.stem), shape))}
    for name, text in (("good", good), ("bad", broken)):
        texts[name] = text.replace(f"module {source.stem} (", f"module {name} (")
    for name, text in texts.items():
        (folder / f"{name}.sv").write_text(text)
    library = (source.parent / f"{name}.sv" for name in _LIBRARY)
    files = [*(folder / f"{name}.sv" for name in texts), *(path for path in library if path.exists())]
    graph = folder / "miter.aig"
    graph.unlink(missing_ok=True)
    commands = [f"read_verilog -sv -formal {' '.join(map(str, files))}", *_FLATTEN, f"write_aiger -zinit {graph}"]
    _run([sys.executable, "-c", _YOSYS, *commands], folder)
    if not graph.exists():
        return Proof.UNKNOWN
    said = _run([str(_abc()), "-c", f"read {graph}; {_PROVE}"], folder)
    if _PROVED.search(said):
        return Proof.EQUAL
    return Proof.DIFFERS if _DIFFERS.search(said) else Proof.UNKNOWN


def _run(command: list[str], folder: Path) -> str:
    try:  # ABC writes files where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _abc() -> Path:
    import pyosys

    return Path(pyosys.__file__).parent / "yosys-abc"


def _miter(ports: list[tuple[str, int, str]], limits: Mapping[str, tuple[int, int]]) -> str:
    """Both modules with the same inputs; `differs` is 1 where somebody could see a difference."""
    names = {name for _, _, name in ports}
    inputs = [(width, name) for way, width, name in ports if way == "input" and name not in ("clock", "reset")]
    lines = ["logic running;"]
    wires, differences = [], []
    pins = {"good": [".clock(clock)", ".reset(reset)"], "bad": [".clock(clock)", ".reset(reset)"]}
    for width, name in inputs:
        used = name
        if name == "start":
            used = "begins"
        elif not name.endswith(("_valid", "_data", "_ready")):
            used = f"{name}_still"
            legal = _legal(name, width, limits) if name == "h" else name
            wires.append(f"logic [{width - 1}:0] {name}_held;")
            wires.append(f"wire [{width - 1}:0] {used} = begins ? {legal} : {name}_held;")
            lines.append(f"always_ff @(posedge clock) {name}_held <= {used};")
        for pin in pins.values():
            pin.append(f".{name}({used})")
    wires.append("wire begins = start & ~running & ~reset;")
    lines.append("always_ff @(posedge clock) running <= ~reset & (begins | (running & ~good_done));")
    for _, width, name in (port for port in ports if port[0] == "output"):
        for module, pin in pins.items():
            wires.append(f"wire [{width - 1}:0] {module}_{name};")
            pin.append(f".{name}({module}_{name})")
        where = _looked_at(name, names)
        differences.append(f"({where} & (good_{name} != bad_{name}))" if where else f"(good_{name} != bad_{name})")
    lines += [f"{module} {module}_0 ({', '.join(pin)});" for module, pin in pins.items()]
    lines.append(f"assign differs = {' | '.join(differences)};")
    head = ["input wire clock", "input wire reset", *(f"input wire [{width - 1}:0] {name}" for width, name in inputs)]
    start = [] if "start" in names else ["wire start = 1'b0; wire good_done = 1'b0;"]
    body = "\n".join(["logic running;", *start, *wires, *lines[1:]])
    return f"module miter ({', '.join([*head, 'output wire differs'])});\n{body}\nendmodule\n"


def _legal(name: str, width: int, limits: Mapping[str, tuple[int, int]]) -> str:
    """A header whose fields lie within their limits, whatever the input holds."""
    parts, end = [], 0
    for field in FIELDS:
        bits = f"{name}[{field.offset + field.bits - 1}:{field.offset}]"
        if field.name in limits:
            low, high = limits[field.name]
            bits = f"(({bits} >= {low}) && ({bits} <= {high}) ? {bits} : {field.bits}'d{low})"
        parts.append(bits)
        end = field.offset + field.bits
    if width > end:
        parts.append(f"{name}[{width - 1}:{end}]")
    return f"{{{', '.join(parts[::-1])}}}"


def _looked_at(output: str, names: set[str]) -> str | None:
    """The condition under which anybody looks at an output; none for always."""
    if output.endswith("_data") and f"{output[:-5]}_valid" in names:
        return f"good_{output[:-5]}_valid"
    if output.endswith("_ready") and f"{output[:-6]}_valid" in names:
        return f"{output[:-6]}_valid"
    if output.endswith(("_write_data", "_write_address", "_read_address")):
        return f"good_{output.rsplit('_', 1)[0]}_enable"
    return None
