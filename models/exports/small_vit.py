"""The pieces of a vision transformer in the forms in which people write them, and `SmallVit`, put together from one of each.

The front end's fixtures are exports of such models.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import (
    CHANNELS,
    GELUS,
    HEADS,
    HEIGHT,
    HIDDEN,
    IMAGE_WIDTH,
    PATCH,
    PATCHES,
    TASKS,
    WIDTH,
    Form,
)
from models.exports.mixtures import Mixture
from models.exports.published import STYLES, PublishedMixture
from models.exports.soft import SoftMixture


class Embed(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.linear = nn.Linear(CHANNELS * PATCH * PATCH, WIDTH)
        self.register_buffer("mean", torch.tensor([0.485, 0.456])[:, None, None])
        self.register_buffer("deviation", torch.tensor([0.229, 0.224])[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        if self.form == "conv_bytes":  # an image as a decoder gives it: uint8 [1, height, width, channels]
            image = image.permute(0, 3, 1, 2).float() / 255
        if self.form in ("conv_bytes", "conv_normalised"):
            image = (image - self.mean) / self.deviation
        if self.form == "conv_reversed":  # BGR
            image = image.flip(1)
        batch = image.shape[0]
        if self.form.startswith("conv"):
            grid: Tensor = self.conv(image)
            if self.form == "conv_reshape":
                return grid.reshape(batch, WIDTH, -1).permute(0, 2, 1)
            if self.form == "conv_last":
                return grid.permute(0, 2, 3, 1).reshape(batch, -1, WIDTH)
            return grid.flatten(2).transpose(1, 2)
        rows, columns = HEIGHT // PATCH, IMAGE_WIDTH // PATCH
        grid = image.reshape(batch, CHANNELS, rows, PATCH, columns, PATCH)
        order = (0, 2, 4, 3, 5, 1) if self.form == "linear_channels_last" else (0, 2, 4, 1, 3, 5)
        patches = grid.permute(*order).reshape(batch, rows * columns, -1)
        out: Tensor = self.linear(patches)
        return out


class Tokens(nn.Module):
    """Class, distillation or register tokens and positions."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.extra = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.count = {"none": 0, "distilled": 3, "registers": 3}.get(form, 1)
        before = form in ("position_first", "registers")
        self.position = nn.Parameter(torch.zeros(1, PATCHES + (0 if before else self.count), WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        cls = self.cls.expand(x.shape[0], -1, -1)
        if self.form == "none":
            return x + self.position
        if self.form == "position_first":
            return torch.cat((cls, x + self.position), dim=1)
        if self.form == "registers":
            return torch.cat((cls, self.extra.expand(x.shape[0], -1, -1), x + self.position), dim=1)
        if self.form == "distilled":
            return torch.cat((cls, self.extra.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        return self.position + torch.cat((cls, x), dim=1)


class WrittenNorm(nn.Module):
    """Layer normalisation from means, as code before `nn.LayerNorm` exports it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.bias = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        square = centred * centred if self.form == "product" else centred.pow(2)
        variance = square.mean(-1, keepdim=True) + 1e-5
        if self.form == "rsqrt":
            return self.weight * (centred * torch.rsqrt(variance)) + self.bias
        return centred / torch.sqrt(variance) * self.weight + self.bias


def norm(form: str) -> nn.Module:
    return nn.LayerNorm(WIDTH, eps=1e-6) if form == "operator" else WrittenNorm(form)


class Attention(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=form != "no_bias")
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)
        rng = np.random.default_rng(1)
        tokens = 1 + PATCHES
        self.register_buffer("table", torch.from_numpy(rng.standard_normal((64, HEADS)).astype(np.float32)), False)
        self.register_buffer("index", torch.from_numpy(rng.integers(0, 64, (tokens, tokens))), False)
        hidden = (rng.random((tokens, tokens)) < 0.4) & ~np.eye(tokens, dtype=bool)
        self.register_buffer("hidden", torch.from_numpy(hidden), False)

    def _bias(self) -> Tensor:
        """`[heads, tokens, tokens]` from a table, as relative positions have it."""
        tokens = self.index.shape[0]
        return self.table[self.index.reshape(-1)].view(tokens, tokens, HEADS).permute(2, 0, 1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        size = WIDTH // HEADS
        if self.form == "three":
            q, k, v = (
                m(x).view(batch, tokens, HEADS, size).transpose(1, 2) for m in (self.query, self.key, self.value)
            )
            return q, k, v
        if self.form == "chunk":
            q, k, v = (part.reshape(batch, tokens, HEADS, size).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return q, k, v
        qkv = self.qkv(x).reshape(batch, tokens, 3, HEADS, size).permute(2, 0, 3, 1, 4)
        if self.form == "index":
            return qkv[0], qkv[1], qkv[2]
        q, k, v = qkv.unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self._parts(x)
        size = WIDTH // HEADS
        if self.form == "open_mask":
            hidden = torch.ones(tokens, tokens, dtype=torch.bool)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
        elif self.form == "zero_mask":
            context = F.softmax(q @ k.transpose(-2, -1) * size**-0.5 + torch.zeros(tokens, tokens), dim=-1) @ v
        elif self.form == "bias":
            context = F.softmax(q @ k.transpose(-2, -1) * size**-0.5 + self._bias().unsqueeze(0), dim=-1) @ v
        elif self.form == "bias_scaled":
            context = F.softmax((q @ k.transpose(-2, -1) + self._bias()) / math.sqrt(size), dim=-1) @ v
        elif self.form == "bias_shared":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias()[1])
        elif self.form == "bias_sdpa":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=self._bias()[None])
        elif self.form == "hidden":
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=~self.hidden)
        elif self.form == "hidden_filled":
            scores = (q @ k.transpose(-2, -1) * size**-0.5).masked_fill(self.hidden, -math.inf)
            context = scores.softmax(-1) @ v
        elif self.form == "hidden_low":
            scores = q @ k.transpose(-2, -1) * size**-0.5 - 1e4 * self.hidden.to(q.dtype)
            context = (scores + self._bias()).softmax(-1) @ v
        elif self.form == "causal":
            context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.form == "sdpa":
            context = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "bmm":
            flat = (part.reshape(batch * HEADS, tokens, size) for part in (q, k, v))
            q, k, v = flat
            context = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(size), dim=-1), v)
            context = context.reshape(batch, HEADS, tokens, size)
        elif self.form == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * size**-0.5
            context = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        elif self.form == "scaled_query":
            context = F.softmax((q * size**-0.5) @ k.transpose(-2, -1), dim=-1) @ v
        else:
            context = F.softmax(q @ k.transpose(-2, -1) * size**-0.5, dim=-1) @ v
        out: Tensor = self.proj(context.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out


class Mlp(nn.Module):
    def __init__(self, form: str, gelu: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.second = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gelu = GELUS[gelu]

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "matrix_left":
            hidden = self.gelu(self.first.weight @ x.transpose(1, 2) + self.first.bias[:, None])
            return (self.second.weight @ hidden + self.second.bias[:, None]).transpose(1, 2)
        rows = x.reshape(-1, WIDTH) if self.form == "flat" else x
        out: Tensor = self.second(self.gelu(self.first(rows)))
        return out.reshape(x.shape) if self.form == "flat" else out


class Block(nn.Module):
    def __init__(self, form: Form, sparse: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(form.norm), norm(form.norm)
        self.attention = Attention(form.attention)
        soft = form.experts.removeprefix("soft_") if form.experts.startswith("soft_") else ""
        published = form.experts.removeprefix("published_")
        self.soft = SoftMixture(soft) if sparse and soft else None
        self.published = PublishedMixture(published) if sparse and published in STYLES else None
        self.sparse = Mixture(form) if sparse and not soft and self.published is None else None
        if sparse and soft == "slots":  # has a normalisation of its own
            self.norm2 = nn.Identity()
        self.mlp = None if sparse else Mlp(form.mlp, form.gelu)
        self.scale1 = nn.Parameter(torch.ones(WIDTH)) if form.scale else None
        self.scale2 = nn.Parameter(torch.ones(WIDTH)) if form.scale else None
        self.gate_input = form.gate_input
        self.gate_norm = norm(form.norm) if form.gate_input == "own_norm" else None

    def _gate_input(self, before: Tensor, x: Tensor) -> Tensor:
        if self.gate_norm is not None:
            return self.gate_norm(x)
        if self.gate_input == "first_norm":
            return self.norm1(before)
        if self.gate_input == "block":
            return before
        return x if self.gate_input == "residual" else self.norm2(x)

    def forward(self, x: Tensor, task: Tensor | int | None) -> Tensor:
        before = x
        out: Tensor = self.attention(self.norm1(x))
        x = x + (out if self.scale1 is None else out * self.scale1)
        if self.soft is not None:
            out = self.soft(self.norm2(x))
        elif self.published is not None:
            out = self.published(self.norm2(x))
        elif self.sparse is not None:
            out = self.sparse(self.norm2(x), task, self._gate_input(before, x))
        elif self.mlp is not None:
            out = self.mlp(self.norm2(x))
        return x + (out if self.scale2 is None else out * self.scale2)


class SmallVit(nn.Module):
    """image [1, C, H, W] and, with a task form, an int64 task to tokens or class scores."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.embed, self.tokens = Embed(form.embed), Tokens(form.tokens)
        sparse = form.experts != "none"
        self.blocks = nn.ModuleList([Block(form, False), *([Block(form, True)] if sparse else [])])
        if form.task == "some":  # the gate of the block before is the same for all tasks
            self.blocks.insert(1, Block(replace(form, task="none"), True))
        self.norm = norm(form.norm)
        self.head, self.second_head = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 3)

    def forward(self, image: Tensor, task: Tensor | None = None) -> tuple[Tensor, ...]:
        """With the task form `unrolled` the head of each task in turn; with `only0` or `only1` that of one task."""
        fixed = {"unrolled": range(TASKS), "only0": range(1), "only1": range(1, 2)}.get(self.form.task)
        if fixed is None:
            return self.of_task(image, task)
        heads = self.head, self.second_head
        return tuple(heads[number](self.norm(self.last(image, number))[:, 0]) for number in fixed)

    def last(self, image: Tensor, task: Tensor | int | None) -> Tensor:
        """The tokens after the last block."""
        x: Tensor = self.tokens(self.embed(image))
        for block in self.blocks:
            x = block(x, task)
        return x

    def of_task(self, image: Tensor, task: Tensor | None) -> tuple[Tensor, ...]:
        x = self.last(image, task)
        match self.form.head:
            case "none":
                return (self.norm(x),)
            case "before_norm":
                return (self.head(x[:, 0]),)
            case "norm_of_class":
                return (self.head(self.norm(x[:, 0])),)
            case "all_tokens":
                return (self.head(self.norm(x)),)
            case "two":
                x = self.norm(x)
                return self.head(x[:, 0]), self.second_head(x[:, 0:1]), x
            case "averaged":
                x = self.norm(x)
                return ((self.head(x[:, 0]) + self.head(x[:, 1])) / 2,)
            case "mean":
                return (self.head(self.norm(x).mean(1)),)
            case "mean_then_norm":
                return (self.head(self.norm(x[:, 1:].mean(dim=1))),)
            case "mean_of_patches":
                return (self.head(self.norm(x)[:, 1:].mean(dim=1)),)
            case "mean_pool":
                return (self.head(F.adaptive_avg_pool1d(self.norm(x).transpose(1, 2), 1).flatten(1)),)
            case "mean_of_heads":
                return (self.head(self.norm(x)).sum(1) / x.shape[1],)
        return (self.head(self.norm(x)[:, 0]),)
