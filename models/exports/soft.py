"""Soft mixtures of experts (Puigcerver et al., 2023) in the forms in which people write them, as a small PyTorch module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import EXPERTS, HIDDEN, SLOTS, WIDTH


class RootNorm(nn.Module):
    """RMS normalisation as the length of the vector: `x / |x| · √D · weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.weight * WIDTH**0.5


def softmax_of(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The softmax over several dimensions, written out."""
    powers = torch.exp(x - torch.amax(x, dim=dims, keepdim=True))
    return powers / powers.sum(dim=dims, keepdim=True)


class SoftMixture(nn.Module):
    """Tokens [1, T, D] to tokens.

    `einsum`: experts by einsums over stacked weights; `loop`: a module each, both softmaxes written out; `slots`: a norm of
    its own for tokens and for slots, experts gated; `unit`: products of tokens and parameters of length one, times a scale.
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.phi_weight = nn.Parameter(torch.zeros(WIDTH, EXPERTS, SLOTS))
        self.scale_weight = nn.Parameter(torch.ones(1))
        self.norm, self.slot_norm = (RootNorm() if form == "slots" else nn.Identity() for _ in range(2))
        self.first_weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))
        self.first_bias = nn.Parameter(torch.zeros(EXPERTS, HIDDEN))
        self.up_weight = nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH if form == "slots" else 0))
        self.second_weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH, HIDDEN))
        self.second_bias = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self, f"_{self.form}")(x)
        return out

    def _stacked(self, slots: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("bepd,ehd->beph", slots, self.first_weight) + self.first_bias[:, None])
        return torch.einsum("beph,edh->bepd", hidden, self.second_weight) + self.second_bias[:, None]

    def _einsum(self, x: Tensor) -> Tensor:
        logits = torch.einsum("bnd,dep->bnep", x, self.phi_weight)
        dispatch = F.softmax(logits, dim=1)
        combine = F.softmax(logits.flatten(2), dim=-1).reshape(logits.shape)
        return torch.einsum("bepd,bnep->bnd", self._stacked(torch.einsum("bnd,bnep->bepd", x, dispatch)), combine)

    def _loop(self, x: Tensor) -> Tensor:
        logits = torch.einsum("bmd,dnp->bmnp", x, self.phi_weight)
        slots = torch.einsum("bmd,bmnp->bnpd", x, softmax_of(logits, (1,)))
        parts = [
            F.linear(
                F.gelu(F.linear(slots[:, e], self.first_weight[e], self.first_bias[e])),
                self.second_weight[e],
                self.second_bias[e],
            )
            for e in range(EXPERTS)
        ]
        return torch.einsum("bnpd,bmnp->bmd", torch.stack(parts, dim=1), softmax_of(logits, (2, 3)))

    def _slots(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        logits = torch.einsum("bnd,esd->bnes", x, self.slot_norm(self.phi_weight.permute(1, 2, 0)))
        slots = torch.einsum("bnd,bnes->besd", x, logits.softmax(dim=1)).permute(1, 0, 2, 3)
        parts = []
        for e, own in enumerate(slots.unbind(0)):
            hidden = F.gelu(F.linear(own, self.first_weight[e])) * F.linear(own, self.up_weight[e])
            parts.append(F.linear(hidden, self.second_weight[e], self.second_bias[e]))
        out = torch.stack(parts).permute(1, 0, 2, 3).flatten(1, 2)
        return torch.einsum("bsd,bns->bnd", out, logits.flatten(2).softmax(dim=-1))

    def _unit(self, x: Tensor) -> Tensor:
        phi = self.scale_weight * F.normalize(self.phi_weight, dim=0)
        logits = torch.einsum("bnd,dep->bnep", F.normalize(x, dim=-1), phi)
        combine = F.softmax(logits.flatten(2), dim=-1).reshape(logits.shape)
        slots = torch.einsum("bnd,bnep->bepd", x, F.softmax(logits, dim=1))
        return torch.einsum("bepd,bnep->bnd", self._stacked(slots), combine)
