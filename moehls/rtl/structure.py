"""Units as SystemVerilog: a region's instances, FIFOs and wires, and the wrapper of a unit that stands alone."""

from __future__ import annotations

from moehls.errors import MoehlsError
from moehls.rtl.elaborate import Elaborator, Instance, Unit
from moehls.rtl.emit import ProcessEmitter
from moehls.rtl.interface import connect, interface, interface_ports, plain, stream_name
from moehls.rtl.masters import MOVERS, master_pairs
from moehls.rtl.pointers import MasterShape
from moehls.rtl.ports import (
    Body,
    bank_name,
    memory_signals,
    range_of,
)
from moehls.rtl.program import ProgramEmitter


def emit_unit(e: Elaborator, unit: Unit, name: str = "") -> str:
    """The text of a unit's module, under its own or another name."""
    name = name or unit.name
    if unit.role == "process":
        assert unit.process and unit.schedule and unit.flow
        return ProcessEmitter(unit.process, unit.schedule, unit.flow).emit().text(name)
    if unit.role == "program":
        return ProgramEmitter(e, unit).emit().text(name)
    return _region(e, unit).text(name)


def _region(e: Elaborator, unit: Unit) -> Body:
    body = Body()
    own = interface(e, unit)
    body.ports = interface_ports(own)
    declare_fifos(e, unit, body)
    names = [i.name for i in unit.instances]
    body.declarations.append(f"wire {range_of(len(names))}ends;")
    body.declarations.append(f"logic {range_of(len(names))}finished;")
    for k, instance in enumerate(unit.instances):
        module = instance.unit.name + mover_parameters(e, unit, instance)
        body.lines += [f"{module} {instance.name} (", *connect(instance_pairs(e, unit, instance, k))]
    body.lines += [
        "assign done = &(finished | ends);",
        "always_ff @(posedge clock) finished <= reset | start | done ? '0 : finished | ends;",
    ]
    return body


def instance_pairs(e: Elaborator, unit: Unit, instance: Instance, index: int) -> list[tuple[str, str]]:
    """The connections of a region's instance, the one of that index."""
    inner = interface(e, instance.unit)
    pairs = [("clock", "clock"), ("reset", "reset"), ("start", "start"), ("done", f"ends[{index}]")]
    for formal, (name, width) in inner.scalars.items():
        actual = instance.scalars[formal]
        pairs.append((name, f"{width}'d{actual}" if isinstance(actual, int) else plain(actual)))
    for (formal, lane), (name, direction, width) in inner.streams.items():
        actual, first = instance.pointers[formal]
        pairs += _stream_pairs(unit, name, actual, first + lane, direction, width)
    for (formal, bank, way), (name, memory, width) in inner.memories.items():
        outer = bank_name(plain(instance.pointers[formal][0]), bank, memory)
        pairs += [
            (a.name, b.name)
            for a, b in zip(
                memory_signals(name, way, memory, width), memory_signals(outer, way, memory, width), strict=True
            )
        ]
    for formal, (_, mover) in inner.masters.items():
        pairs += master_pairs(instance.unit.role, mover, plain(formal), plain(instance.pointers[formal][0]))
    return pairs


def mover_parameters(e: Elaborator, unit: Unit, instance: Instance) -> str:
    """The parameters of a mover's instance, as the m_axi pragma says; none for instances of other units."""
    if instance.unit.role not in MOVERS:
        return ""
    shapes = [unit.shapes.get(actual) for actual, _ in instance.pointers.values()]
    master = next((shape for shape in shapes if isinstance(shape, MasterShape)), None)
    if master is None:
        raise MoehlsError(f"{instance.name} moves to or from no argument of the kernel ({instance.place})")
    options, way = e.design.masters[master.argument], MOVERS[instance.unit.role].way
    burst, outstanding = options.get(f"max_{way}_burst_length", "64"), options.get(f"num_{way}_outstanding", "4")
    return f" #(.BURST({burst}), .OUTSTANDING({outstanding}))"


def declare_fifos(e: Elaborator, unit: Unit, body: Body) -> None:
    """The FIFOs of a region's streams, with their wires."""
    for name, shape in unit.declared.items():
        for lane in range(shape.lanes):
            _fifo(e, unit, body, name, lane)


def stream_end(unit: Unit, stream: str, lane: int, end: str) -> str:
    """The prefix of the signals at a FIFO's `end`, "in" or "out"."""
    return f"{stream_name(unit, stream, lane)}_{end}"


def _stream_pairs(unit: Unit, port: str, actual: str, lane: int, direction: str, width: int) -> list[tuple[str, str]]:
    """A process's stream port to a FIFO's end, or to the region's own port."""
    name = stream_name(unit, actual, lane)
    if actual not in unit.declared:
        return [(f"{port}_{x}", f"{name}_{x}") for x in ("data", "valid", "ready")]
    end = "out" if direction == "in" else "in"
    data = f"{name}_{end}_data" + (f"[{width - 1}:0]" if direction == "in" else "")
    return [(f"{port}_data", data), (f"{port}_valid", f"{name}_{end}_valid"), (f"{port}_ready", f"{name}_{end}_ready")]


def _fifo(e: Elaborator, unit: Unit, body: Body, name: str, lane: int) -> None:
    shape = unit.declared[name]
    signal = stream_name(unit, name, lane)
    width = max(1, e.widths.get((unit.name, name, str(lane)), 1))
    for end in ("in", "out"):
        body.declarations.append(f"wire {range_of(width)}{signal}_{end}_data;")
        body.declarations += [f"wire {signal}_{end}_{x};" for x in ("valid", "ready")]
    style = {"uram": "ultra", "bram": "block"}.get(unit.storage.get(name, ""), "auto")
    pairs = [("clock", "clock"), ("reset", "reset")]
    pairs += [(f"{end}_{x}", f"{signal}_{end}_{x}") for end in ("in", "out") for x in ("data", "valid", "ready")]
    slack = e.slacks.get((unit.name, name, str(lane)), 0)
    parameters = f'.WIDTH({width}), .DEPTH({max(1, shape.depth or 2)}), .SLACK({slack}), .STYLE("{style}")'
    body.lines += [f"fifo #({parameters}) {signal}_fifo (", *connect(pairs)]


def needs_wrapper(e: Elaborator, unit: Unit) -> bool:
    """Whether more than a word may be under way to a port of the unit when its reader stops."""
    written = [key for key, (_, direction, _) in interface(e, unit).streams.items() if direction == "out"]
    return any(e.slacks.get(e.declared(unit, *key), 0) for key in written)


def emit_wrapper(e: Elaborator, unit: Unit, inner: str, name: str) -> str:
    """A unit behind ordinary handshakes: FIFOs take what is under way when the reader of a stream stops.

    Args:
        e: the design.
        unit: the unit.
        inner: the name of the module that `emit_unit` gives.
        name: of the wrapper's module.
    """
    own = interface(e, unit)
    body = Body(ports=interface_ports(own))
    inside: dict[str, str] = {}
    for (formal, lane), (port, direction, width) in own.streams.items():
        if direction == "in":
            continue
        inside |= {f"{port}_{x}": f"inner_{port}_{x}" for x in ("data", "valid", "ready")}
        body.declarations.append(f"wire {range_of(width)}inner_{port}_data;")
        body.declarations.append(f"wire inner_{port}_valid, inner_{port}_ready;")
        pairs = [("clock", "clock"), ("reset", "reset")]
        pairs += [(f"in_{x}", f"inner_{port}_{x}") for x in ("data", "valid", "ready")]
        pairs += [(f"out_{x}", f"{port}_{x}") for x in ("data", "valid", "ready")]
        slack = e.slacks.get(e.declared(unit, formal, lane), 0)
        body.lines += [f"fifo #(.WIDTH({width}), .DEPTH(1), .SLACK({slack})) {port}_fifo (", *connect(pairs)]
    body.declarations += ["wire inner_done;", "logic ended;"]
    ports = [(p.name, inside.get(p.name, "inner_done" if p.name == "done" else p.name)) for p in body.ports]
    waits = [f"{port}_valid" for port, direction, _ in own.streams.values() if direction == "out"]
    body.lines += [
        f"{inner} {inner}_instance (",
        *connect(ports),
        "always_ff @(posedge clock) ended <= ~reset & ~done & (ended | inner_done);",
        f"assign done = ended & ~({' | '.join(waits)});",
    ]
    return body.text(name)
