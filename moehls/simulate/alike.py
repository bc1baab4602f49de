"""Lanes of a module: parts that compute the same of different values.

In goes a `Module`; out come groups of lanes, in which the statement at one position of every lane has the same form. A lane is
what hangs together without passing a name with many readers, nor, in a finer search, one that is joined with others of its kind:
the products of a sum are lanes then. Which statement of one lane stands for which of another is found by refining classes over
operands and readers, and is then checked, so that nothing rests on it.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moehls.simulate.statements import NAME, Module, Statement

Lanes = list[list[Statement]]
"""statements by lane and position"""
_ROUNDS = 40
_ROW = 8
"""lanes that share operands and are then a group of their own"""
_ENOUGH = 0.8
"""share of the statements in lanes with which a search for coarse lanes ends"""


@dataclass(frozen=True)
class _Search:
    readers: int
    """statements that read a name before it ends a lane"""
    exact: bool = False
    """whether parts of words tell statements apart: lanes then take the same part of different words"""
    joins: bool = False
    """whether a name that is joined with others of its kind ends a lane"""


_COARSE = (_Search(6), _Search(8, exact=True))
_FINE = _Search(6, joins=True)


def groups_of(module: Module, least: int, statements: int) -> list[Lanes]:
    """Groups of at least `least` lanes that have `statements` and more in all: the more lanes, the sooner taken."""

    def rows(search: _Search) -> list[Lanes]:
        return [row for lanes in _alike(module, search, least) for row in _rows(lanes) if enough(row)]

    def enough(row: Lanes) -> bool:
        return len(row) >= least and len(row[0]) >= 2 and len(row) * len(row[0]) >= statements

    coarse: list[Lanes] = []
    for search in _COARSE:
        found = rows(search)
        if _gain(found) > _gain(coarse):
            coarse = found
        if sum(len(row) * len(row[0]) for row in coarse) > _ENOUGH * len(module.statements):
            break
    taken: set[str] = set()
    groups: list[Lanes] = []
    for row in sorted([*coarse, *rows(_FINE)], key=lambda row: -len(row)):
        free = [n for n in range(len(row[0])) if not any(lane[n].name in taken for lane in row)]
        left = [[lane[n] for n in free] for lane in row]
        if enough(left):
            groups.append(left)
            taken.update(one.name for lane in left for one in lane)
    return groups


def _gain(groups: list[Lanes]) -> float:
    return sum((len(lanes) - max(1.0, len(lanes) / 8)) * len(lanes[0]) for lanes in groups)


def _alike(module: Module, search: _Search, least: int) -> list[Lanes]:
    plain = {name: one for name, one in module.statements.items() if one.plain}
    readers = Counter(name for one in module.statements.values() for name in {name for name, _ in one.operands})
    readers.update(name for line in module.rest for name in set(NAME.findall(line)))
    inner = {name for name in plain if readers[name] < search.readers}
    if search.joins:
        inner -= _joined(plain, inner, _classes(module, plain, inner, search.exact, upwards=False))
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


def _joined(plain: dict[str, Statement], inner: set[str], classes: dict[str, int]) -> set[str]:
    """Names that a statement reads beside others of their class."""
    found: set[str] = set()
    for one in plain.values():
        names = {name for name, _ in one.operands if name in inner}
        count = Counter(classes[name] for name in names)
        found |= {name for name in names if count[classes[name]] > 1}
    return found


def _classes(
    module: Module, plain: dict[str, Statement], inner: set[str], exact: bool, upwards: bool = True
) -> dict[str, int]:
    """A number for each statement: equal for those that look alike as far as their lanes go, `upwards` with their readers."""

    def outer(name: str, text: str) -> tuple[int, str]:
        return module.bits(name, text), text.replace(name, "") if exact else ""

    numbers = {name: number for number, name in enumerate(plain)}
    first: list[int] = []
    found: list[tuple[int, int, int]] = []
    for number, one in enumerate(plain.values()):
        seen = [text.replace(name, "") if name in inner else outer(name, text) for name, text in one.operands]
        own = [name == one.name for name, _ in one.operands]
        first.append(zlib.crc32(repr((one.form, one.width, one.condition, seen, own)).encode()))
        found += [(number, place, numbers[name]) for place, (name, _) in enumerate(one.operands) if name in inner]
    classes, edges = np.array(first, np.uint64), np.array(found, np.uint64).reshape(-1, 3)
    readers, places, operands = edges[:, 0].astype(np.intp), _mixed(edges[:, 1]), edges[:, 2].astype(np.intp)
    count = len(np.unique(classes))
    for _ in range(_ROUNDS):
        after = _mixed(classes)
        np.add.at(after, readers, _mixed(classes[operands] ^ places))
        if upwards:
            np.add.at(after, operands, _mixed(classes[readers] + places))
        classes = after
        before, count = count, len(np.unique(classes))
        if before == count:
            break
    return dict(zip(plain, classes.tolist(), strict=True))


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of each value (splitmix64)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


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
