"""The forms in which people write the pieces of a vision transformer, as small PyTorch modules.

`SmallVit` is put together from one form of each piece; the front end's fixtures are exports of such models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH, HIDDEN, HEADS, EXPERTS, CHOSEN, TASKS = 8, 12, 2, 4, 2, 2
CAPACITY = 3
"""tokens an expert takes"""
CHANNELS, HEIGHT, IMAGE_WIDTH, PATCH = 2, 8, 12, 4
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


class Embed(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(CHANNELS, WIDTH, PATCH, stride=PATCH)
        self.linear = nn.Linear(CHANNELS * PATCH * PATCH, WIDTH)

    def forward(self, image: Tensor) -> Tensor:
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


class Gate(nn.Module):
    """Tokens [T, D] and the task to gate weights [T, k] and expert numbers [T, k]."""

    def __init__(self, form: str, task: str) -> None:
        super().__init__()
        self.form, self.task = form, task
        self.weight = nn.Parameter(torch.zeros(TASKS, WIDTH + (TASKS if task == "joined" else 0), EXPERTS))
        self.bias = nn.Parameter(torch.zeros(EXPERTS))

    def logits(self, x: Tensor, task: Tensor | int | None) -> Tensor:
        if (self.task in ("stacked", "some") or isinstance(task, int)) and task is not None:
            return x @ self.weight[task] + self.bias
        if self.task == "vector" and isinstance(task, Tensor):
            gates: Tensor = x @ torch.einsum("t,tde->de", task[0], self.weight) + self.bias
            return gates
        if self.task == "joined" and isinstance(task, Tensor):
            vector = F.one_hot(task.reshape(1), TASKS).to(x.dtype).expand(x.shape[0], -1)
            return torch.cat((x, vector), dim=-1) @ self.weight[0]
        return x @ self.weight[0] + self.bias

    def forward(self, x: Tensor, task: Tensor | int | None) -> tuple[Tensor, Tensor]:
        logits = self.logits(x, task)
        if self.form == "topk_softmax":
            chosen, index = torch.topk(logits, CHOSEN, dim=-1)
            return F.softmax(chosen, dim=-1), index
        if self.form == "m3vit":
            noisy = logits + torch.randn_like(logits) * (1.0 / EXPERTS) * 0.0
            gates, index = torch.topk(F.softmax(noisy, dim=-1), CHOSEN + 1, dim=-1)
            return gates[:, :CHOSEN], index[:, :CHOSEN]
        gates, index = torch.topk(F.softmax(logits, dim=-1), CHOSEN, dim=-1)
        if self.form == "scaled":
            return gates * 2.5, index
        if self.form.startswith("pruned"):
            if self.form == "pruned_renormalise":
                gates = gates / gates.sum(-1, keepdim=True)
            gates = torch.where(gates > 0.3, gates, torch.zeros_like(gates))
            if self.form == "pruned_rest":
                gates = gates / gates.sum(-1, keepdim=True).clamp(min=1e-9)
            return gates, index
        if self.form == "renormalise":
            gates = gates / gates.sum(-1, keepdim=True)
        return gates, index


class Experts(nn.Module):
    """The same sum over the chosen experts in many styles."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.w1 = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))
        self.b1 = nn.Parameter(torch.zeros(EXPERTS, HIDDEN))
        self.w2 = nn.Parameter(torch.zeros(EXPERTS, WIDTH, HIDDEN))
        self.b2 = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

    def forward(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        out: Tensor = getattr(self, f"_{self.style}")(x, gates, index)
        return out

    def _expert(self, x: Tensor, e: int) -> Tensor:
        return F.linear(F.gelu(F.linear(x, self.w1[e], self.b1[e])), self.w2[e], self.b2[e])

    def _dense(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        share = torch.zeros(x.shape[0], EXPERTS).scatter(1, index, gates)
        hidden = F.gelu(torch.einsum("nd,ehd->neh", x, self.w1) + self.b1)
        out = torch.einsum("neh,edh->ned", hidden, self.w2) + self.b2
        return torch.einsum("ned,ne->nd", out, share)

    def _bmm(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        share = (F.one_hot(index, EXPERTS).to(x.dtype) * gates.unsqueeze(-1)).sum(1)
        many = x.unsqueeze(0).expand(EXPERTS, -1, -1)
        hidden = F.gelu(torch.bmm(many, self.w1.transpose(1, 2)) + self.b1.unsqueeze(1))
        out = torch.bmm(hidden, self.w2.transpose(1, 2)) + self.b2.unsqueeze(1)
        return (out * share.t().unsqueeze(-1)).sum(0)

    def _matmul_gates(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        share = torch.zeros(x.shape[0], EXPERTS).scatter(1, index, gates)
        out = torch.stack([self._expert(x, e) for e in range(EXPERTS)], dim=1)
        return (share.unsqueeze(1) @ out).squeeze(1)

    def _loop(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            share = torch.where(index == e, gates, torch.zeros_like(gates)).sum(-1, keepdim=True)
            total = total + share * self._expert(x, e)
        return total

    def _loop_sum(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        share = torch.zeros(x.shape[0], EXPERTS).scatter(1, index, gates)
        parts = [self._expert(x, e) * share[:, e : e + 1] for e in range(EXPERTS)]
        return parts[3] + parts[1] + parts[0] + parts[2]

    def _stack_gather(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        out = torch.stack([self._expert(x, e) for e in range(EXPERTS)], dim=1)
        chosen = out.gather(1, index.unsqueeze(-1).expand(-1, -1, WIDTH))
        return (chosen * gates.unsqueeze(-1)).sum(1)

    def _gather(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("nd,nkhd->nkh", x, self.w1[index]) + self.b1[index])
        out = torch.einsum("nkh,nkdh->nkd", hidden, self.w2[index]) + self.b2[index]
        return (out * gates.unsqueeze(-1)).sum(1)

    def _gather_flat(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        tokens = x.shape[0]
        flat = index.reshape(-1)
        many = x.unsqueeze(1).expand(-1, CHOSEN, -1).reshape(tokens * CHOSEN, 1, WIDTH)
        hidden = F.gelu(torch.bmm(many, self.w1[flat].transpose(1, 2)).squeeze(1) + self.b1[flat])
        out = torch.bmm(hidden.unsqueeze(1), self.w2[flat].transpose(1, 2)).squeeze(1) + self.b2[flat]
        return (out.reshape(tokens, CHOSEN, WIDTH) * gates.unsqueeze(-1)).sum(1)

    def _gather_slots(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for slot in range(CHOSEN):
            e = index[:, slot]
            hidden = F.gelu((self.w1[e] @ x.unsqueeze(-1)).squeeze(-1) + self.b1[e])
            out = (self.w2[e] @ hidden.unsqueeze(-1)).squeeze(-1) + self.b2[e]
            total = total + out * gates[:, slot].unsqueeze(-1)
        return total

    def _room(self, index: Tensor, choice: bool) -> tuple[Tensor, Tensor]:
        """Whether each choice [T, k] finds room at its expert, and its place there."""
        order = index.t() if choice else index
        chosen = F.one_hot(order.reshape(-1), EXPERTS)
        place = ((torch.cumsum(chosen, dim=0) - chosen) * chosen).sum(-1).reshape(order.shape)
        place = place.t() if choice else place
        return place < CAPACITY, place

    def _capacity(self, x: Tensor, gates: Tensor, index: Tensor, choice: bool = True) -> Tensor:
        room, place = self._room(index, choice)
        slot = F.one_hot(place.clamp(max=CAPACITY - 1), CAPACITY).to(x.dtype) * room.unsqueeze(-1)
        expert = F.one_hot(index, EXPERTS).to(x.dtype)
        combine = torch.einsum("nk,nke,nkc->nec", gates, expert, slot)
        dispatch = torch.einsum("nke,nkc->nec", expert, slot)
        slots = torch.einsum("nec,nd->ecd", dispatch, x)
        hidden = F.gelu(torch.einsum("ecd,ehd->ech", slots, self.w1) + self.b1.unsqueeze(1))
        out = torch.einsum("ech,edh->ecd", hidden, self.w2) + self.b2.unsqueeze(1)
        return torch.einsum("nec,ecd->nd", combine, out)

    def _capacity_tokens(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        return self._capacity(x, gates, index, choice=False)

    def _capacity_loop(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """GShard: positions by choice; each expert a module of its own, the slots chunked and put together."""
        room, place = self._room(index, True)
        slot = F.one_hot(place.clamp(max=CAPACITY - 1), CAPACITY).to(x.dtype) * room.unsqueeze(-1)
        combine = ((gates.unsqueeze(-1) * F.one_hot(index, EXPERTS)).unsqueeze(-1) * slot.unsqueeze(2)).sum(1)
        flat = (combine > 0).to(x.dtype).reshape(x.shape[0], -1).t() @ x
        parts = flat.reshape(EXPERTS, CAPACITY, -1).chunk(EXPERTS, dim=0)
        out = torch.cat([self._expert(part, e) for e, part in enumerate(parts)], dim=0)
        return combine.reshape(x.shape[0], -1) @ out.reshape(EXPERTS * CAPACITY, -1)

    def _capacity_mask(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """Choices without room get no weight; every expert runs on all tokens."""
        return self._dense(x, gates * self._room(index, False)[0], index)

    def _index_add(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            token, slot = torch.where(index == e)
            total = total.index_add(0, token, self._expert(x[token], e) * gates[token, slot].unsqueeze(-1))
        return total

    def _mask_assign(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        share = torch.zeros(x.shape[0], EXPERTS).scatter(1, index, gates)
        for e in range(EXPERTS):
            mask = (index == e).any(-1)
            total[mask] += share[mask, e].unsqueeze(-1) * self._expert(x[mask], e)
        return total

    def _sorted(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        order = flat.argsort()
        token, e = order // CHOSEN, flat[order]
        hidden = F.gelu((self.w1[e] @ x[token].unsqueeze(-1)).squeeze(-1) + self.b1[e])
        out = (self.w2[e] @ hidden.unsqueeze(-1)).squeeze(-1) + self.b2[e]
        return torch.zeros_like(x).index_add(0, token, out * gates.reshape(-1)[order].unsqueeze(-1))

    def _sorted_scatter(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        e, order = index.reshape(-1).sort()
        token = (order / CHOSEN).floor().long()
        hidden = F.gelu(torch.einsum("rd,rhd->rh", x[token], self.w1[e]) + self.b1[e])
        out = torch.einsum("rh,rdh->rd", hidden, self.w2[e]) + self.b2[e]
        out = out * gates.flatten()[order].unsqueeze(-1)
        return torch.zeros_like(x).scatter_add(0, token.unsqueeze(-1).expand(-1, WIDTH), out)

    def _sorted_groups(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        flat = index.reshape(-1)
        order = flat.argsort()
        ends = F.one_hot(flat, EXPERTS).sum(0).cumsum(0)
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            place = torch.arange(flat.shape[0])
            rows = order[(place >= (ends[e - 1] if e else 0)) & (place < ends[e])]
            token = rows // CHOSEN
            total = total.index_add(0, token, self._expert(x[token], e) * gates.reshape(-1)[rows].unsqueeze(-1))
        return total

    def _condition(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = index == e

            def run(x: Tensor, gates: Tensor, mask: Tensor, e: int = e) -> Tensor:
                return self._expert(x, e) * (gates * mask).sum(-1, keepdim=True)

            def skip(x: Tensor, gates: Tensor, mask: Tensor) -> Tensor:
                return torch.zeros_like(x)

            total = total + torch.cond(mask.any(), run, skip, (x, gates, mask))
        return total


class Mixture(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.gate = Gate(form.gate, form.task)
        self.experts = Experts(form.experts)

    def forward(self, x: Tensor, task: Tensor | int | None, gate_input: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        gates, index = self.gate(gate_input.reshape(-1, WIDTH), task)
        out: Tensor = self.experts(flat, gates, index)
        return out.reshape(x.shape)


class Block(nn.Module):
    def __init__(self, form: Form, sparse: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(form.norm), norm(form.norm)
        self.attention = Attention(form.attention)
        self.sparse = Mixture(form) if sparse else None
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
        if self.sparse is not None:
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
