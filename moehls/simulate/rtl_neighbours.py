"""What a process's neighbours may give it and look at: the environment in which proofs compare a process with a broken one.

In go a module's ports and the shape; out come the limits of a legal step's header and of streams, a module around the process
that keeps to them, and the signal without which nobody looks at an output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from moehls.plan.instruction import FIELDS, Kind
from moehls.plan.shape import Shape

AROUND = "neighbours"
"""name of the module around the process"""
_PORT = re.compile(r"^    (input|output)\s+wire (?:\[(\d+):0\] )?(\w+),?$", re.MULTILINE)
KINDS = {
    **dict.fromkeys(("moments", "inverse_deviation", "normalise"), Kind.NORM),
    **dict.fromkeys(("rank", "exponentials", "enqueue", "prune", "settle"), Kind.ROUTE),
    **dict.fromkeys(("form_passes", "copy_tokens"), Kind.GATHER),
    **dict.fromkeys(("fetch", "send"), Kind.STORE),
    **{"pool": Kind.POOL, "load": Kind.LOAD, "input_pixels": Kind.INPUT},
    **dict.fromkeys(("feed", "multiply", "rescale", "activate", "write_tiles", "weights", "reciprocals"), Kind.LINEAR),
}
"""processes that run in steps of one kind alone"""


def bounds(kind: Kind | None, shape: Shape) -> dict[str, tuple[int, int]]:
    """Least and largest values of a legal step's header fields (docs/accelerator.md, section 3), where there are some."""
    lane = {"w_base": (0, shape.token_parallel - 1)}
    rows = {"rows": (1, shape.token_parallel * max(shape.activation_depth, shape.residual_depth))}
    match kind:
        case Kind.NORM:
            blocks = {"n2": (1, shape.norm_depth), "channels": (1, shape.norm_depth * shape.block)}
            return lane | rows | blocks
        case Kind.POOL:
            return lane | rows | {"n2": (1, shape.norm_depth)}
        case Kind.STORE:
            return lane | rows | {"n2": (1, max(shape.activation_depth, shape.residual_depth, shape.raw_depth))}
        case Kind.INPUT:
            return rows | {"n2": (1, shape.activation_depth)}
        case Kind.LOAD:
            return rows | {"n2": (1, shape.residual_depth)}
        case Kind.ROUTE:
            experts = {"n0": (1, shape.max_experts), "n1": (1, shape.max_experts)}
            return experts | {"n2": (1, -(-shape.max_experts // shape.block)), "rows": (1, shape.max_tokens)}
        case Kind.GATHER:
            return {"rows": (1, shape.max_tokens), "n2": (1, shape.activation_depth)}
        case Kind.LINEAR:
            return dict.fromkeys(("n0", "n1", "n2", "rows"), (1, 65535))
    return {}


def streams(module: str, shape: Shape) -> dict[str, tuple[int, int]]:
    """Least and largest values of what comes from a process's streams, where numbers.md gives some: the largest value of a
    softmax, which its sum holds, is at least half."""
    if module == "enqueue" and not shape.sigmoids and not shape.thresholds:
        return {"sums_data": (1 << 15, shape.max_experts * 65535)}
    return {}


def around(module: str, text: str, shape: Shape) -> str:
    """The module of `text` as its neighbours use it: started while it does not run, with scalars that stand still while it
    does."""
    own = text[text.index(f"module {module} (") :]
    ports = [(way, int(msb or 0) + 1, port) for way, msb, port in _PORT.findall(own[: own.index(");")])]
    limits, values = bounds(KINDS.get(module), shape), streams(module, shape)
    names = {name for _, _, name in ports}
    head = ["input wire clock", "input wire reset"]
    wires, pins, lines = [], [".clock(clock)", ".reset(reset)"], []
    for way, width, name in ports:
        if name in ("clock", "reset"):
            continue
        used = name
        head.append(f"{way} wire [{width - 1}:0] {name}")
        if name == "start":
            used = "begins"
        elif way == "input" and not name.endswith(("_valid", "_data", "_ready")):
            used = f"{name}_still"
            legal = _legal(name, width, limits) if name == "h" else name
            wires.append(f"logic [{width - 1}:0] {name}_held;")
            wires.append(f"wire [{width - 1}:0] {used} = begins ? {legal} : {name}_held;")
            lines.append(f"always_ff @(posedge clock) {name}_held <= {used};")
        elif name in values:
            used = f"{name}_legal"
            low, high = values[name]
            fits = f"({name} >= {low}) && ({name} <= {high})"
            wires.append(f"wire [{width - 1}:0] {used} = {fits} ? {name} : {width}'d{low};")
        pins.append(f".{name}({used})")
    if "start" in names:
        wires = ["logic running;", "wire begins = start & ~running & ~reset;", *wires]
        lines.append("always_ff @(posedge clock) running <= ~reset & (begins | (running & ~done));")
    body = "\n".join([*wires, *lines, f"{module} inner ({', '.join(pins)});"])
    return f"module {AROUND} ({', '.join(head)});\n{body}\nendmodule\n"


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


def looked_at(output: str, names: set[str]) -> str | None:
    """The signal without which nobody looks at an output; none for always."""
    for end, signal in (("_data", "_valid"), ("_ready", "_valid")):
        if output.endswith(end) and not output.endswith(("_read_data", "_write_data")):
            return output.removesuffix(end) + signal
    for ends in (("write_data", "write_address"), ("read_address",)):
        if output.endswith(ends):
            return output.rpartition("_")[0] + "_enable"
    return None
