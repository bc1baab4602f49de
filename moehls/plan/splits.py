"""What of a network a machine with too little memory computes part by part, and in which parts.

In go an integer network and a shape with `token_blocks` and `head_groups`, out come the linears whose output is made a group of
heads at a time, the norms whose fine value is made a block of tokens at a time, and the blocks. The numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moehls.integer.operations import (
    AddResidual,
    IntegerAttention,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerRoute,
    Requantise,
)
from moehls.plan.shape import Shape
from moehls.plan.steps import Place
from moehls.plan.uses import attention_roles, reads


@dataclass(frozen=True)
class Block:
    """Rows `first … first + rows - 1` of a value: whole token groups but for its last ones."""

    first: int
    rows: int

    def of(self, place: Place, shape: Shape) -> Place:
        """Where these rows of the value at `place` lie."""
        base = place.base + self.first // shape.token_parallel * place.stride
        return Place(place.memory, base, place.stride, self.rows, place.channels, place.signed, place.planes)


def blocks_of(rows: int, parts: int, shape: Shape) -> Iterator[Block]:
    """`rows` rows in `parts` blocks of about the same size, or in fewer where there are not so many token groups."""
    groups = -(-rows // shape.token_parallel)
    each = -(-groups // parts) * shape.token_parallel
    for first in range(0, rows, each):
        yield Block(first, min(each, rows - first))


def heads_in(heads: int, groups: int) -> Iterator[range]:
    """`heads` heads in `groups` groups of about the same size, or one by one where there are not so many."""
    each = -(-heads // groups)
    for first in range(0, heads, each):
        yield range(first, min(first + each, heads))


def waiting_linears(network: IntegerNetwork, shape: Shape) -> dict[str, int]:
    """The queries, keys and values that are made a group of heads at a time, each with the index of its attention.

    They must be linears of the operand of a norm: what is normalised once more, or does not come from all tokens, lies whole.
    """
    if shape.head_groups == 1:
        return {}
    roles = attention_roles(network)
    operands = {op.operand for op in network.operations if isinstance(op, IntegerNorm) and op.operand not in roles}
    linears = {
        op.output
        for op in network.operations
        if isinstance(op, IntegerLinear) and isinstance(op.epilogue, Requantise) and op.input in operands
    }
    found: dict[str, int] = {}
    for index, op in enumerate(network.operations):
        if isinstance(op, IntegerAttention) and op.heads > 1:
            names = op.query, op.key, op.value
            found |= dict.fromkeys(names, index) if linears.issuperset(names) else {}
    return found


def blockwise_norms(network: IntegerNetwork, shape: Shape) -> dict[str, int]:
    """The fine values that are made a block of tokens at a time, each with the index of its last reader.

    Readers are routers, which come before the residual is updated, and outputs.
    """
    if shape.token_blocks == 1:
        return {}
    shown = {output.value for output in network.outputs}
    found: dict[str, int] = {}
    for index, norm in enumerate(network.operations):
        if not isinstance(norm, IntegerNorm):
            continue
        readers = [n for n, op in enumerate(network.operations) if norm.fine in reads(op)]
        updates = [n for n, op in enumerate(network.operations) if n > index and _updated(op) == norm.input]
        routers = all(isinstance(network.operations[n], IntegerRoute) for n in readers)
        last = max(readers, default=index)
        if (readers or norm.fine in shown) and routers and last < min(updates, default=len(network.operations)):
            found[norm.fine] = last
    return found


def _updated(op: object) -> str | None:
    """The residual value that `op` replaces."""
    if isinstance(op, IntegerExperts):
        return op.residual
    return op.epilogue.residual if isinstance(op, IntegerLinear) and isinstance(op.epilogue, AddResidual) else None
