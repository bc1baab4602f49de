"""Puts sums of branches in the order in which a residual stream takes them: `x + (a + b)` becomes `(x + a) + b`.

In go the operations of a network, out come the same with every tree of adds as a chain in the order of the operations. Norms of
the output of a linear come right behind it, so that no other value is there meanwhile. Where the stream goes on from a norm, as
CLIP's does before the first block, an identity linear stands between the norm and those who read the stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from moehls.network.interpreter import reads
from moehls.network.operations import Add, Constant, Embed, Experts, LayerNorm, Linear, Operation, Route, SelectTokens


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


def readers_in_time(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """`operations` with whatever reads the stream as it was before an add, as norms of intermediate features do, right there."""
    result = list(operations)
    place = 0
    while place < len(result):
        stop = _replaced(result[:place], result[place])
        if stop is None:
            place += 1
            continue
        made = {operation.output for operation in result[:stop]} | _inputs(result)
        moved: list[Operation] = []
        for operation in result[place:]:
            wanted = set(reads(operation))
            again = not moved or not wanted.isdisjoint(each.output for each in moved)
            if again and not isinstance(operation, Add) and wanted <= made:
                moved.append(operation)
                made.add(operation.output)
        if not moved or any(isinstance(operation, Route) for operation in moved):  # a router's input is kept for it
            place += 1
            continue
        ids = set(map(id, moved))
        rest = [operation for operation in result if id(operation) not in ids]
        result = [*rest[:stop], *moved, *rest[stop:]]
    return tuple(result)


def _replaced(before: Sequence[Operation], operation: Operation) -> int | None:
    """The place behind the stream that the operation reads, where an add before the operation replaces it."""
    wanted = set() if isinstance(operation, Add) else set(reads(operation))
    replaced = wanted & {other.left for other in before if isinstance(other, Add)}
    return next((place + 1 for place, other in enumerate(before) if other.output in replaced), None)


def _inputs(operations: Sequence[Operation]) -> set[str]:
    """What the operations read and none writes."""
    return {name for operation in operations for name in reads(operation)} - {each.output for each in operations}


def streams_of_norms(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """`operations` with an identity behind every norm of the stream that an add or a norm takes for the stream."""
    makers = {operation.output: operation for operation in operations}
    added = {
        name for operation in operations if isinstance(operation, Add) for name in (operation.left, operation.right)
    }
    norms = {
        o.output: o for o in operations if isinstance(o, LayerNorm) and isinstance(makers.get(o.input), Embed | Add)
    }
    again = {o.output: o.input for o in operations if isinstance(o, Linear) and o.input in norms and _is_identity(o)}
    found = {name for name in norms if name in added}
    streams = {name: f"{name}.stream" for name in found} | {
        output: f"{name}.stream" for output, name in again.items() if name in found
    }
    result: list[Operation] = []
    for operation in operations:
        if operation.output in streams and operation.output in again:
            continue
        if isinstance(operation, Add):
            left, right = (streams.get(name, name) for name in (operation.left, operation.right))
            operation = replace(operation, left=left, right=right)
        elif isinstance(operation, LayerNorm):
            operation = replace(operation, input=streams.get(operation.input, operation.input))
        result.append(operation)
        if operation.output in found:
            name, channels = streams[operation.output], len(norms[operation.output].weight)
            identity, zero = np.eye(channels, dtype=np.float32), np.zeros(channels, np.float32)
            result.append(Linear(name, operation.output, name, identity, zero))
    return tuple(result)


def rows_of_streams(operations: Sequence[Operation]) -> tuple[Operation, ...]:
    """`operations` with a selection of all rows where linears or experts read the stream itself, without a norm before them.

    So begins the first block of a post-norm encoder, and a head of all tokens without a last norm.
    """
    rows = {o.output: len(o.position) for o in operations if isinstance(o, Embed)}
    rows |= {o.output: len(o.rows) for o in operations if isinstance(o, Constant)}
    for operation in operations:
        if isinstance(operation, Add) and (operation.left in rows or operation.right in rows):
            rows[operation.output] = rows.get(operation.left, rows.get(operation.right, 0))
    readers = [o for o in operations if isinstance(o, Linear | Experts) and o.input in rows]
    found = {operation.input: f"{operation.input}.rows" for operation in readers}
    result: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Linear | Experts) and operation.input in found:
            operation = replace(operation, input=found[operation.input])
        result.append(operation)
        if operation.output in found:
            name = found[operation.output]
            result.append(SelectTokens(name, operation.output, name, 0, rows[operation.output]))
    return tuple(result)


def _is_identity(linear: Linear) -> bool:
    rows, columns = linear.weight.shape
    return rows == columns and np.array_equal(linear.weight, np.eye(rows)) and not linear.bias.any()


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
