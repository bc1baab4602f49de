"""The shape of every value of a network."""

from __future__ import annotations

from dataclasses import dataclass

from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    Constant,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    MeanTokens,
    Multiply,
    Network,
    Route,
    SelectTokens,
)


@dataclass(frozen=True)
class Shape:
    """A token matrix, or a routing with k choices a token in place of the channels."""

    tokens: int
    channels: int


def value_shapes(network: Network) -> dict[str, Shape]:
    """The shape of every value but the input image, by name."""
    shapes: dict[str, Shape] = {}
    for operation in network.operations:
        match operation:
            case Embed():
                shape = Shape(*operation.position.shape)
            case Constant():
                shape = Shape(*operation.rows.shape)
            case LayerNorm() | Activation():
                shape = shapes[operation.input]
            case Linear():
                shape = Shape(shapes[operation.input].tokens, operation.weight.shape[0])
            case Add() | Multiply():
                shape = shapes[operation.left]
            case Attention():
                shape = Shape(shapes[operation.query].tokens, shapes[operation.value].channels)
            case Route():
                shape = Shape(shapes[operation.input].tokens, operation.k)
            case Experts():
                shape = Shape(shapes[operation.input].tokens, operation.second_weight.shape[1])
            case SelectTokens():
                shape = Shape(operation.stop - operation.start, shapes[operation.input].channels)
            case MeanTokens():
                shape = Shape(1, shapes[operation.input].channels)
        shapes[operation.output] = shape
    return shapes
