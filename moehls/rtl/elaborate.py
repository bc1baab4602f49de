"""The hierarchy: regions and programs over processes, with what connects them and how wide it is.

From the top function down, every callee learns the shapes of its pointer parameters from its caller. From the bottom up, the
bits a reader uses of a stream or memory decide its width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from moehls.errors import MoehlsError
from moehls.rtl import llvm
from moehls.rtl.build import build_process
from moehls.rtl.flow_control import FlowControl, flow_control
from moehls.rtl.frontend import Design
from moehls.rtl.ir import Memory, Process, refuse
from moehls.rtl.masters import MOVERS
from moehls.rtl.names import Names
from moehls.rtl.narrow import balance, demands, narrow
from moehls.rtl.pointers import Resolver, Shape, StreamShape, object_shape
from moehls.rtl.registers import free_writes
from moehls.rtl.schedule import Schedule, schedule


@dataclass
class Unit:
    """A function as hardware: a `process`, a `region` (with instances and streams), or a `program` (a process with instances).

    `streams` of its interface: (formal, lane) -> direction and width; `memories` by formal; `scalars` by formal.
    """

    name: str
    function: str
    role: str
    """or the name of a mover (`MOVERS`)"""
    scalars: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    process: Process | None = None
    schedule: Schedule | None = None
    flow: FlowControl | None = None
    instances: list[Instance] = field(default_factory=list)
    declared: dict[str, StreamShape] = field(default_factory=dict)
    """streams a region declares"""
    storage: dict[str, str] = field(default_factory=dict)
    """of declared streams"""


@dataclass
class Instance:
    """A call of a region, or the one instance of a program's callee. `pointers`: formal -> (object of the caller, lane)."""

    name: str
    unit: Unit
    pointers: dict[str, tuple[str, int]]
    scalars: dict[str, str | int]
    """formal -> formal of the caller, or a constant"""
    place: str = ""


class Elaborator:
    """Builds the units of a design, callers before callees and then widths from readers to writers."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.module = design.module
        self.units: dict[str, Unit] = {}
        self.names: set[str] = set()
        self.slacks: dict[tuple[str, ...], int] = {}
        """by stream: words that may be under way to it when it is full"""
        self._users: dict[tuple[str, str, str], set[tuple[str, str]]] = {}

    def unit(self, function: str, shapes: Mapping[str, Shape]) -> Unit:
        if function not in self.units:
            name = self.module.source_name(function).strip("@")
            unit = Unit(self._fresh(name), function, self.design.roles[function], shapes=dict(shapes))
            self.units[function] = unit
            if name in MOVERS:
                unit.role = name
                unit.scalars = {
                    n: self.module.types.bits(t) for t, n in self.module.functions[function].parameters if t != "ptr"
                }
            elif unit.role == "region":
                self._region(unit)
            else:
                self._process(unit)
        return self.units[function]

    def _fresh(self, name: str) -> str:
        fresh, n = name, 1
        while fresh in self.names:
            n += 1
            fresh = f"{name}_{n}"
        self.names.add(fresh)
        return fresh

    def _process(self, unit: Unit) -> None:
        function = self.module.functions[unit.function]
        callees = frozenset(self.design.roles) if unit.role == "program" else frozenset()
        process = build_process(self.module, function, unit.shapes, callees, self.design.storage)
        balance(process)
        narrow(process, {})
        unit.process = process
        unit.scalars = {n: self.module.types.bits(t) for t, n in function.parameters if t not in ("ptr", "byval")}
        for call in process.calls:
            shapes: dict[str, Shape] = {}
            for formal, actual in call.pointers:
                shape = process.shapes.get(actual)
                if shape is None:
                    raise refuse("", f"{unit.name} passes {actual} to {call.function[1:]}", "pass arrays and streams")
                shapes[formal] = shape
            self.unit(call.function, shapes)

    def _region(self, unit: Unit) -> None:
        function = self.module.functions[unit.function]
        definitions = {i.name: i for b in function.blocks for i in b.instructions if i.name}
        resolver = Resolver(self.module, definitions)
        unit.scalars = {n: self.module.types.bits(t) for t, n in function.parameters if t not in ("ptr", "byval")}
        if len(function.blocks) != 1:
            raise MoehlsError(
                f"the dataflow region {unit.name} branches; it may only declare streams and call processes"
            )
        for i in function.blocks[0].instructions:
            place = self.module.place(i.line)
            if i.op == "alloca":
                shape = object_shape(self.module, i.element, i.name)
                if isinstance(shape, StreamShape):
                    unit.declared[i.name] = unit.shapes[i.name] = shape
                    unit.storage[i.name] = self.design.storage.get((unit.function, i.name), "")
                else:
                    raise refuse(
                        place,
                        f"the region {unit.name} declares {i.name[1:]}, which is no stream",
                        "declare it in its process",
                    )
            elif i.op == "call" and not i.callee.startswith("@llvm."):
                self._instance(unit, i, resolver, place)
            elif i.op not in ("ret", "getelementptr", "call"):
                raise refuse(
                    place, f"the region {unit.name} computes ({i.op})", "only streams and calls belong in a region"
                )

    def _instance(self, unit: Unit, i: llvm.Instruction, resolver: Resolver, place: str) -> None:
        if i.callee not in self.design.roles:
            raise refuse(
                place, f"the region {unit.name} calls {i.callee[1:]}", "call processes, regions or the program"
            )
        formals = self.module.functions[i.callee].parameters
        pointers: dict[str, tuple[str, int]] = {}
        scalars: dict[str, str | int] = {}
        shapes: dict[str, Shape] = {}
        for operand, (type_, formal) in zip(i.operands, formals, strict=True):
            if type_ == "ptr":
                (actual,) = resolver.resolve(operand)
                shape = unit.shapes.get(actual.base)
                lane = actual.offset // shape.stride if isinstance(shape, StreamShape) else 0
                pointers[formal] = (actual.base, lane)
                if shape is not None:
                    shapes[formal] = shape
            elif isinstance(operand, llvm.Constant):
                scalars[formal] = operand.value
            elif isinstance(operand, llvm.Name) and operand.text in unit.scalars:
                scalars[formal] = operand.text
            else:
                raise refuse(
                    place,
                    f"an argument of {i.callee[1:]} is computed in the region",
                    "pass the region's own arguments on",
                )
        callee = self.unit(i.callee, shapes)
        count = sum(x.unit is callee for x in unit.instances)
        unit.instances.append(Instance(f"{callee.name}_{count}", callee, pointers, scalars, place))

    def check_regions(self) -> None:
        """In a region, nothing flows back: C simulation runs its processes one after another, and so do the stages of a step.

        Raises:
            MoehlsError: a stream leads back to a process it comes from.
        """
        for unit in self.units.values():
            after: dict[int, set[int]] = defaultdict(set)
            ends: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
            for k, instance in enumerate(unit.instances):
                for formal, lane, direction in stream_uses(self, instance.unit):
                    actual, first = instance.pointers[formal]
                    ends[actual, first + lane][direction] = k
            for both in ends.values():
                if "in" in both and "out" in both:
                    after[both["out"]].add(both["in"])
            for k, instance in enumerate(unit.instances):
                if k in _reachable(after, k):
                    raise refuse(
                        instance.place,
                        f"in the region {unit.name} a stream leads back to {instance.unit.name}",
                        "let data flow one way, or split the region",
                    )

    # widths
    def settle(self, period: float) -> None:
        """Streams and memories get the width their readers use; then every process its stages."""
        order = list(self.units.values())
        for _ in range(3):
            widths = self._reader_widths()
            for unit in order:
                if unit.process is not None:
                    wanted = {
                        a.port: widths[key]
                        for a in unit.process.accesses
                        if a.kind in ("swrite", "mwrite") and (key := self._object(unit, a.port)) in widths
                    }
                    narrow(unit.process, wanted)
        self.widths = self._reader_widths()
        self._count_users()
        for unit in order:
            if unit.process is not None:
                free_writes(unit.process)
                unit.schedule = schedule(unit.process, period, self._sharing(unit))
                unit.flow = flow_control(unit.process, unit.schedule)
                for port in unit.flow.checks:
                    key = self._object(unit, port)
                    self.slacks[key] = max(self.slacks.get(key, 0), unit.flow.slack(unit.schedule, port))

    def _sharing(self, unit: Unit) -> dict[tuple[str, str], int]:
        """By memory of a process: users of its "read" and "write" ports, and memories that its "word" may come from."""
        assert unit.process is not None
        found: dict[tuple[str, str], int] = {}
        for local, memory in unit.process.memories.items():
            objects = self._memories_of(unit, unit.process.objects[local])
            counts = {way: max(len(self._users.get((*o, way), ())) for o in objects) for way in ("read", "write")}
            found |= {(memory.name, way): n for way, n in (*counts.items(), ("word", len(objects))) if n > 1}
        return found

    def _count_users(self) -> None:
        """By memory of a program and way: the processes and parameters that use it."""
        users: dict[tuple[str, str, str], set[tuple[str, str]]] = defaultdict(set)
        for unit in self.units.values():
            for a in unit.process.accesses if unit.process is not None else ():
                if a.kind in ("mread", "mwrite"):
                    assert unit.process is not None
                    name = unit.process.objects[a.port.split(".")[0]]
                    for object_ in self._memories_of(unit, name):
                        users[*object_, a.port.split(".")[2]].add((unit.name, name))
        self._users = dict(users)

    def _memories_of(self, unit: Unit, name: str) -> set[tuple[str, str]]:
        """(program, memory) that a parameter or variable of a unit may mean."""
        found: set[tuple[str, str]] = set()
        for caller in self.units.values():
            for instance in caller.instances:
                if instance.unit is unit and name in instance.pointers:
                    found |= self._memories_of(caller, instance.pointers[name][0])
            for call in caller.process.calls if caller.process is not None else ():
                if call.function == unit.function and name in dict(call.pointers):
                    found.add((caller.name, dict(call.pointers)[name]))
        return found or {(unit.name, name)}

    def _object(self, unit: Unit, port: str) -> tuple[str, ...]:
        """What a port is connected to, wherever it is declared."""
        assert unit.process is not None
        base = unit.process.port_base(port)
        return self.declared(unit, base[0], base[1])

    def declared(self, unit: Unit, name: str, lane: int) -> tuple[str, ...]:
        """Where a stream or memory of a unit is declared, as the key of `widths` and `slacks`."""
        for caller in self.units.values():
            for instance in caller.instances:
                if instance.unit is unit and name in instance.pointers:
                    actual, first = instance.pointers[name]
                    return self.declared(caller, actual, first + lane)
            if caller.process is not None:
                for call in caller.process.calls:
                    if call.function == unit.function:
                        bound = dict(call.pointers).get(name)
                        if bound is not None and isinstance(caller.process.shapes[bound], StreamShape):
                            return self.declared(caller, bound, lane)
                        if bound is not None:
                            return ("memories of", caller.name, self.group(caller, bound))
        shape = unit.shapes.get(name) or (unit.process.shapes.get(name) if unit.process else None)
        return (
            (unit.name, name, str(lane))
            if isinstance(shape, StreamShape)
            else ("memories of", unit.name, self.group(unit, name))
        )

    def group(self, unit: Unit, name: str) -> str:
        """Memories that calls exchange have one width: named by the first of them."""
        assert unit.process is not None
        groups = _Groups()
        by_formal: dict[tuple[str, str], str] = {}
        for call in unit.process.calls:
            for formal, actual in call.pointers:
                groups.join(actual, by_formal.setdefault((call.function, formal), actual))
        return groups.of(name)

    def _reader_widths(self) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = defaultdict(int)
        for unit in self.units.values():
            for instance in unit.instances:
                for formal, (_, width) in mover_streams(instance.unit).items():
                    found[self.declared(unit, *instance.pointers[formal])] = width
            if unit.process is None:
                continue
            _, named = demands(unit.process, {})
            for a in unit.process.accesses:
                if a.kind in ("sread", "mread"):
                    key = self._object(unit, a.port)
                    found[key] = max(found[key], named.get(a.port, 1))
        return dict(found)


def stream_uses(e: Elaborator, unit: Unit) -> set[tuple[str, int, str]]:
    """(formal, lane, "in" or "out") of every stream parameter a unit uses, itself or below."""
    found: set[tuple[str, int, str]] = set()
    if unit.role in MOVERS:
        return {(formal, 0, direction) for formal, (direction, _) in mover_streams(unit).items()}
    if unit.process is not None:
        found |= {(*unit.process.port_base(port), way) for port, (way, _) in unit.process.streams.items()}
        for call in unit.process.calls:
            actual = dict(call.pointers)
            found |= {(actual[f], lane, way) for f, lane, way in stream_uses(e, e.units[call.function])}
    for instance in unit.instances:
        for formal, lane, way in stream_uses(e, instance.unit):
            base, first = instance.pointers[formal]
            if base not in unit.declared:
                found.add((base, first + lane, way))
    return found


def mover_streams(unit: Unit) -> dict[str, tuple[str, int]]:
    """Formal -> (direction, bits) of a mover's streams; nothing of other units."""
    streams = MOVERS[unit.role].streams if unit.role in MOVERS else {}
    return {
        formal: streams[Names().of(formal).strip("_")]
        for formal, shape in unit.shapes.items()
        if isinstance(shape, StreamShape) and Names().of(formal).strip("_") in streams
    }


def _reachable(after: Mapping[int, set[int]], start: int) -> set[int]:
    found: set[int] = set()
    todo = list(after.get(start, ()))
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo.extend(after.get(k, ()))
    return found


class _Groups:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self._up: dict[str, str] = {}

    def of(self, name: str) -> str:
        while self._up.get(name, name) != name:
            name = self._up[name]
        return name

    def join(self, a: str, b: str) -> None:
        first, second = sorted((self.of(a), self.of(b)))
        self._up[second] = first


def elaborate(design: Design, shapes: Mapping[str, Shape], period: float) -> Elaborator:
    """All units of a design, scheduled for a clock period in ns; `shapes` of the top function's pointers."""
    elaborator = Elaborator(design)
    elaborator.unit(design.top, shapes)
    elaborator.check_regions()
    elaborator.settle(period)
    return elaborator


def memory_of(unit: Unit, name: str) -> Memory:
    """The memory a formal or object of a unit is."""
    shape = unit.shapes.get(name) or (unit.process.shapes.get(name) if unit.process else None)
    assert isinstance(shape, Memory), name
    return shape
