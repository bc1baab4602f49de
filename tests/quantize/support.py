"""Small float networks with every operation the quantiser knows, and images for them."""

from __future__ import annotations

import numpy as np

from moehls.network.operations import (
    Activation,
    ActivationForm,
    Add,
    Attention,
    Embed,
    Experts,
    FloatArray,
    LayerNorm,
    Linear,
    Network,
    NetworkInput,
    NetworkOutput,
    Operation,
    Route,
    SelectTokens,
)

WIDTH, HEADS, MLP, EXPERTS, HIDDEN, CLASSES = 32, 2, 48, 4, 24, 5
SHAPE, PATCH = (3, 32, 48), 8


class Draw:
    """Random parameters of a trained network's kind: gains and biases vary from channel to channel."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> FloatArray:
        return (self.generator.standard_normal(shape) * scale).astype(np.float32)

    def linear(self, name: str, source: str, output: str, wide: int, narrow: int) -> Linear:
        weight = self.normal(wide, narrow, scale=narrow**-0.5)
        return Linear(name, source, output, weight, self.normal(wide, scale=0.2))

    def norm(self, name: str, source: str, output: str) -> LayerNorm:
        gain = np.exp(self.normal(WIDTH, scale=0.5)).astype(np.float32)
        return LayerNorm(name, source, output, gain, self.normal(WIDTH, scale=0.3), 1e-6)


def float_network(
    seed: int = 0, layers: int = 2, tasks: int = 2, form: ActivationForm = "exact", bias: FloatArray | None = None
) -> Network:
    """Class token, attention, dense MLPs on even layers, experts on odd ones, a norm and a head on the class token.

    Outputs: the head (raw), the class token's norm (fine) and the residual stream.
    """
    draw = Draw(seed)
    tokens = 1 + (SHAPE[1] // PATCH) * (SHAPE[2] // PATCH)
    weight = draw.normal(WIDTH, SHAPE[0], PATCH, PATCH, scale=0.1)
    operations: list[Operation] = [
        Embed(
            "embed",
            "image",
            "x",
            weight,
            draw.normal(WIDTH),
            draw.normal(1, WIDTH),
            draw.normal(tokens, WIDTH, scale=0.5),
        )
    ]
    stream = "x"
    for n in range(layers):
        operations += attention_block(draw, f"l{n}", stream, bias)
        operations += (
            mlp_block(draw, f"l{n}", f"l{n}.x1", form)
            if n % 2 == 0
            else expert_block(draw, f"l{n}", f"l{n}.x1", form, tasks)
        )
        stream = f"l{n}.x2"
    operations += [
        draw.norm("norm", stream, "normed"),
        SelectTokens("class", "normed", "first", 0, 1),
        draw.linear("head", "first", "logits", CLASSES, WIDTH),
    ]
    outputs = (
        NetworkOutput("classes", "logits", (1, CLASSES)),
        NetworkOutput("features", "first", (1, WIDTH)),
        NetworkOutput("tokens", stream, (1, tokens, WIDTH)),
    )
    task_input = "task" if tasks > 1 else None
    return Network("small", NetworkInput("image", SHAPE), tuple(operations), outputs, tasks, task_input)


def attention_block(draw: Draw, name: str, stream: str, bias: FloatArray | None = None) -> list[Operation]:
    """Norm, queries, keys and values, attention, projection, residual add."""
    return [
        draw.norm(f"{name}.norm1", stream, f"{name}.n1"),
        *(draw.linear(f"{name}.{part}", f"{name}.n1", f"{name}.{part}", WIDTH, WIDTH) for part in "qkv"),
        Attention(
            f"{name}.attention",
            f"{name}.q",
            f"{name}.k",
            f"{name}.v",
            f"{name}.c",
            HEADS,
            (WIDTH // HEADS) ** -0.5,
            bias,
        ),
        draw.linear(f"{name}.projection", f"{name}.c", f"{name}.p", WIDTH, WIDTH),
        Add(f"{name}.add1", stream, f"{name}.p", f"{name}.x1"),
    ]


def relative_bias(draw: Draw, heads: int = HEADS, spread: float = 1.5) -> FloatArray:
    """`[heads, tokens, tokens]` of BEiT's kind: by the distance of two patches, a slope and a table a head."""
    rows, columns = SHAPE[1] // PATCH, SHAPE[2] // PATCH
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
    apart = grid[:, None] - grid[None, :] + [rows - 1, columns - 1]
    table = draw.normal(heads, 2 * rows - 1, 2 * columns - 1, scale=spread)
    table -= np.linspace(0.2, 2.0, heads)[:, None, None].astype(np.float32) * np.hypot(
        *np.meshgrid(np.arange(1 - rows, rows), np.arange(1 - columns, columns), indexing="ij")
    ).astype(np.float32)
    bias = draw.normal(heads, 1 + len(grid), 1 + len(grid), scale=spread)
    bias[:, 1:, 1:] = table[:, apart[..., 0], apart[..., 1]]
    return bias


def mlp_block(draw: Draw, name: str, stream: str, form: ActivationForm) -> list[Operation]:
    """Norm, linear, GELU, linear, residual add."""
    return [
        draw.norm(f"{name}.norm2", stream, f"{name}.n2"),
        draw.linear(f"{name}.fc1", f"{name}.n2", f"{name}.h", MLP, WIDTH),
        Activation(f"{name}.gelu", f"{name}.h", f"{name}.a", form),
        draw.linear(f"{name}.fc2", f"{name}.a", f"{name}.m", WIDTH, MLP),
        Add(f"{name}.add2", f"{name}.m", stream, f"{name}.x2"),
    ]


def expert_block(draw: Draw, name: str, stream: str, form: ActivationForm, tasks: int) -> list[Operation]:
    """Norm, router, experts, residual add."""
    return [
        draw.norm(f"{name}.norm2", stream, f"{name}.n2"),
        Route(
            f"{name}.gate",
            f"{name}.n2",
            f"{name}.r",
            draw.normal(tasks, EXPERTS, WIDTH, scale=WIDTH**-0.5),
            draw.normal(tasks, EXPERTS, scale=0.1),
            2,
            "all",
        ),
        Experts(
            f"{name}.experts",
            f"{name}.n2",
            f"{name}.r",
            f"{name}.m",
            draw.normal(EXPERTS, HIDDEN, WIDTH, scale=WIDTH**-0.5),
            draw.normal(EXPERTS, HIDDEN, scale=0.2),
            draw.normal(EXPERTS, WIDTH, HIDDEN, scale=HIDDEN**-0.5),
            draw.normal(EXPERTS, WIDTH, scale=0.2),
            form,
        ),
        Add(f"{name}.add2", stream, f"{name}.m", f"{name}.x2"),
    ]


def images(seed: int, count: int) -> FloatArray:
    """Images `[count, 3, 32, 48]` of 8-bit levels divided by 255: bright and dark areas with noise."""
    generator = np.random.default_rng(seed)
    coarse = np.repeat(np.repeat(generator.uniform(0, 200, (count, 3, 8, 12)), 4, axis=2), 4, axis=3)
    levels = np.clip(np.rint(coarse + generator.uniform(0, 55, coarse.shape)), 0, 255)
    return (levels / 255).astype(np.float32)
