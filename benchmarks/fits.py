"""Which Vision Transformers fit which boards, whole or in which parts: sizes alone, random weights.

    python -m benchmarks fits [NAME …]

Of each model and board a line says what lies on the chip in parts (hidden layers, blocks of tokens, groups of heads), the
array and the planned milliseconds, or its refusal of the model; and the same for a machine on which nothing but
hidden layers is in parts, where that is another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Console

from moehls.boards import Board, load_board
from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    Epilogue,
    GeluRequantise,
    IntegerAttention,
    IntegerEmbed,
    IntegerInput,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerOutput,
    Raw,
    Requantise,
    Scaling,
)
from moehls.integer.precision import W8A8
from moehls.plan.cost import frame_cycles
from moehls.plan.parts import hidden_parts
from moehls.plan.search import Settings, search

BOARDS = ("zcu104", "zcu102", "kv260", "ultra96v2")


@dataclass(frozen=True)
class Size:
    """A Vision Transformer with a class token and a head of 1,000 classes."""

    image: int
    patch: int
    width: int
    layers: int
    heads: int

    @property
    def tokens(self) -> int:
        return (self.image // self.patch) ** 2 + 1


MODELS = {
    "ViT-S/16": Size(224, 16, 384, 12, 6),
    "ViT-B/16": Size(224, 16, 768, 12, 12),
    "ViT-L/16": Size(224, 16, 1024, 24, 16),
    "ViT-B/16, 384": Size(384, 16, 768, 12, 12),
    "ViT-B/8": Size(224, 8, 768, 12, 12),
    "DINOv2-S/14, 518": Size(518, 14, 384, 12, 6),
    "DINOv2-B/14, 518": Size(518, 14, 768, 12, 12),
}


def network_of(name: str, size: Size, parts: int) -> IntegerNetwork:
    """A network of this size with hidden layers in `parts` parts; all layers have the same random weights."""
    rng, width, pixels = np.random.default_rng(0), size.width, 3 * size.patch**2
    hidden = 4 * width // parts
    shapes = {"embed": (width, pixels), "square": (width, width), "first": (hidden, width), "second": (width, hidden)}
    weights = {kind: rng.integers(-127, 128, shape).astype(np.int8) for kind, shape in shapes.items()}
    weights["head"] = rng.integers(-127, 128, (1000, width)).astype(np.int8)

    def scaling(channels: int) -> Scaling:
        return Scaling(np.zeros(channels, np.int64), np.ones(channels, np.int64), np.full(channels, 16))

    def linear(name: str, source: str, weight: str, epilogue: Epilogue) -> IntegerLinear:
        return IntegerLinear(name, source, name, weights[weight], scaling(len(weights[weight])), epilogue)

    def norm(name: str, source: str, stop: int) -> IntegerNorm:
        return IntegerNorm(name, source, f"{name}.fine", name, 0, stop, scaling(width), 1)

    initial = np.zeros((size.tokens, width), np.int64)
    operations: list[IntegerOperation] = [
        IntegerEmbed("embed", "image", "embed", weights["embed"], scaling(width), initial, 1)
    ]
    x = "embed"
    for n in range(size.layers):
        tag = f"layer{n}"
        operations.append(norm(f"{tag}.norm1", x, size.tokens))
        operations += [linear(f"{tag}.{role}", f"{tag}.norm1", "square", Requantise()) for role in ("q", "k", "v")]
        roles = [f"{tag}.{role}" for role in ("q", "k", "v")]
        heads = np.ones(size.heads, np.int64)
        operations.append(
            IntegerAttention(f"{tag}.attention", *roles, f"{tag}.attention", size.heads, heads, heads, scaling(width))
        )
        operations.append(linear(f"{tag}.projection", f"{tag}.attention", "square", AddResidual(x)))
        operations.append(norm(f"{tag}.norm2", f"{tag}.projection", size.tokens))
        x = f"{tag}.projection"
        for part in range(parts):
            first, second = f"{tag}.first{part}", f"{tag}.second{part}"
            gelu = GeluRequantise(np.ones(hidden, np.int64), 8, 0, 0)
            operations += [
                linear(first, f"{tag}.norm2", "first", gelu),
                linear(second, first, "second", AddResidual(x)),
            ]
            x = second
    operations += [norm("norm", x, 1), linear("head", "norm", "head", Raw())]
    source = IntegerInput("image", (3, size.image, size.image), (size.patch, size.patch), np.ones(3), np.zeros(3))
    output = IntegerOutput("head", "head", (1, 1000))
    return IntegerNetwork(name, W8A8, source, size.tokens, tuple(operations), {}, (output,), 1, None, ("exact",))


WHOLE = Settings(token_blocks=1, head_groups=1)
"""of a machine on which values lie whole"""


def cells(name: str, size: Size, board: Board) -> tuple[str, str]:
    """What the plan says of a model on a board, and would say without values in parts."""
    chosen = planned(name, size, board, Settings())
    in_parts = "token blocks" in chosen or "head groups" in chosen
    return chosen, planned(name, size, board, WHOLE) if in_parts else chosen


def planned(name: str, size: Size, board: Board, settings: Settings) -> str:
    """Parts, array and milliseconds, or the refusal."""
    parts = hidden_parts(network_of(name, size, 1), board, settings)
    network = network_of(name, size, parts)
    try:
        shape, program = search(network, board, board.clock_mhz, settings, {})
    except MoehlsError as error:
        Console(stderr=True, width=150).print(f"{name}, {board.name}: {error}", markup=False)
        return "refused"
    cycles = frame_cycles(program, shape, board, board.clock_mhz, {})
    split = ((parts, "hidden parts"), (shape.token_blocks, "token blocks"), (shape.head_groups, "head groups"))
    said = ", ".join(f"{count} {what}" for count, what in split if count > 1) or "whole"
    return f"{said}: {shape.token_parallel} × {shape.block}, {cycles / board.clock_mhz / 1e3:.1f} ms"


def main(arguments: list[str]) -> None:
    """Print the table, as Markdown; refusals in full go to the standard error."""
    print(
        "| model | tokens | board | planned | without values in parts |", "|---|---|---|---|---|", sep="\n", flush=True
    )
    for name in arguments or MODELS:
        for board in map(load_board, BOARDS):
            chosen, whole = cells(name, MODELS[name], board)
            print(f"| {name} | {MODELS[name].tokens} | {board.name} | {chosen} | {whole} |", flush=True)
