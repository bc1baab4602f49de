"""A program as SystemVerilog: a process, the units it calls one at a time, and the memories they share."""

from __future__ import annotations

from dataclasses import dataclass

from moehls.rtl.delay import COPY_LOADS
from moehls.rtl.elaborate import Elaborator, Unit, memory_of
from moehls.rtl.emit import ProcessEmitter
from moehls.rtl.interface import connect, interface, interface_ports, plain
from moehls.rtl.ir import SITE_BITS, Memory, refuse
from moehls.rtl.masters import master_pairs
from moehls.rtl.ports import (
    Body,
    bank_name,
    copies,
    memory_instance,
    memory_signals,
    memory_width,
    range_of,
    stream_signals,
)


class ProgramEmitter:
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
