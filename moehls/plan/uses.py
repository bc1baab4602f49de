"""Who reads which value of an integer network: last readers, and the values that attention takes."""

from __future__ import annotations

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerPool,
)
from moehls.plan.steps import Channels, Memory


def reads(operation: IntegerOperation) -> tuple[str, ...]:
    """The values `operation` reads."""
    match operation:
        case IntegerAttention():
            return operation.query, operation.key, operation.value
        case IntegerExperts():
            return operation.input, operation.routing, operation.residual
        case IntegerLinear(epilogue=AddResidual(residual=residual)):
            return operation.input, residual
        case IntegerLinear(epilogue=GatedRequantise(up=up)):
            return operation.input, up
        case IntegerConstant():
            return ()
        case _:
            return (operation.input,)


def last_uses(network: IntegerNetwork) -> dict[str, int]:
    """Index of the last operation that reads a value; values that none reads are missing."""
    return {value: index for index, operation in enumerate(network.operations) for value in reads(operation)}


def heads_of_norms(network: IntegerNetwork, roles: dict[str, tuple[Memory, int]]) -> dict[str, int]:
    """The heads of the attentions that read norms of a residual value, by its name."""
    norms = [op for op in network.operations if isinstance(op, IntegerNorm) and op.operand in roles]
    return {op.input: roles[op.operand][1] for op in norms}


def most_blocks(network: IntegerNetwork, block: int) -> int:
    """The most blocks of `block` channels a row that is loaded, normalised or pooled has: heads are padded one by one."""
    roles = attention_roles(network)
    rows = [Channels(1)]
    for op in network.operations:
        match op:
            case IntegerEmbed(initial=initial):
                rows.append(Channels(initial.shape[1]))
            case IntegerConstant(rows=constant):
                rows.append(Channels(constant.shape[1]))
            case IntegerNorm():
                _, heads = roles.get(op.operand, ("m0", 1))
                rows.append(Channels(len(op.scaling.bias), heads // op.heads))
            case IntegerPool():
                rows.append(Channels(len(op.scaling.bias)))
    return max(channels.blocks(block) for channels in rows)


def factors(network: IntegerNetwork) -> frozenset[str]:
    """The operands that gated linears multiply with."""
    epilogues = (op.epilogue for op in network.operations if isinstance(op, IntegerLinear))
    return frozenset(epilogue.up for epilogue in epilogues if isinstance(epilogue, GatedRequantise))


def attention_roles(network: IntegerNetwork) -> dict[str, tuple[Memory, int]]:
    """The memory and the heads of every query, key and value.

    Raises:
        MoehlsError: a value has two roles, or its channels do not divide by the heads.
    """
    roles: dict[str, tuple[Memory, int]] = {}
    for operation in network.operations:
        if not isinstance(operation, IntegerAttention):
            continue
        channels = len(operation.scaling.bias)
        if channels % operation.heads:
            raise MoehlsError(f"{operation.name}: {channels} channels do not divide by {operation.heads} heads")
        memories: tuple[tuple[str, Memory], ...] = (
            (operation.query, "m1"),
            (operation.key, "m2"),
            (operation.value, "m1"),
        )
        for value, memory in memories:
            if value in roles:
                raise MoehlsError(
                    f"{operation.name}: {value!r} already is a query, key or value; the machine computes each by a "
                    "linear layer of its own: duplicate the layer in the model"
                )
            roles[value] = (memory, operation.heads)
    return roles
