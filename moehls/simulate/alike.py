"""Lanes of a module: parts that compute the same of different values.

In goes a `Module`; out come groups of lanes, in which the statement at one position of every lane has the same form. A lane is
what hangs together without passing a name with many readers; which statement of one lane stands for which of another is found by
refining classes over operands and readers, and is then checked, so that nothing rests on it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

from moehls.simulate.statements import NAME, Module, Statement

Lanes = list[list[Statement]]
"""statements by lane and position"""
_ROUNDS = 40
_ROW = 8
"""lanes that share operands and are then a group of their own"""
_ENOUGH = 0.8
"""share of the statements in lanes with which a search ends"""


@dataclass(frozen=True)
class _Search:
    readers: int
    """statements that read a name before it ends a lane"""
    exact: bool
    """whether parts of words tell statements apart: lanes then take the same part of different words"""


_SEARCHES = (_Search(6, False), _Search(8, True))


def groups_of(module: Module, least: int, statements: int) -> list[Lanes]:
    """Groups of at least `least` lanes that have `statements` and more in all."""
    best: list[Lanes] = []
    for search in _SEARCHES:
        found = [
            row
            for lanes in _alike(module, search, least)
            for row in _rows(lanes)
            if len(row) >= least and len(row[0]) >= 2 and len(row) * len(row[0]) >= statements
        ]
        if _gain(found) > _gain(best):
            best = found
        if sum(len(row) * len(row[0]) for row in best) > _ENOUGH * len(module.statements):
            break
    return best


def _gain(groups: list[Lanes]) -> float:
    return sum((len(lanes) - max(1.0, len(lanes) / 8)) * len(lanes[0]) for lanes in groups)


def _alike(module: Module, search: _Search, least: int) -> list[Lanes]:
    plain = {name: one for name, one in module.statements.items() if one.plain}
    readers = Counter(name for one in module.statements.values() for name in {name for name, _ in one.operands})
    readers.update(name for line in module.rest for name in set(NAME.findall(line)))
    inner = {name for name in plain if readers[name] < search.readers}
    classes = _classes(module, plain, inner, search.exact)
    kinds: dict[tuple[int, ...], Lanes] = defaultdict(list)
    for part in _parts(plain, inner):
        part.sort(key=lambda one: (classes[one.name], one.line))
        kinds[tuple(classes[one.name] for one in part)].append(part)
    found = []
    for parts in kinds.values():
        if len(parts) >= least:
            parts.sort(key=lambda part: min(one.line for one in part))
            places = {one.name: n for n, one in enumerate(parts[0])}
            found.append([part for part in parts if _same(module, parts[0], places, part, inner)])
    return found


def _parts(plain: dict[str, Statement], inner: set[str]) -> list[list[Statement]]:
    parent = {name: name for name in plain}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one in plain.values():
        for name, _ in one.operands:
            if name in inner:
                parent[root(one.name)] = root(name)
    parts: dict[str, list[Statement]] = defaultdict(list)
    for one in plain.values():
        parts[root(one.name)].append(one)
    return list(parts.values())


def _classes(module: Module, plain: dict[str, Statement], inner: set[str], exact: bool) -> dict[str, int]:
    """A number for each statement: equal for those that look alike as far as their lanes go."""

    def outer(name: str, text: str) -> tuple[int, str]:
        return module.bits(name, text), text.replace(name, "") if exact else ""

    users: dict[str, list[tuple[int, str]]] = defaultdict(list)
    classes: dict[str, int] = {}
    for one in plain.values():
        seen = [text.replace(name, "") if name in inner else outer(name, text) for name, text in one.operands]
        own = [name == one.name for name, _ in one.operands]
        classes[one.name] = zlib.crc32(repr((one.form, one.width, one.condition, seen, own)).encode())
        for place, (name, _) in enumerate(one.operands):
            if name in inner:
                users[name].append((place, one.name))
    count = len(set(classes.values()))
    for _ in range(_ROUNDS):
        classes = {
            name: hash(
                (
                    number,
                    tuple(classes[operand] if operand in inner else 0 for operand, _ in plain[name].operands),
                    tuple(sorted((place, classes[user]) for place, user in users[name])),
                )
            )
            for name, number in classes.items()
        }
        before, count = count, len(set(classes.values()))
        if before == count:
            break
    return classes


def _same(
    module: Module, first: list[Statement], places: dict[str, int], part: list[Statement], inner: set[str]
) -> bool:
    """Whether `part` is `first` of other values, position by position."""
    own = {one.name: n for n, one in enumerate(part)}
    for one, other in zip(first, part, strict=True):
        if (one.form, one.width, one.condition, len(one.operands)) != (
            other.form,
            other.width,
            other.condition,
            len(other.operands),
        ):
            return False
        for (name, text), (name2, text2) in zip(one.operands, other.operands, strict=True):
            if module.bits(name, text) != module.bits(name2, text2):
                return False
            place, place2 = places.get(name) if name in inner else None, own.get(name2) if name2 in inner else None
            if place != place2 or (place is not None and text.replace(name, "") != text2.replace(name2, "")):
                return False
    return True


def _rows(lanes: Lanes) -> list[Lanes]:
    """The lanes, apart by the operands that most of them share: a row reads these once."""
    votes: Counter[tuple[int, ...]] = Counter()
    for position in range(len(lanes[0])):
        for place in range(len(lanes[0][position].operands)):
            numbers: dict[str, int] = {}
            key = tuple(numbers.setdefault(lane[position].operands[place][1], len(numbers)) for lane in lanes)
            if len(numbers) > 1 and min(Counter(key).values()) >= _ROW:
                votes[key] += 1
    if not votes:
        return [lanes]
    rows: dict[int, Lanes] = defaultdict(list)
    for number, lane in zip(votes.most_common(1)[0][0], lanes, strict=True):
        rows[number].append(lane)
    return list(rows.values())


def changed(text: str, names: dict[str, str]) -> str:
    """`text` with other names, ports of instances aside."""
    return re.sub(r"(?<!['\w$.])[A-Za-z_]\w*", lambda found: names.get(found[0], found[0]), text)
