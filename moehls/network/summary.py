"""What a network is, in figures: blocks, heads, experts, routing, tasks, parameters and multiply-accumulates an
image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from moehls.errors import MoehlsError
from moehls.network.operations import (
    Activation,
    Attention,
    Constant,
    Embed,
    Experts,
    GateNormalisation,
    Linear,
    MeanTokens,
    Network,
    Operation,
    Route,
    Score,
    SelectTokens,
)
from moehls.network.shapes import Shape, value_shapes

GateOrder = Literal[
    "softmax, top-k",
    "softmax, top-k, renormalise",
    "sigmoid, top-k",
    "sigmoid, top-k, renormalise",
    "sigmoid, renormalise, top-k",
]
_ORDERS: dict[tuple[Score, GateNormalisation], GateOrder] = {
    ("softmax", "all"): "softmax, top-k",
    ("softmax", "chosen"): "softmax, top-k, renormalise",
    ("sigmoid", "none"): "sigmoid, top-k",
    ("sigmoid", "chosen"): "sigmoid, top-k, renormalise",
    ("sigmoid", "all"): "sigmoid, renormalise, top-k",
}


@dataclass(frozen=True)
class BlockSummary:
    """One transformer block: attention and what follows it."""

    heads: int
    head_channels: int
    feed_forward: Literal["mlp", "experts", "soft", "none"]
    hidden: int
    """channels of the MLP's or of one expert's hidden layer"""
    experts: int
    k: int
    """experts of a token; slots of an expert in a soft mixture"""
    gate_order: GateOrder | None
    score_bias: Literal["none", "shared", "heads"] = "none"
    """what is added to the scores, masks too: nothing, the same for all heads, or each head's own"""


@dataclass(frozen=True)
class OutputSummary:
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    model: str
    image: tuple[int, int, int]
    """channels, height, width"""
    patch: tuple[int, int]
    tokens: int
    leading_tokens: int
    channels: int
    blocks: tuple[BlockSummary, ...]
    tasks: int
    task_input: str | None
    outputs: tuple[OutputSummary, ...]
    operations: int
    parameters: int
    macs: int
    """an image, one task; of the experts, the k a token chooses"""

    def json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return dataclasses.asdict(self)


def summarise(network: Network) -> Summary:
    """Summarise a network.

    Raises:
        MoehlsError: the network does not begin with a patch embedding.
    """
    embeds = [operation for operation in network.operations if isinstance(operation, Embed)]
    if len(embeds) != 1:
        raise MoehlsError(f"{network.name}: has {len(embeds)} patch embeddings; supported is one, of one image")
    embed = embeds[0]
    shapes = value_shapes(network)
    return Summary(
        model=network.name,
        image=network.input.shape,
        patch=(embed.weight.shape[2], embed.weight.shape[3]),
        tokens=embed.position.shape[0],
        leading_tokens=embed.prefix.shape[0],
        channels=embed.weight.shape[0],
        blocks=_blocks(network, shapes),
        tasks=network.tasks,
        task_input=network.task_input,
        outputs=tuple(OutputSummary(output.name, output.shape) for output in network.outputs),
        operations=len(network.operations),
        parameters=sum(parameters(operation) for operation in network.operations),
        macs=sum(macs(operation, network, shapes) for operation in network.operations),
    )


def parameters(operation: Operation) -> int:
    """The number of weights an operation holds."""
    arrays = (getattr(operation, field.name) for field in dataclasses.fields(operation))
    return sum(array.size for array in arrays if isinstance(array, np.ndarray))


def macs(operation: Operation, network: Network, shapes: dict[str, Shape]) -> int:
    """Multiply-accumulates of an operation's matrix products for one image and task."""
    match operation:
        case Embed():
            return int((operation.position.shape[0] - operation.prefix.shape[0]) * operation.weight.size)
        case Linear():
            return shapes[operation.output].tokens * int(operation.weight.size)
        case Attention():
            tokens, keys = shapes[operation.query].tokens, shapes[operation.key].tokens
            return tokens * keys * (shapes[operation.query].channels + shapes[operation.value].channels)
        case Route():
            return shapes[operation.input].tokens * int(operation.weight[0].size)
        case Experts():
            k = next(o.k for o in network.operations if isinstance(o, Route) and o.output == operation.routing)
            matrices = operation.first_weight, operation.second_weight, operation.up_weight
            expert = sum(int(matrix[0].size) for matrix in matrices if matrix is not None)
            return shapes[operation.input].tokens * k * expert
        case _:
            return 0


def _blocks(network: Network, shapes: dict[str, Shape]) -> tuple[BlockSummary, ...]:
    fixed = {operation.output for operation in network.operations if isinstance(operation, Constant)}
    starts = [
        i
        for i, operation in enumerate(network.operations)
        if isinstance(operation, Attention) and not fixed & {operation.query, operation.key}
    ]
    blocks: list[BlockSummary] = []
    for start, stop in pairwise([*starts, len(network.operations)]):
        attention = network.operations[start]
        assert isinstance(attention, Attention)
        inside = network.operations[start:stop]
        selected = next((i for i, o in enumerate(inside) if isinstance(o, SelectTokens | MeanTokens)), len(inside))
        block = _block(attention, inside[:selected], shapes)
        blocks.append(dataclasses.replace(block, score_bias=_score_bias(attention)))
    return tuple(blocks)


def _score_bias(attention: Attention) -> Literal["none", "shared", "heads"]:
    if attention.bias is None:
        return "none"
    return "shared" if len(attention.bias) == 1 and attention.heads > 1 else "heads"


def _block(attention: Attention, inside: tuple[Operation, ...], shapes: dict[str, Shape]) -> BlockSummary:
    head_channels = shapes[attention.query].channels // attention.heads
    for operation in inside:
        if isinstance(operation, Activation):
            return BlockSummary(attention.heads, head_channels, "mlp", shapes[operation.output].channels, 0, 0, None)
        if isinstance(operation, Experts):
            route = next(o for o in inside if isinstance(o, Route) and o.output == operation.routing)
            count, hidden = operation.first_weight.shape[:2]
            if any(isinstance(o, Constant) and o.output == route.input for o in inside):  # which slot is whose
                slots = shapes[operation.input].tokens // count
                return BlockSummary(attention.heads, head_channels, "soft", hidden, count, slots, None)
            order = _ORDERS[route.score, route.normalisation]
            return BlockSummary(attention.heads, head_channels, "experts", hidden, count, route.k, order)
    return BlockSummary(attention.heads, head_channels, "none", 0, 0, 0, None)
