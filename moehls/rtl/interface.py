"""The ports of units: what a process, region, program or mover shows to the module around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from moehls.errors import MoehlsError
from moehls.rtl.elaborate import Elaborator, Unit, mover_streams
from moehls.rtl.ir import Memory
from moehls.rtl.masters import MOVERS, master_ports
from moehls.rtl.names import Names
from moehls.rtl.pointers import MasterShape, StreamShape
from moehls.rtl.ports import (
    Port,
    bank_name,
    memory_signals,
    memory_width,
    stream_signals,
)


@dataclass
class Interface:
    """A unit's ports: scalars by formal; streams by (formal, lane); memory banks by (formal, bank, way)."""

    scalars: dict[str, tuple[str, int]] = field(default_factory=dict)
    streams: dict[tuple[str, int], tuple[str, str, int]] = field(default_factory=dict)
    memories: dict[tuple[str, int, str], tuple[str, Memory, int]] = field(default_factory=dict)
    masters: dict[str, tuple[str, str]] = field(default_factory=dict)
    """formal -> (name, mover that uses it)"""


def plain(name: str) -> str:
    """A parameter's or variable's name without LLVM's decoration."""
    return Names().of(name)


def interface(e: Elaborator, unit: Unit) -> Interface:
    """The ports of a process, region, program or mover."""
    if unit.role in ("process", "program"):
        return _process_interface(e, unit)
    if unit.role in MOVERS:
        masters = {f: (plain(f), unit.role) for f, shape in unit.shapes.items() if isinstance(shape, MasterShape)}
        streams = {(f, 0): (plain(f), *ports) for f, ports in mover_streams(unit).items()}
        return Interface(
            {f: (MOVERS[unit.role].count, width) for f, width in unit.scalars.items()}, streams, masters=masters
        )
    found = Interface()
    for formal, width in unit.scalars.items():
        if any(formal == a for i in unit.instances for f, a in i.scalars.items() if f in interface(e, i.unit).scalars):
            found.scalars[formal] = (plain(formal), width)
    for instance in unit.instances:
        inner = interface(e, instance.unit)
        for (formal, lane), (_, direction, width) in inner.streams.items():
            actual, first = instance.pointers[formal]
            if actual not in unit.declared:
                found.streams[actual, first + lane] = (stream_name(unit, actual, first + lane), direction, width)
        for (formal, bank, way), (_, memory, width) in inner.memories.items():
            actual = instance.pointers[formal][0]
            key = (actual, bank, way)
            if key in found.memories:
                raise MoehlsError(
                    f"{unit.name}: two processes {way} {plain(actual)}; in a region each array has one writer and one reader"
                )
            found.memories[key] = (bank_name(plain(actual), bank, memory), memory, width)
        for formal, (_, mover) in inner.masters.items():
            actual = instance.pointers[formal][0]
            _only_user(unit, actual, found)
            found.masters[actual] = (plain(actual), mover)
    return found


def _only_user(unit: Unit, master: str, found: Interface) -> None:
    if master in found.masters:
        raise MoehlsError(
            f"{unit.name}: two callees use the AXI master {plain(master)}; one process reads or writes it"
        )


def stream_name(unit: Unit, formal: str, lane: int) -> str:
    shape = unit.shapes[formal]
    assert isinstance(shape, StreamShape)
    return plain(formal) if shape.lanes == 1 else f"{plain(formal)}_{lane}"


def _process_interface(e: Elaborator, unit: Unit) -> Interface:
    p = unit.process
    assert p is not None
    found = Interface({formal: (name, p.inputs[name]) for formal, name in p.formals.items()})
    for port, (direction, width) in p.streams.items():
        found.streams[p.port_base(port)] = (port, direction, width)
    if unit.role == "program":
        for _, formal, lane, direction, width in _callee_streams(e, unit):
            name = stream_name(unit, formal, lane)
            _, known, most = found.streams.get((formal, lane), (name, direction, 0))
            if known != direction:
                raise MoehlsError(f"{unit.name} both reads and writes the stream {name}")
            found.streams[formal, lane] = (name, direction, max(width, most))
        for function in dict.fromkeys(call.function for call in p.calls):
            actual = dict(next(call for call in p.calls if call.function == function).pointers)
            for formal, (_, mover) in interface(e, e.units[function]).masters.items():
                _only_user(unit, actual[formal], found)
                found.masters[actual[formal]] = (plain(actual[formal]), mover)
        return found
    for a in p.accesses:
        if a.kind in ("mread", "mwrite"):
            name, bank, way = a.port.split(".")
            memory = p.memories[name]
            if memory.name not in p.own:
                key = (p.objects[name], int(bank), way)
                found.memories[key] = (bank_name(name, int(bank), memory), memory, memory_width(p, a.port))
    return found


def _callee_streams(e: Elaborator, unit: Unit) -> Iterator[tuple[str, str, int, str, int]]:
    """(callee, formal of the program, lane, direction, width) of every stream a callee uses."""
    assert unit.process is not None
    seen = set()
    for call in unit.process.calls:
        callee = e.units[call.function]
        for (formal, lane), (_, direction, width) in interface(e, callee).streams.items():
            actual = dict(call.pointers)[formal]
            if (call.function, formal, lane) not in seen:
                seen.add((call.function, formal, lane))
                yield call.function, actual, lane, direction, width


def interface_ports(found: Interface) -> list[Port]:
    ports = [Port("input", "clock"), Port("input", "reset"), Port("input", "start"), Port("output", "done")]
    ports += [Port("input", name, width) for name, width in found.scalars.values()]
    for name, direction, width in found.streams.values():
        ports += stream_signals(name, direction, width)
    for (_, _, way), (name, memory, width) in found.memories.items():
        ports += memory_signals(name, way, memory, width)
    for name, mover in found.masters.values():
        ports += master_ports(name, mover)
    return ports


def connect(pairs: list[tuple[str, str]]) -> list[str]:
    """The connections of an instance."""
    return [f"    .{a}({b})," for a, b in pairs[:-1]] + [f"    .{pairs[-1][0]}({pairs[-1][1]})", ");", ""]
