"""Mixtures of experts in the manners of public repositories, written anew: each routes its tokens [1, T, D] itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import CAPACITY, CHOSEN, EXPERTS, HIDDEN, WIDTH


class PublishedMixture(nn.Module):
    """Tokens to tokens; `style` names the method."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.style = style
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.w1 = nn.Parameter(torch.zeros(EXPERTS, WIDTH, HIDDEN))
        self.w2 = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))
        if style == "convolutions":
            self.first = nn.Conv1d(EXPERTS * WIDTH, EXPERTS * HIDDEN, 1, groups=EXPERTS)
            self.second = nn.Conv1d(EXPERTS * HIDDEN, EXPERTS * WIDTH, 1, groups=EXPERTS)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self, f"_{self.style}")(x)
        return out

    def _expert(self, x: Tensor, e: int) -> Tensor:
        return F.gelu(x @ self.w1[e]) @ self.w2[e]

    def _hit_rows(self, x: Tensor) -> Tensor:
        """Mixtral, Qwen-MoE and OLMoE in transformers: a loop over the transposed one-hot mask, `index_add_` into zeros."""
        flat = x.view(-1, WIDTH)
        weights, chosen = torch.topk(F.softmax(self.gate(flat), dim=1, dtype=torch.float), CHOSEN, dim=-1)
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(x.dtype)
        total = torch.zeros_like(flat)
        mask = F.one_hot(chosen, num_classes=EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            slot, token = torch.where(mask[e])
            rows = flat[None, token].reshape(-1, WIDTH)
            total.index_add_(0, token, (self._expert(rows, e) * weights[token, slot, None]).to(x.dtype))
        return total.reshape(x.shape)

    def _flat_masks(self, x: Tensor) -> Tensor:
        """makeMoE: logits that are not chosen at -inf, a mask an expert over [1, T], its flat copy for the rows."""
        logits = self.gate(x)
        largest, chosen = logits.topk(CHOSEN, dim=-1)
        gates = F.softmax(torch.full_like(logits, float("-inf")).scatter(-1, chosen, largest), dim=-1)
        total, flat, flat_gates = torch.zeros_like(x), x.view(-1, WIDTH), gates.view(-1, EXPERTS)
        for e in range(EXPERTS):
            mask = (chosen == e).any(dim=-1)
            own = mask.view(-1)
            total[mask] += self._expert(flat[own], e) * flat_gates[own, e].unsqueeze(1)
        return total

    def _top1_gather(self, x: Tensor) -> Tensor:
        """A switch layer by `max`, weights gathered by token."""
        gate, chosen = F.softmax(self.gate(x), -1).max(-1)
        rows, e = x.reshape(-1, 1, WIDTH), chosen.reshape(-1)
        return torch.bmm(F.gelu(torch.bmm(rows, self.w1[e])), self.w2[e]).view(x.shape) * gate[..., None]

    def _argmax_gather(self, x: Tensor) -> Tensor:
        """A switch layer by `argmax`, its probability gathered."""
        flat = x.reshape(-1, WIDTH)
        scores = F.softmax(self.gate(flat), 1)
        e = scores.argmax(1)
        out = torch.bmm(F.gelu(torch.bmm(flat[:, None], self.w1[e])), self.w2[e])[:, 0]
        return (out * scores.gather(1, e[:, None])).view(x.shape)

    def _argmax_masks(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), -1)
        share = scores * F.one_hot(scores.argmax(-1), EXPERTS)
        parts = [share[..., e, None] * self._expert(x, e) for e in range(EXPERTS)]
        return torch.stack(parts).sum(0)

    def _switch(self, x: Tensor) -> Tensor:
        """Switch Transformers: tokens fill an expert in order, the outputs are written over zeros and weighed together."""
        scores = F.softmax(self.gate(x), dim=-1)
        chosen = F.one_hot(torch.argmax(scores, dim=-1), num_classes=EXPERTS)
        chosen = chosen * (torch.cumsum(chosen, dim=-2) <= CAPACITY)
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = chosen[:, :, e].bool()
            total[mask] = self._expert(x[mask], e)
        return torch.max(scores, dim=-1).values.unsqueeze(-1) * total

    def _room(self, x: Tensor) -> Tensor:
        """DeepSpeed's and fairseq's top-2: first choices take places first, and the choices that found places share the gate."""
        flat = x.reshape(-1, WIDTH)
        logits = self.gate(flat)
        scores = F.softmax(logits, dim=1)
        first = F.one_hot(torch.argmax(scores, dim=1), num_classes=EXPERTS)
        rest = logits.masked_fill(first.bool(), float("-inf"))
        second = F.one_hot(torch.argmax(rest, dim=1), num_classes=EXPERTS)
        places = torch.cumsum(first, dim=0) - 1, torch.cumsum(second, dim=0) - 1 + torch.sum(first, dim=0, keepdim=True)
        masks = [mask * torch.lt(place, CAPACITY) for mask, place in zip((first, second), places, strict=True)]
        gates = [torch.einsum("se,se->s", scores, mask.float()) for mask in masks]
        whole = torch.clamp(gates[0] + gates[1], min=torch.finfo(scores.dtype).eps)
        combine = torch.zeros(flat.shape[0], EXPERTS, CAPACITY)
        for mask, place, gate in zip(masks, places, gates, strict=True):
            slot = F.one_hot(torch.sum(place * mask, dim=1), num_classes=CAPACITY).float()
            share = torch.einsum("s,se->se", gate / whole, mask.float())
            combine = combine + torch.einsum("se,sc->sec", share, slot)
        slots = torch.einsum("sec,sm->ecm", combine.bool().type_as(flat), flat)
        out = torch.stack([self._expert(slots[e], e) for e in range(EXPERTS)])
        return torch.einsum("sec,ecm->sm", combine, out).reshape(x.shape)

    def _not_below(self, x: Tensor) -> Tensor:
        """Experts that are not below the k-th largest probability, with a temperature, renormalised."""
        scores = F.softmax(self.gate(x) / 0.7, -1)
        kept = torch.where(scores >= scores.topk(CHOSEN, -1).values[..., -1:], scores, torch.zeros_like(scores))
        return self._weighed(x, kept / kept.sum(-1, keepdim=True))

    def _above_next(self, x: Tensor) -> Tensor:
        """Experts above the (k+1)-th largest probability."""
        scores = F.softmax(self.gate(x), -1)
        return self._weighed(x, scores * (scores > scores.topk(CHOSEN + 1, -1).values[..., -1:]))

    def _weighed(self, x: Tensor, share: Tensor) -> Tensor:
        """A product of three tensors: hidden layers of all experts, their second layers, the gate weights."""
        hidden = F.gelu(torch.einsum("bnd,edh->benh", x, self.w1))
        return torch.einsum("benh,ehd,bne->bnd", hidden, self.w2, share)

    def _convolutions(self, x: Tensor) -> Tensor:
        """All experts as one grouped convolution of one element, on repeated tokens."""
        gates, chosen = F.softmax(self.gate(x), -1).topk(CHOSEN, -1)
        share = torch.zeros(1, x.shape[1], EXPERTS).scatter(-1, chosen, gates)
        out = self.second(F.gelu(self.first(x.transpose(1, 2).repeat(1, EXPERTS, 1))))
        return torch.einsum("bedn,bne->bnd", out.view(1, EXPERTS, WIDTH, -1), share)


STYLES = (
    "hit_rows",
    "flat_masks",
    "top1_gather",
    "argmax_gather",
    "argmax_masks",
    "switch",
    "room",
    "not_below",
    "above_next",
    "convolutions",
)
