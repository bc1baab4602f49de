"""The forms in which people write the pieces of a vision transformer: their names, and the sizes of the fixtures' models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

WIDTH, HIDDEN, HEADS, EXPERTS, CHOSEN, TASKS = 8, 12, 2, 4, 2, 2
CAPACITY = 3
"""tokens an expert takes"""
SLOTS = 2
"""slots of an expert of a soft mixture"""
CHANNELS, HEIGHT, IMAGE_WIDTH, PATCH = 2, 8, 12, 4
GROUPS = 2
"""of experts"""
PATCHES = (HEIGHT // PATCH) * (IMAGE_WIDTH // PATCH)


@dataclass(frozen=True)
class Form:
    """One form of each piece."""

    embed: str = "conv"
    tokens: str = "class"
    norm: str = "operator"
    attention: str = "fused_qkv"
    gelu: str = "exact"
    mlp: str = "linear"
    gate: str = "softmax_topk"
    experts: str = "dense"
    head: str = "class"
    task: str = "none"
    scale: bool = False
    """LayerScale after attention and MLP"""
    gate_input: str = "same"
    """what the router reads: the experts' input, a norm of its own, the residual, the block's input or its first norm"""


GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "exact": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "erf": lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))),
    "erf_last": lambda x: (x * (1.0 + torch.erf(x * 0.7071067811865476))) * 0.5,
    "erf_half": lambda x: 0.5 * torch.erf(x / 1.4142135623730951) * x + x / 2,
    "tanh_written": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3)))),
    "tanh_product": lambda x: x * 0.5 * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
}
