"""Blocks with gated MLPs, RMS normalisation, shared experts and normalised queries, as Mixtral, OLMoE, Qwen2-MoE, DeepSeek
and Llama 4 write them, in a small vision encoder.

`GatedVit` is put together from one form of each piece, as `SmallVit` is from the forms of older transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import CHOSEN, EXPERTS, HEADS, HIDDEN, WIDTH
from models.exports.small_vit import Embed, Tokens

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "silu_written": lambda x: x * torch.sigmoid(x),
    "relu": F.relu,
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}
SELECTED, SELECTED_GROUPS, KEPT_GROUPS = 9, 3, 2
"""experts and groups of a gate with a selection bias, and groups of a token"""


@dataclass(frozen=True)
class GatedForm:
    """One form of each piece."""

    norm: str = "layer"
    activation: str = "silu"
    mlp: str = "gated"
    experts: str = "none"
    gate: str = "all"
    """softmax over all experts, over the `chosen` ones, or the `sigmoid` of each logit; `selected` with a bias for the choice
    (DeepSeek-V3), `selected_groups` in groups of the two best; `inputs` weighs the experts' inputs by sigmoids (Llama 4)"""
    factor: float = 1.0
    """of the gate weights: DeepSeek's routed_scaling_factor"""
    shared: str = "none"
    """an expert of all tokens: added (`sum`), or weighed by a sigmoid (`gated`)"""
    mlp_activation: str = ""
    """of the dense MLPs, where it is another one"""
    pre_norm: bool = False
    """whether the embedded tokens are normalised before the first block (CLIP)"""
    post_norm: bool = False
    """whether blocks normalise the sums, from which the stream goes on, in place of what they read (BERT)"""
    tokens: str = "class"
    """class tokens and positions, a form of `small_vit.Tokens`"""
    tokens_last: bool = False
    """whether they join behind the norm of the embedded tokens (vit-pytorch)"""
    qk_norm: str = "none"
    """a norm of queries and keys, a head at a time, or of all their channels (`whole_…`)"""


class RmsNorm(nn.Module):
    """Root mean square normalisation, written out; `cast` computes it in float32 whatever comes in, as transformers does."""

    def __init__(self, form: str, width: int) -> None:
        super().__init__()
        self.form, self.weight = form, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32) if self.form == "cast" else x
        square = wide * wide if self.form == "product" else wide.pow(2)
        mean = square.mean(-1, keepdim=True)
        if self.form == "divide":
            return x / torch.sqrt(mean + 1e-5) * self.weight
        return self.weight * (wide * torch.rsqrt(mean + 1e-6)).to(x.dtype)


def norm(form: str, width: int = WIDTH) -> nn.Module:
    if form == "layer":
        return nn.LayerNorm(width, eps=1e-6)
    return nn.RMSNorm(width, eps=1e-6) if form == "rms" else RmsNorm(form.removeprefix("rms_"), width)


class Attention(nn.Module):
    def __init__(self, qk_norm: str) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.whole = qk_norm.startswith("whole_")
        width, form = WIDTH if self.whole else WIDTH // HEADS, qk_norm.removeprefix("whole_")
        self.q_norm, self.k_norm = (nn.Identity() if form == "none" else norm(form, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        size = WIDTH // HEADS
        if self.whole:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            parts = (
                part.reshape(batch, tokens, HEADS, size).transpose(1, 2) for part in (self.q_norm(q), self.k_norm(k), v)
            )
            q, k, v = parts
        else:
            q, k, v = self.qkv(x).reshape(batch, tokens, 3, HEADS, size).permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.q_norm(q), self.k_norm(k)
        context = F.softmax((q * size**-0.5) @ k.transpose(-2, -1), dim=-1) @ v
        out: Tensor = self.proj(context.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return out


class GatedMlp(nn.Module):
    """`plain`: activation between two matrices; `gated`: `down(activation(gate(x)) * up(x))`; `fused`: gate and up in one."""

    def __init__(self, form: str, activation: str) -> None:
        super().__init__()
        self.form, self.activation = form, ACTIVATIONS[activation]
        bias = form != "gated"
        self.gate_proj = nn.Linear(WIDTH, 2 * HIDDEN if form == "fused" else HIDDEN, bias=bias)
        self.up_proj = nn.Linear(WIDTH, HIDDEN, bias=bias) if form == "gated" else nn.Identity()
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.gate_proj(x)
        if self.form == "fused":
            gate, up = hidden.chunk(2, dim=-1)
            hidden = up * self.activation(gate)
        elif self.form == "gated":
            hidden = self.activation(hidden) * self.up_proj(x)
        else:
            hidden = self.activation(hidden)
        out: Tensor = self.down_proj(hidden)
        return out


class GatedMixture(nn.Module):
    """Routed experts with gated MLPs, perhaps an expert of all tokens beside them."""

    correction: Tensor

    def __init__(self, form: GatedForm) -> None:
        super().__init__()
        self.form = form
        self.count = SELECTED if form.gate.startswith("selected") else EXPERTS
        self.gate = nn.Linear(WIDTH, self.count, bias=False)
        self.w_gate = nn.Parameter(torch.zeros(self.count, HIDDEN, WIDTH))
        self.w_up = nn.Parameter(torch.zeros(self.count, HIDDEN, WIDTH))
        self.w_down = nn.Parameter(torch.zeros(self.count, WIDTH, HIDDEN))
        self.register_buffer("correction", 0.2 + 0.2 * torch.sin(torch.arange(float(self.count))))
        self.activation = ACTIVATIONS[form.activation]
        self.shared_expert = GatedMlp("gated", form.activation) if form.shared != "none" else nn.Identity()
        self.shared_expert_gate = nn.Linear(WIDTH, 1, bias=False) if form.shared == "gated" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        logits = self.gate(flat)
        if self.form.gate == "inputs":
            return (self._weighed_inputs(flat, logits) + self.shared_expert(flat)).reshape(x.shape)
        soft = self.form.gate in ("all", "chosen")
        scores = F.softmax(logits, dim=-1, dtype=torch.float) if soft else torch.sigmoid(logits)
        if self.form.gate.startswith("selected"):
            index = self._selected(scores)
            weights = scores.gather(1, index)
        else:
            weights, index = torch.topk(scores, CHOSEN, dim=-1)
        if self.form.gate != "all":
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        weights = weights * self.form.factor if self.form.factor != 1.0 else weights
        out: Tensor = getattr(self, f"_{self.form.experts}")(flat, weights, index)
        if self.form.shared == "sum":
            out = out + self.shared_expert(flat)
        elif self.form.shared == "gated":
            out = out + torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        return out.reshape(x.shape)

    def _selected(self, scores: Tensor) -> Tensor:
        """DeepSeek-V3: experts by score plus bias, of the groups whose two best have the largest sum."""
        ranks = scores + self.correction.unsqueeze(0)
        if self.form.gate == "selected_groups":
            tokens = scores.shape[0]
            groups = ranks.view(tokens, SELECTED_GROUPS, -1).topk(2, dim=-1)[0].sum(dim=-1)
            kept = torch.topk(groups, k=KEPT_GROUPS, dim=-1, sorted=False)[1]
            mask = torch.zeros_like(groups).scatter_(1, kept, 1)
            wide = mask.unsqueeze(-1).expand(-1, SELECTED_GROUPS, SELECTED // SELECTED_GROUPS).reshape(tokens, -1)
            ranks = ranks.masked_fill(~wide.bool(), 0.0)
        return torch.topk(ranks, k=CHOSEN, dim=-1, sorted=False)[1]

    def _weighed_inputs(self, x: Tensor, logits: Tensor) -> Tensor:
        """Llama 4: every expert gets the tokens times their sigmoids, which are zero where it is not chosen."""
        best, index = torch.topk(logits, 1, dim=1)
        weights = torch.sigmoid(best)
        if self.form.experts == "index_add":
            total = torch.zeros_like(x)
            for e in range(EXPERTS):
                token, slot = torch.where(index == e)
                total = total.index_add(0, token, self._expert(x[token] * weights[token, slot, None], e))
            return total
        if self.form.experts == "loop":
            return torch.stack([self._expert(x * ((index == e) * weights), e) for e in range(EXPERTS)]).sum(0)
        if self.form.experts == "gather":
            return self._gather(x * weights, torch.ones_like(weights), index)
        scores = torch.sigmoid(torch.full_like(logits, float("-inf")).scatter_(1, index, best).float())
        routed = x.repeat(EXPERTS, 1) * scores.transpose(0, 1).reshape(-1, 1)
        fused = torch.cat((self.w_gate, self.w_up), dim=1).transpose(1, 2)
        gate, up = torch.bmm(routed.view(EXPERTS, -1, WIDTH), fused).chunk(2, dim=-1)
        out = torch.bmm(up * self.activation(gate), self.w_down.transpose(1, 2)).view(-1, WIDTH)
        return out.reshape(EXPERTS, -1, WIDTH).sum(dim=0)

    def _expert(self, x: Tensor, e: int) -> Tensor:
        hidden = self.activation(F.linear(x, self.w_gate[e])) * F.linear(x, self.w_up[e])
        return F.linear(hidden, self.w_down[e])

    def _index_add(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """Mixtral, OLMoE, Qwen2-MoE: each expert on its own tokens."""
        mask = F.one_hot(index, self.count).permute(2, 1, 0)
        total = torch.zeros_like(x)
        for e in range(self.count):
            slot, token = torch.where(mask[e])
            out = self._expert(x[token].reshape(-1, WIDTH), e) * weights[token, slot, None]
            total = total.index_add(0, token, out)
        return total

    def _loop(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(self.count):
            total = total + self._expert(x, e) * ((index == e) * weights).sum(-1, keepdim=True)
        return total

    def _dense(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """All experts on all tokens, gate and up in one matrix."""
        share = torch.zeros(x.shape[0], EXPERTS).scatter(1, index, weights)
        fused = torch.cat((self.w_gate, self.w_up), dim=1).transpose(1, 2)
        gate, up = torch.bmm(x.unsqueeze(0).expand(EXPERTS, -1, -1), fused).chunk(2, dim=-1)
        out = torch.bmm(up * self.activation(gate), self.w_down.transpose(1, 2))
        return (out * share.t().unsqueeze(-1)).sum(0)

    def _gather(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        gate = torch.einsum("nd,nkhd->nkh", x, self.w_gate[index])
        up = torch.einsum("nd,nkhd->nkh", x, self.w_up[index])
        out = torch.einsum("nkh,nkdh->nkd", self.activation(gate) * up, self.w_down[index])
        return (out * weights.unsqueeze(-1)).sum(1)


class Block(nn.Module):
    def __init__(self, form: GatedForm, sparse: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(form.norm), norm(form.norm)
        self.attention, self.post_norm = Attention(form.qk_norm), form.post_norm
        self.mlp = GatedMixture(form) if sparse else GatedMlp(form.mlp, form.mlp_activation or form.activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.post_norm:
            x = self.norm1(x + self.attention(x))
            after: Tensor = self.norm2(x + self.mlp(x))
            return after
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GatedVit(nn.Module):
    """image [1, C, H, W] to class scores."""

    def __init__(self, form: GatedForm) -> None:
        super().__init__()
        self.embed, self.tokens = Embed("conv"), Tokens(form.tokens)
        self.tokens_last = form.tokens_last
        self.pre_norm = norm(form.norm) if form.pre_norm else nn.Identity()
        sparse = [False] if form.experts == "none" else [False, True]
        self.blocks = nn.ModuleList([Block(form, each) for each in sparse])
        self.norm = nn.Identity() if form.post_norm else norm(form.norm)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        x = self.tokens(self.pre_norm(x)) if self.tokens_last else self.pre_norm(self.tokens(x))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out
