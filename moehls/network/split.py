"""Hidden layers in parts: a network whose MLPs and experts have a part of the hidden channels at a time.

`second · act(first · x)` is the sum over parts of the hidden channels of `secondᵢ · act(firstᵢ · x)`, each added to the
residual by itself. So a model whose hidden activations do not fit on chip becomes one that fits, and no weight moves twice.
In goes a network, out comes one of the same function, up to the rounding of float sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moehls.network.interpreter import IndexArray, reads
from moehls.network.operations import (
    Activation,
    Add,
    Experts,
    Lattice,
    Linear,
    Multiply,
    Network,
    Operation,
    of_experts,
)


@dataclass(frozen=True)
class _Mlp:
    """Linear → Activation → Linear → Add, or with a product of the activation and a linear `up` (a gated MLP)."""

    first: Linear
    activation: Activation
    up: Linear | None
    product: Multiply | None
    second: Linear
    add: Add


def split_hidden(network: Network, parts: int) -> Network:
    """`network` with every hidden layer in `parts` parts of about the same width; part 0 keeps the second bias."""
    if parts == 1:
        return network
    mlps = _mlps(network)
    pieces = {id(op) for mlp in mlps.values() for op in vars(mlp).values()}
    adds = _expert_adds(network)
    operations: list[Operation] = []
    for op in network.operations:
        if isinstance(op, Add) and op.output in mlps:
            operations += _mlp_parts(mlps[op.output], parts)
        elif isinstance(op, Add) and op.output in adds:
            operations += _expert_parts(adds[op.output], op, parts)
        elif id(op) not in pieces and not (isinstance(op, Experts) and any(op is e for e in adds.values())):
            operations.append(op)
    lattices = dict(network.lattices)
    for mlp in mlps.values():
        inner = (mlp.activation, mlp.up, mlp.product)
        for name in (op.output for op in inner if op is not None and op.output in network.lattices):
            for n, channels in enumerate(np.array_split(np.arange(len(mlp.first.weight)), parts)):
                lattices[f"{name}.part{n}"] = _part_of(network.lattices[name], channels)
    for experts in adds.values():
        count, hidden = experts.first_weight.shape[:2]
        for role in ("hidden", "up"):
            whole = network.lattices.get(of_experts(experts.output, role))
            for n, channels in enumerate(np.array_split(np.arange(hidden), parts) if whole is not None else ()):
                assert whole is not None
                places = (np.arange(count)[:, None] * hidden + channels).reshape(-1)
                lattices[of_experts(f"{experts.output}.part{n}", role)] = _part_of(whole, places)
    return replace(network, operations=tuple(operations), lattices=lattices)


def _part_of(lattice: Lattice, channels: IndexArray) -> Lattice:
    return replace(lattice, scale=lattice.scale[channels], zero=lattice.zero[channels])


def _mlps(network: Network) -> dict[str, _Mlp]:
    """Every MLP whose inner values nobody else reads, by the output of its Add."""
    readers: dict[str, list[Operation]] = {}
    for op in network.operations:
        for name in reads(op):
            readers.setdefault(name, []).append(op)
    makers = {op.output: op for op in network.operations}
    shown = {output.value for output in network.outputs}

    def only_reader(name: str) -> Operation | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in shown else None

    found = {}
    for activation in network.operations:
        if not isinstance(activation, Activation) or only_reader(activation.input) is not activation:
            continue
        first, after, up = makers.get(activation.input), only_reader(activation.output), None
        product = after if isinstance(after, Multiply) else None
        if product is not None:
            other = makers.get(product.right if product.left == activation.output else product.left)
            if not isinstance(other, Linear) or only_reader(other.output) is not product:
                continue
            up = other
            after = only_reader(product.output)
        add = only_reader(after.output) if isinstance(after, Linear) else None
        if isinstance(first, Linear) and isinstance(after, Linear) and isinstance(add, Add):
            found[add.output] = _Mlp(first, activation, up, product, after, add)
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


def _mlp_parts(mlp: _Mlp, parts: int) -> Iterator[Operation]:
    second, add = mlp.second, mlp.add
    residual = add.left if add.right == second.output else add.right
    for n, channels in enumerate(np.array_split(np.arange(len(mlp.first.weight)), parts)):
        tag = f".part{n}"

        def rows(op: Linear, tag: str = tag, channels: IndexArray = channels) -> Linear:
            weight, bias = op.weight[channels], op.bias[channels]
            return replace(op, name=op.name + tag, output=op.output + tag, weight=weight, bias=bias)

        hidden = mlp.activation.output + tag
        if mlp.up is not None:
            yield rows(mlp.up)
        yield rows(mlp.first)
        yield replace(mlp.activation, name=mlp.activation.name + tag, input=mlp.activation.input + tag, output=hidden)
        if mlp.up is not None and mlp.product is not None:
            product = mlp.product.output + tag
            yield Multiply(mlp.product.name + tag, hidden, mlp.up.output + tag, product)
            hidden = product
        value, bias = second.output + tag, second.bias if n == 0 else np.zeros_like(second.bias)
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
            up_weight=None if experts.up_weight is None else np.ascontiguousarray(experts.up_weight[:, channels]),
            up_bias=None if experts.up_bias is None else np.ascontiguousarray(experts.up_bias[:, channels]),
        )
        total = add.output if n + 1 == parts else add.output + tag
        yield Add(add.name + tag, residual, experts.output + tag, total)
        residual = total
