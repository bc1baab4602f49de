"""Hidden layers in parts: a network whose MLPs and experts have a part of the hidden channels at a time.

`second · act(first · x)` is the sum over parts of the hidden channels of `secondᵢ · act(firstᵢ · x)`, each added to the
residual by itself. So a model whose hidden activations do not fit on chip becomes one that fits, and no weight moves twice.
In goes a network, out comes one of the same function, up to the rounding of float sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from moehls.network.interpreter import reads
from moehls.network.operations import Activation, Add, Experts, Linear, Network, Operation


def split_hidden(network: Network, parts: int) -> Network:
    """`network` with every hidden layer in `parts` parts of about the same width; part 0 keeps the second bias."""
    if parts == 1:
        return network
    mlps = _mlps(network)
    pieces = {id(op) for mlp in mlps.values() for op in mlp}
    adds = _expert_adds(network)
    operations: list[Operation] = []
    for op in network.operations:
        if isinstance(op, Add) and op.output in mlps:
            operations += _mlp_parts(*mlps[op.output], parts)
        elif isinstance(op, Add) and op.output in adds:
            operations += _expert_parts(adds[op.output], op, parts)
        elif id(op) not in pieces and not (isinstance(op, Experts) and any(op is e for e in adds.values())):
            operations.append(op)
    return replace(network, operations=tuple(operations))


def _mlps(network: Network) -> dict[str, tuple[Linear, Activation, Linear, Add]]:
    """Every Linear → Activation → Linear → Add whose inner values nobody else reads, by the output of the Add."""
    readers: dict[str, list[Operation]] = {}
    for op in network.operations:
        for name in reads(op):
            readers.setdefault(name, []).append(op)
    shown = {output.value for output in network.outputs}

    def only_reader(name: str) -> Operation | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in shown else None

    found = {}
    for first in network.operations:
        if not isinstance(first, Linear):
            continue
        activation = only_reader(first.output)
        second = only_reader(activation.output) if isinstance(activation, Activation) else None
        add = only_reader(second.output) if isinstance(second, Linear) else None
        if isinstance(activation, Activation) and isinstance(second, Linear) and isinstance(add, Add):
            found[add.output] = first, activation, second, add
    return found


def _expert_adds(network: Network) -> dict[str, Experts]:
    """Every Experts that only a residual Add reads, by the output of the Add."""
    read = [name for op in network.operations for name in reads(op)]
    experts = {op.output: op for op in network.operations if isinstance(op, Experts)}
    shown = {output.value for output in network.outputs}
    single = {name: op for name, op in experts.items() if read.count(name) == 1 and name not in shown}
    return {
        op.output: single[name]
        for op in network.operations
        if isinstance(op, Add)
        for name in (op.left, op.right)
        if name in single
    }


def _mlp_parts(first: Linear, activation: Activation, second: Linear, add: Add, parts: int) -> Iterator[Operation]:
    residual = add.left if add.right == second.output else add.right
    for n, channels in enumerate(np.array_split(np.arange(len(first.weight)), parts)):
        tag = f".part{n}"
        inner, hidden, value = first.output + tag, activation.output + tag, second.output + tag
        yield replace(
            first, name=first.name + tag, output=inner, weight=first.weight[channels], bias=first.bias[channels]
        )
        yield replace(activation, name=activation.name + tag, input=inner, output=hidden)
        bias = second.bias if n == 0 else np.zeros_like(second.bias)
        weight = np.ascontiguousarray(second.weight[:, channels])
        yield replace(second, name=second.name + tag, input=hidden, output=value, weight=weight, bias=bias)
        total = add.output if n + 1 == parts else add.output + tag
        yield Add(add.name + tag, residual, value, total)
        residual = total


def _expert_parts(experts: Experts, add: Add, parts: int) -> Iterator[Operation]:
    residual = add.left if add.right == experts.output else add.right
    for n, channels in enumerate(np.array_split(np.arange(experts.first_weight.shape[1]), parts)):
        tag = f".part{n}"
        yield replace(
            experts,
            name=experts.name + tag,
            output=experts.output + tag,
            first_weight=np.ascontiguousarray(experts.first_weight[:, channels]),
            first_bias=np.ascontiguousarray(experts.first_bias[:, channels]),
            second_weight=np.ascontiguousarray(experts.second_weight[:, :, channels]),
            second_bias=experts.second_bias if n == 0 else np.zeros_like(experts.second_bias),
        )
        total = add.output if n + 1 == parts else add.output + tag
        yield Add(add.name + tag, residual, experts.output + tag, total)
        residual = total
