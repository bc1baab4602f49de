"""Puts sums of branches in the order in which a residual stream takes them: `x + (a + b)` becomes `(x + a) + b`.

In go the operations of a network, out come the same with every tree of adds as a chain in the order of the operations. Norms of
the output of a linear come right behind it, so that no other value is there meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from moehls.network.interpreter import reads
from moehls.network.operations import Add, LayerNorm, Linear, Operation


def chained(operations: Sequence[Operation], shown: set[str]) -> tuple[Operation, ...]:
    """`operations` with chains of adds; `shown` are the values that outputs show."""
    adds = {operation.output: operation for operation in operations if isinstance(operation, Add)}
    readers = Counter(name for operation in operations for name in reads(operation))
    of_adds = Counter(name for add in adds.values() for name in reads(add))
    inner = {name for name in adds if readers[name] == of_adds[name] == 1 and name not in shown}
    order = {operation.output: place for place, operation in enumerate(operations)}

    def leaves(add: Add) -> Iterator[str]:
        for name in (add.left, add.right):
            yield from leaves(adds[name]) if name in inner else (name,)

    behind: dict[str, Add] = {}
    """the add of each chain behind the operation that makes its right side"""
    for root in adds.values():
        if root.output in inner:
            continue
        left, *others = sorted(leaves(root), key=lambda name: order.get(name, -1))
        for number, right in enumerate(others):
            name = root.name if number == len(others) - 1 else f"{root.name}.{number}"
            behind[right] = replace(root, name=name, output=name, left=left, right=right)
            left = name
    result: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Add):
            continue
        pending: Operation | None = operation
        while pending is not None:
            result.append(pending)
            pending = behind.pop(pending.output, None)
    return tuple(result)


def norms_behind_linears(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """`operations` with every normalisation of a linear's output right behind the linear."""
    linears = {operation.output for operation in operations if isinstance(operation, Linear)}
    norms: dict[str, list[Operation]] = {}
    for operation in operations:
        if isinstance(operation, LayerNorm) and operation.input in linears:
            norms.setdefault(operation.input, []).append(operation)
    result: list[Operation] = []
    for operation in operations:
        if isinstance(operation, LayerNorm) and operation.input in linears:
            continue
        result += [operation, *norms.get(operation.output, [])]
    return tuple(result)
