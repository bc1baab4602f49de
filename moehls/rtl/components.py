"""Strongly connected components of a directed graph."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

V = TypeVar("V", bound=Hashable)


def components(after: Mapping[V, Sequence[V]], vertices: Iterable[V]) -> list[list[V]]:
    """Each component after all that lead to it (Tarjan 1972, iterative); `after` are the edges."""
    index: dict[V, int] = {}
    low: dict[V, int] = {}
    on: set[V] = set()
    stack: list[V] = []
    found: list[list[V]] = []
    for root in vertices:
        if root in index:
            continue
        work = [(root, iter(after.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on.add(root)
        while work:
            v, out = work[-1]
            for to in out:
                if to not in index:
                    index[to] = low[to] = len(index)
                    stack.append(to)
                    on.add(to)
                    work.append((to, iter(after.get(to, ()))))
                    break
                if to in on:
                    low[v] = min(low[v], index[to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[v])
                if low[v] == index[v]:
                    component = []
                    while True:
                        w = stack.pop()
                        on.discard(w)
                        component.append(w)
                        if w == v:
                            break
                    found.append(component)
    return found[::-1]
