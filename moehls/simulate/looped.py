"""The same RTL so that a simulator computes all lanes of a process at once.

In goes the text of a module that moehls generated; out comes it with lanes that are alike (`alike.py`) as arrays, and what
they compute as loops over these: Verilator keeps the loops, the C++ compiler makes vector instructions of them. Values that
differ by lane and are not of a lane themselves are copied to arrays before the loop. Wires that the writes under one condition
alone read are computed there, as in `gated.py`, which does the modules without lanes. A wire has no state, and a register keeps
its one write under its one condition; nothing else changes.
"""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from dataclasses import dataclass, field

from moehls.simulate.alike import Lanes, changed, groups_of
from moehls.simulate.copies import Operands, Parts, Windows, parts_of, windows_of
from moehls.simulate.gated import gated
from moehls.simulate.statements import NAME, OWN, Module, Statement, read

Entity = tuple[int, int | str]
"""(group, position) of lanes, or (-1, name) of a statement alone"""
_ALONE = -1
_OUTSIDE = "outside"
_ALWAYS = "(1'b1)"
_VECTOR = 16


def looped(text: str, least: int = 4, statements: int = 64) -> str:
    """The module with groups of at least `least` lanes and `statements` statements as loops."""
    if "    always_ff" not in text:
        return text
    module = read(text)
    groups = groups_of(module, least, statements)
    return _Writer(module, groups).text() if groups else gated(text)


@dataclass
class _Region:
    """What is computed in one place: its code, the writes at its end, and arrays of values by lane that are there already."""

    home: str
    code: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    copies: dict[tuple[int | str, ...], str] = field(default_factory=dict)
    windows: Windows = field(default_factory=dict)
    blocking: set[Entity] = field(default_factory=set)
    """registers that nothing reads after their write in the same cycle"""


class _Writer:
    def __init__(self, module: Module, groups: list[Lanes]) -> None:
        self.module, self.groups = module, groups
        self.places: dict[str, tuple[int, int, int]] = {
            one.name: (group, position, lane)
            for group, lanes in enumerate(groups)
            for lane, part in enumerate(lanes)
            for position, one in enumerate(part)
        }
        self._relate()
        while left := self._order():  # lanes that wait for each other
            for entity in left:
                for one in self._members(entity):
                    self.places.pop(one.name, None)
            self._relate()
        self.arrays: list[str] = []
        self.homes = self._homes()
        self.levels: dict[Entity, int] = {}
        for entity in [*self.order, *self.registers]:
            before = [other for other in self.wires_of[entity] if self._home(other) == self._home(entity)]
            self.levels[entity] = max(
                (self.levels[o] + (self._kind(o) != self._kind(entity)) for o in before), default=0
            )
        self.local = {entity for entity in self.wires if entity[0] != _ALONE and self._is_local(entity)}
        self.array = {
            entity: f"lanes_{entity[0]}_{entity[1]}_{self._members(entity)[0].name}"
            for entity in [*self.wires, *self.registers]
            if entity[0] != _ALONE
        }
        self.names = {
            name: f"{self.array[group, position]}[{lane}]" for name, (group, position, lane) in self.places.items()
        }

    def text(self) -> str:
        lines, rest = self.module.lines, self.module.rest
        head = lines.index(");") + 1
        declared = [line for line in lines[head:] if (found := OWN.match(line)) and self._stays(found[1])]
        shown = [*self.registers, *(e for e in self.wires if self.homes[e] == _OUTSIDE and e not in self.local)]
        for entity in shown:
            if entity[0] != _ALONE:
                self._declare(self.array[entity], self._members(entity)[0].width, self._size(entity[0]))
        body, tasks = self._outside()
        for number, condition in enumerate(self.regions):
            name = f"region_{number}"
            when = changed(condition, self.names)
            call = f"{name}();" if when == _ALWAYS else f"if {when} {name}();"
            body.append(f"    always_ff @(posedge clock) {call}")
            tasks += [f"    task automatic {name};", *self._region(condition), "    endtask"]
        last = [changed(line, self.names) for line in rest[rest.index(");") + 1 :]]
        end = last.index("endmodule")
        return "\n".join([*lines[:head], *declared, *self.arrays, *last[:end], *body, *tasks, *last[end:]]) + "\n"

    # what reads what

    def _entity(self, name: str) -> Entity:
        place = self.places.get(name)
        return (_ALONE, name) if place is None else place[:2]

    def _members(self, entity: Entity) -> list[Statement]:
        group, position = entity
        if isinstance(position, str):
            return [self.module.statements[position]]
        return [lane[position] for lane in self.groups[group]]

    def _relate(self) -> None:
        """Wires, registers, and for each the wires that it reads and the registers."""
        statements = self.module.statements
        self.wires: dict[Entity, None] = {}
        self.registers: dict[Entity, None] = {}
        self.wires_of: dict[Entity, dict[Entity, None]] = defaultdict(dict)
        self.readers: dict[Entity, dict[Entity | None, None]] = defaultdict(dict)
        """of wires and registers; None: something that stays as it is"""
        for one in statements.values():
            entity = self._entity(one.name)
            (self.wires if one.condition is None else self.registers)[entity] = None
            for name in NAME.findall(one.value):
                if name in statements:
                    other = self._entity(name)
                    self.readers[other][entity] = None
                    if statements[name].condition is None:
                        self.wires_of[entity][other] = None
        self.regions: dict[str, list[Entity]] = defaultdict(list)
        for entity in self.registers:
            self.regions[str(self._members(entity)[0].condition)].append(entity)
        for text in [*self.module.rest, *self.regions]:
            for name in NAME.findall(text):
                if name in statements:
                    self.readers[self._entity(name)][None] = None

    def _order(self) -> list[Entity]:
        """Sort the wires, each behind those that it reads; returns lanes for which there is no order."""
        need = {entity: len(self.wires_of[entity]) for entity in self.wires}
        todo = [entity for entity, count in need.items() if count == 0]
        self.order: list[Entity] = []
        while todo:
            entity = todo.pop()
            self.order.append(entity)
            for user in self.readers[entity]:
                if user in need:
                    need[user] -= 1
                    if need[user] == 0:
                        todo.append(user)
        return [entity for entity, count in need.items() if count and entity[0] != _ALONE]

    def _homes(self) -> dict[Entity, str]:
        homes: dict[Entity, str] = {}
        for entity in reversed(self.order):
            found = {
                _OUTSIDE if user is None else homes[user] if user in homes else self._condition(user)
                for user in self.readers[entity]
            }
            homes[entity] = found.pop() if len(found) == 1 else _OUTSIDE
        return homes

    def _condition(self, register: Entity) -> str:
        return str(self._members(register)[0].condition)

    def _home(self, entity: Entity) -> str:
        return self.homes[entity] if entity in self.homes else self._condition(entity)

    def _kind(self, entity: Entity) -> tuple[int, bool]:
        """What one loop may hold; what looks up a table is a loop of its own, as it is not made of vector instructions."""
        return entity[0], entity[0] != _ALONE and self._members(entity)[0].looks_up

    def _is_local(self, entity: Entity) -> bool:
        """Whether a wire of lanes is read within its loop alone."""

        def near(user: Entity | None) -> bool:
            return user is not None and (self._home(user), self._kind(user), self.levels[user]) == own

        own = self._home(entity), self._kind(entity), self.levels[entity]
        users = self.readers[entity]
        return bool(users) and all(near(user) and self._straight(entity, user) for user in users)

    def _straight(self, entity: Entity, user: Entity | None) -> bool:
        """Whether each lane of `user` reads `entity` of its own lane alone."""
        if user is None or user[0] != entity[0]:
            return False
        for one in self._members(user):
            lane = self.places[one.name][2]
            found = [self.places[name] for name in NAME.findall(one.value) if name in self.places]
            if any(place[:2] == entity and place[2] != lane for place in found):
                return False
        return True

    def _stays(self, name: str) -> bool:
        """Whether the module declares a name still."""
        return name not in self.places and self.homes.get((_ALONE, name), _OUTSIDE) == _OUTSIDE

    # code

    def _size(self, group: int) -> int:
        lanes = len(self.groups[group])
        return -(-lanes // _VECTOR) * _VECTOR if lanes > _VECTOR else 1 << (lanes - 1).bit_length()

    def _declare(self, name: str, width: int, size: int) -> None:
        self.arrays.append(f"    logic [{width - 1}:0] {name} [{size}];")

    def _value(self, name: Entity) -> str:
        return changed(self._members(name)[0].value, self.names)

    def _outside(self) -> tuple[list[str], list[str]]:
        """Wires that are computed every cycle, and the tasks of those of lanes."""
        body: list[str] = []
        tasks: list[str] = []
        loops: dict[tuple[int, tuple[int, bool]], list[Entity]] = defaultdict(list)
        for entity in self.order:
            if self.homes[entity] != _OUTSIDE:
                continue
            if entity[0] == _ALONE:
                body.append(f"    assign {entity[1]} = {self._value(entity)};")
            else:
                loops[self.levels[entity], self._kind(entity)].append(entity)
        for number, key in enumerate(sorted(loops)):
            region = _Region(_OUTSIDE, windows=self._windows(loops[key]))
            for cluster in self._clusters(loops[key]):
                self._loop(cluster, region)
            body.append(f"    always_comb outside_{number}();")
            tasks += [f"    task automatic outside_{number};", *region.code, "    endtask"]
        return body, tasks

    def _region(self, condition: str) -> list[str]:
        """The writes under a condition, and what they alone read."""
        registers = self.regions[condition]
        inside = [*(entity for entity in self.order if self.homes[entity] == condition), *registers]
        region = _Region(condition, windows=self._windows(inside))
        units = [[entity] for entity in inside if entity[0] == _ALONE and entity in self.wires]
        loops: dict[tuple[int, tuple[int, bool]], list[Entity]] = defaultdict(list)
        for entity in inside:
            if entity[0] != _ALONE:
                loops[self.levels[entity], self._kind(entity)].append(entity)
        for entities in loops.values():
            units += self._clusters(entities)
        declared = []
        for number in self._sequence(units, registers, region):
            entity = units[number][0]
            if entity[0] == _ALONE:
                declared.append(f"        logic [{self._members(entity)[0].width - 1}:0] {entity[1]};")
                region.code.append(f"        {entity[1]} = {self._value(entity)};")
            else:
                self._loop(units[number], region)
        alone = [entity for entity in registers if entity[0] == _ALONE]
        writes = [f"        {entity[1]} <= {self._value(entity)};" for entity in alone]
        return [*declared, *region.code, *region.writes, *writes]

    def _clusters(self, entities: list[Entity]) -> list[list[Entity]]:
        """Entities of one loop, apart where they have no wire in common: short loops of few widths become vectors."""
        parent = {entity: entity for entity in entities}

        def root(entity: Entity) -> Entity:
            while parent[entity] != entity:
                parent[entity] = parent[parent[entity]]
                entity = parent[entity]
            return entity

        for entity in entities:
            for other in self.wires_of[entity]:
                if other in parent:
                    parent[root(entity)] = root(other)
        found: dict[Entity, list[Entity]] = defaultdict(list)
        for entity in entities:
            found[root(entity)].append(entity)
        return list(found.values())

    def _sequence(self, units: list[list[Entity]], registers: list[Entity], region: _Region) -> list[int]:
        """An order of `units`: wires before what reads them, and registers after, so that most can be written at once."""
        unit_of = {entity: number for number, unit in enumerate(units) for entity in unit}
        after: list[set[int]] = [set[int]() for _ in units]
        for number, unit in enumerate(units):
            for entity in unit:
                for other in self.wires_of[entity]:
                    before = unit_of.get(other, number)
                    if before != number:
                        after[before].add(number)
        for entity in registers:
            users = self.readers[entity]
            if entity[0] == _ALONE or not all(user in unit_of and self._straight(entity, user) for user in users):
                continue
            own = unit_of[entity]
            others = {unit_of[user] for user in users if user is not None} - {own}
            if not _reaches(after, own, others):
                for reader in others:
                    after[reader].add(own)
                region.blocking.add(entity)
        need = [0] * len(units)
        for later in after:
            for number in later:
                need[number] += 1
        todo = [number for number, count in enumerate(need) if count == 0]
        sequence = []
        while todo:
            number = heapq.heappop(todo)
            sequence.append(number)
            for later_number in sorted(after[number]):
                need[later_number] -= 1
                if need[later_number] == 0:
                    heapq.heappush(todo, later_number)
        return sequence

    def _loop(self, entities: list[Entity], region: _Region) -> None:
        size = self._size(entities[0][0])
        body: list[str] = []
        declared: list[str] = []
        last: list[str] = []
        for entity in entities:
            width, name = self._members(entity)[0].width, self.array[entity]
            value = self._lane_value(entity, region)
            if entity in region.blocking:
                declared.append(f"            logic [{width - 1}:0] {name}_now;")
                body.append(f"            {name}_now = {value};")
                last.append(f"            {name}[lane__] = {name}_now;")
            elif entity in self.registers and re.fullmatch(r"\w+\[lane__\]", value):
                region.writes.append(f"        {name} <= {value.removesuffix('[lane__]')};")
            elif entity in self.registers:
                self._declare(f"{name}_next", width, size)
                body.append(f"            {name}_next[lane__] = {value};")
                region.writes.append(f"        {name} <= {name}_next;")
            elif entity in self.local:
                declared.append(f"            logic [{width - 1}:0] {name};")
                body.append(f"            {name} = {value};")
            else:
                if region.home != _OUTSIDE:
                    self._declare(name, width, size)
                body.append(f"            {name}[lane__] = {value};")
        if body:
            loop = f"        for (int unsigned lane__ = 0; lane__ < {size}; lane__++) begin"
            region.code += ["        // verilator unroll_disable", loop, *declared, *body, *last, "        end"]

    def _lane_value(self, entity: Entity, region: _Region) -> str:
        """The expression of `entity` in lane `lane__`."""
        members = self._members(entity)
        pieces = members[0].form.split("\0")
        value = pieces[0]
        for number, piece in enumerate(pieces[1:]):
            operands = tuple(one.operands[number] for one in members)
            name, text = operands[0]
            array = self._array(entity, operands)
            if array is not None:
                value += text.replace(name, array)
            elif len(set(operands)) == 1:
                value += changed(text, self.names)
            else:
                value += self._copied(operands, self._size(entity[0]), region)
            value += piece
        return value

    def _array(self, entity: Entity, operands: Operands) -> str | None:
        """The element of an array that holds what every lane of `entity` reads."""
        other = self._entity(operands[0][0])
        if other[0] == _ALONE or self._size(other[0]) < self._size(entity[0]):
            return None
        if any(self.places.get(name) != (*other, lane) for lane, (name, _) in enumerate(operands)):
            return None
        return self.array[other] if other in self.local else f"{self.array[other]}[lane__]"

    def _windows(self, entities: list[Entity]) -> Windows:
        """What to copy together for the loops of `entities`."""
        found: list[Parts] = []
        for entity in entities:
            members = self._members(entity) if entity[0] != _ALONE else []
            for operands in zip(*(one.operands for one in members), strict=True):
                if len(set(operands)) > 1 and self._array(entity, operands) is None:
                    found += filter(None, [parts_of(operands)])
        return windows_of(found)

    def _copied(self, operands: Operands, size: int, region: _Region) -> str:
        """Lane `lane__` of operands that are copied to an array."""
        parts = parts_of(operands)
        if parts is None:
            texts = tuple(changed(text, self.names) for _, text in operands)
            return f"{self._copy(texts, self.module.bits(*operands[0]), size, region)}[lane__]"
        low, high = next(ends for ends in region.windows[parts.words] if ends[0] <= parts.low and parts.high <= ends[1])
        words = [(self.names.get(name, name), step) for name, step in zip(*parts.words, strict=True)]
        texts = tuple(f"{name}[{high + step}:{low + step}]" for name, step in words)
        return parts.within(f"{self._copy(texts, high - low + 1, size, region)}[lane__]", low, high)

    def _copy(self, texts: tuple[str, ...], width: int, size: int, region: _Region) -> str:
        key: tuple[int | str, ...] = (size, *texts)
        if key not in region.copies:
            array = region.copies[key] = f"copied_{len(self.arrays)}"
            self._declare(array, width, size)
            region.code += [f"        {array}[{lane}] = {one};" for lane, one in enumerate(texts)]
        return region.copies[key]


def _reaches(after: list[set[int]], start: int, goals: set[int]) -> bool:
    seen, todo = {start}, [start]
    while todo:
        for number in after[todo.pop()]:
            if number in goals:
                return True
            if number not in seen:
                seen.add(number)
                todo.append(number)
    return False
