"""Regions and programs as SystemVerilog: instances, FIFOs, shared memories, and the wires between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from moehls.errors import MoehlsError
from moehls.rtl.delay import COPY_LOADS
from moehls.rtl.elaborate import Elaborator, Instance, Unit, memory_of, mover_streams
from moehls.rtl.emit import ProcessEmitter
from moehls.rtl.ir import SITE_BITS, Memory, refuse
from moehls.rtl.masters import MOVERS, master_pairs, master_ports
from moehls.rtl.names import Names
from moehls.rtl.pointers import MasterShape, StreamShape
from moehls.rtl.ports import (
    Body,
    Port,
    bank_name,
    copies,
    memory_instance,
    memory_signals,
    memory_width,
    range_of,
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
                found.streams[actual, first + lane] = (_stream_name(unit, actual, first + lane), direction, width)
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


def _stream_name(unit: Unit, formal: str, lane: int) -> str:
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
            name = _stream_name(unit, formal, lane)
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


def emit_unit(e: Elaborator, unit: Unit, name: str = "") -> str:
    """The text of a unit's module, under its own or another name."""
    name = name or unit.name
    if unit.role == "process":
        assert unit.process and unit.schedule and unit.flow
        return ProcessEmitter(unit.process, unit.schedule, unit.flow).emit().text(name)
    if unit.role == "program":
        return _Program(e, unit).emit().text(name)
    return _region(e, unit).text(name)


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
    return f"{_stream_name(unit, stream, lane)}_{end}"


def _stream_pairs(unit: Unit, port: str, actual: str, lane: int, direction: str, width: int) -> list[tuple[str, str]]:
    """A process's stream port to a FIFO's end, or to the region's own port."""
    name = _stream_name(unit, actual, lane)
    if actual not in unit.declared:
        return [(f"{port}_{x}", f"{name}_{x}") for x in ("data", "valid", "ready")]
    end = "out" if direction == "in" else "in"
    data = f"{name}_{end}_data" + (f"[{width - 1}:0]" if direction == "in" else "")
    return [(f"{port}_data", data), (f"{port}_valid", f"{name}_{end}_valid"), (f"{port}_ready", f"{name}_{end}_ready")]


def _fifo(e: Elaborator, unit: Unit, body: Body, name: str, lane: int) -> None:
    shape = unit.declared[name]
    signal = _stream_name(unit, name, lane)
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


class _Program:
    """A process, the units it calls one at a time, and the memories they share."""

    OWN = "own_"

    def __init__(self, e: Elaborator, unit: Unit) -> None:
        assert unit.process and unit.schedule and unit.flow
        self.e, self.unit, self.p = e, unit, unit.process
        callees = {c.function: e.units[c.function].name for c in unit.process.calls}
        self.emitter = ProcessEmitter(unit.process, unit.schedule, unit.flow, self.OWN, callees)
        self.read_choices: dict[str, list[tuple[_User, str]]] = {}
        self.chosen: set[str] = set()

    def emit(self) -> Body:
        self.body = self.emitter.emit()
        own = interface(self.e, self.unit)
        self.body.ports = interface_ports(own)
        self.callees = list(dict.fromkeys(c.function for c in self.p.calls))
        self._check_turns()
        for function in self.callees:
            self._instance(function)
        for (formal, lane), (name, direction, width) in own.streams.items():
            self._stream(formal, lane, name, direction, width)
        for name, memory in self._memories():
            for bank in range(memory.banks):
                self._memory(name, memory, bank)
        for data, choices in self.read_choices.items():
            self.body.lines.append(f"assign {data} = {self._chosen(choices)};")
        return self.body

    def _check_turns(self) -> None:
        """What a program reads of a memory is used before it waits for a callee that reads there too: they share the port.

        Raises:
            MoehlsError: it is not.
        """
        assert self.unit.schedule is not None
        stage = self.unit.schedule.port
        for call in (a for a in self.p.accesses if a.kind == "call"):
            for a in self.p.accesses:
                if a.kind != "mread" or a.step != call.step or stage[call.port] > stage[a.port] + 1:
                    continue
                name, bank, _ = a.port.split(".")
                if (self.p.objects[name], int(bank)) in self._read_by(call.port.removeprefix("call.")):
                    raise refuse(
                        a.place,
                        f"{self.unit.name} may still use what it read of {name} while a callee reads there",
                        "read it from a memory that the callee does not have",
                    )

    def _read_by(self, function: str) -> set[tuple[str, int]]:
        """(memory, bank) that a callee may read."""
        keys = [key for key in interface(self.e, self.e.units[function]).memories if key[2] == "read"]
        calls = [dict(call.pointers) for call in self.p.calls if call.function == function]
        return {(call[formal], bank) for call in calls for formal, bank, _ in keys}

    def _instance(self, function: str) -> None:
        callee = self.e.units[function]
        found = interface(self.e, callee)
        signal = function
        lines, declare = self.body.lines, self.body.declarations
        name = callee.name
        pairs = [("clock", "clock"), ("reset", "reset"), ("start", f"{name}_start"), ("done", f"{name}_done")]
        call = next(c for c in self.p.calls if c.function == signal)
        for k, (formal, _) in enumerate(call.scalars):
            if formal in found.scalars:
                pairs.append((found.scalars[formal][0], f"{name}_argument_{k}"))
        ports = [p for port, d, w in found.streams.values() for p in stream_signals(port, d, w)]
        ports += [p for (_, _, way), (port, m, w) in found.memories.items() for p in memory_signals(port, way, m, w)]
        for port in ports:
            declare.append(f"wire {range_of(port.width)}{name}_{port.name};")
            pairs.append((port.name, f"{name}_{port.name}"))
        for formal, (master, mover) in found.masters.items():
            pairs += master_pairs(callee.role, mover, master, plain(dict(call.pointers)[formal]))
        lines += [f"{name} {name}_instance (", *connect(pairs)]

    def _stream(self, formal: str, lane: int, name: str, direction: str, width: int) -> None:
        """One of the users is at work at a time; the others are silent."""
        users = [
            (f"{self.OWN}{port}", w)
            for port, (_, w) in self.p.streams.items()
            if self.p.port_base(port) == (formal, lane)
        ]  # fmt: skip
        for function in self.callees:
            callee = self.e.units[function]
            call = next(c for c in self.p.calls if c.function == function)
            for (f, k), (port, _, w) in interface(self.e, callee).streams.items():
                if (dict(call.pointers)[f], k) == (formal, lane):
                    users.append((f"{callee.name}_{port}", w))
        lines = self.body.lines
        if direction == "in":
            lines.append(f"assign {name}_ready = {' | '.join(f'{u}_ready' for u, _ in users)};")
            for u, w in users:
                lines += [f"assign {u}_valid = {name}_valid;", f"assign {u}_data = {name}_data[{w - 1}:0];"]
        else:
            lines.append(f"assign {name}_valid = {' | '.join(f'{u}_valid' for u, _ in users)};")
            chosen = " | ".join(f"({{{width}{{{u}_valid}}}} & {width}'({u}_data))" for u, _ in users)
            lines.append(f"assign {name}_data = {chosen};")
            lines += [f"assign {u}_ready = {name}_ready;" for u, _ in users]
        lines.append("")

    def _memories(self) -> list[tuple[str, Memory]]:
        used = {self.p.objects[n]: m for n, m in self.p.memories.items()}
        for call in self.p.calls:
            for _, actual in call.pointers:
                shape = self.p.shapes[actual]
                if isinstance(shape, Memory):
                    used[actual] = memory_of(self.unit, actual)
        return sorted(used.items())

    def _users(self, name: str, bank: int, way: str) -> list[_User]:
        """Everyone who may use a bank."""
        found = []
        for local, object_ in self.p.objects.items():
            port = f"{local}.{bank}.{way}"
            if object_ == name and any(a.port == port for a in self.p.accesses):
                own = f"{self.OWN}{bank_name(local, bank, self.p.memories[local])}"
                found.append(_User(own, "1'b1", memory_width(self.p, port)))
        for function in self.callees:
            callee = self.e.units[function]
            for (formal, b, w), (port, _, width) in interface(self.e, callee).memories.items():
                sites = [
                    k for k, c in enumerate(self.p.calls) if c.function == function and dict(c.pointers)[formal] == name
                ]
                if (b, w) == (bank, way) and sites:
                    when = self._at(callee.name, function, sites)
                    found.append(_User(f"{callee.name}_{port}", when, width, callee.name, function, tuple(sites)))
        return found

    def _at(self, name: str, function: str, sites: list[int]) -> str:
        """A register that tells whether a callee was called at one of the sites; its first access comes a cycle later."""
        if len(sites) == sum(c.function == function for c in self.p.calls):
            return "1'b1"
        signal = f"{name}_at_{'_'.join(map(str, sites))}"
        if signal not in self.chosen:
            self.chosen.add(signal)
            called = " | ".join(f"({name}_site == {SITE_BITS}'d{k})" for k in sites)
            self.body.declarations.append(f"{copies(COPY_LOADS)}logic {signal};")
            self.body.lines.append(f"always_ff @(posedge clock) {signal} <= {called};")
        return signal

    def _memory(self, name: str, memory: Memory, bank: int) -> None:
        signal = bank_name(plain(name), bank, memory)
        width = max(1, self.e.widths.get(("memories of", self.unit.name, self.e.group(self.unit, name)), 1))
        ways = set()
        for way in ("read", "write"):
            users = self._users(name, bank, way)
            if not users:
                continue
            ways.add(way)
            self._share(signal, memory, way, users, width)
        if ways:
            self.body.lines += memory_instance(signal, memory, width, ways)

    def _share(self, signal: str, memory: Memory, way: str, users: list[_User], width: int) -> None:
        lines, declare = self.body.lines, self.body.declarations
        for port in memory_signals(signal, way, memory, width):
            declare.append(f"wire {range_of(port.width)}{port.name};")
        enables = [f"({u.prefix}_{way}_enable & {u.when})" for u in users]
        lines.append(f"assign {signal}_{way}_enable = {' | '.join(enables)};")
        addresses = [f"{u.prefix}_{way}_address" for u in users]
        lines.append(f"assign {signal}_{way}_address = {_first_of(enables, addresses)};")
        if way == "write":
            words = [f"{width}'({u.prefix}_write_data)" for u in users]
            lines.append(f"assign {signal}_write_data = {_first_of(enables, words)};")
        else:
            advances = [f"({u.prefix}_read_advance & {u.when})" for u in users]
            lines.append(f"assign {signal}_read_advance = {' | '.join(advances)};")
            for u in users:
                word = f"{signal}_read_data[{u.width - 1}:0]"
                self.read_choices.setdefault(f"{u.prefix}_read_data", []).append((u, word))

    def _chosen(self, choices: list[tuple[_User, str]]) -> str:
        """The word of the memory that the callee was given: a multiplexer by the bits of the memory's number."""
        if len(choices) == 1:
            return choices[0][1]
        user = choices[0][0]

        def of(words: list[str]) -> str:
            if len(words) == 1:
                return words[0]
            bit = (len(words) - 1).bit_length() - 1
            sites = sorted(k for i, (u, _) in enumerate(choices) if i >> bit & 1 for k in u.sites)
            select = self._at(user.callee, user.function, sites)
            return f"({select} ? {of(words[1 << bit :])} : {of(words[: 1 << bit])})"

        return of([word for _, word in choices])


@dataclass(frozen=True)
class _User:
    """Whoever may use a bank: the prefix of its signals, when it is meant, and where it is called with that bank."""

    prefix: str
    when: str
    width: int
    callee: str = ""
    function: str = ""
    sites: tuple[int, ...] = ()


def _first_of(enables: list[str], words: list[str]) -> str:
    """The word of who is at work: one at most, and without any the word is nobody's, so the last needs no condition."""
    return " : ".join([*(f"{e} ? {word}" for e, word in zip(enables[:-1], words, strict=False)), words[-1]])
