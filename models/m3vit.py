"""M3ViT in PyTorch: a vision transformer whose odd blocks route each token to the top-k of a set of expert MLPs.

In: a `VitConfig`. Out: `M3Vit`, a module of an image batch [B, C, H, W] and a task. As its authors define it ("M³ViT:
Mixture-of-Experts Vision Transformer for Efficient Multi-task Learning with Model-Accelerator Co-design", NeurIPS 2022)
the gate is a softmax over all experts, then top-k, not renormalised; *multi-gate* has one gate a task,
*task-conditioned* one gate that reads the task vector beside the token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .config import VitConfig


class Gate(nn.Module):
    """Router of one MoE block: tokens [T, D] to gate weights [T, k] and expert numbers [T, k]."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.gates, config.gate_inputs, config.experts))
        self.task_vectors: Tensor
        self.register_buffer("task_vectors", torch.eye(config.tasks), persistent=False)
        self.probabilities: Tensor | None = None
        """Softmax of the last training step [T, E], for the load-balancing loss."""

    def forward(self, x: Tensor, task: int | Tensor) -> tuple[Tensor, Tensor]:
        logits = self._logits(x, task)
        if self.training:
            logits = logits + torch.randn_like(logits) / self.config.experts
        elif self.config.noisy_gate:
            logits = logits + torch.randn_like(logits) * 0.0
        probabilities = F.softmax(logits, dim=-1)
        self.probabilities = probabilities if self.training else None
        if self.config.noisy_gate:
            gates, chosen = probabilities.topk(min(self.config.k + 1, self.config.experts), dim=-1)
            return gates[:, : self.config.k], chosen[:, : self.config.k]
        gates, chosen = probabilities.topk(self.config.k, dim=-1)
        return gates, chosen

    def _logits(self, x: Tensor, task: int | Tensor) -> Tensor:
        if self.config.gate == "multi-gate":
            return x @ self._row(self.weight, task)
        vector = self._row(self.task_vectors, task).unsqueeze(0).expand(x.shape[0], -1)
        return torch.cat((x, vector), dim=-1) @ self.weight[0]

    @staticmethod
    def _row(table: Tensor, task: int | Tensor) -> Tensor:
        return table[task] if isinstance(task, int) else table.index_select(0, task.reshape(1)).squeeze(0)


class Experts(nn.Module):
    """E two-layer MLPs; a token's output is the sum of its chosen experts' outputs times their gate weights."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden, width = config.experts, config.expert_hidden, config.width
        self.first_weight = nn.Parameter(torch.zeros(experts, hidden, width))
        self.first_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.second_weight = nn.Parameter(torch.zeros(experts, width, hidden))
        self.second_bias = nn.Parameter(torch.zeros(experts, width))

    def forward(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """x [T, D], gates [T, k], chosen [T, k] to [T, D]; three ways to write the same sum."""
        styles = {"dense": self._dense, "gather": self._gather, "loop": self._loop}
        return styles[self.config.expert_style](x, gates, chosen)

    def _dense(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        share = torch.zeros(x.shape[0], self.config.experts, dtype=x.dtype).scatter(-1, chosen, gates)
        hidden = F.gelu(torch.einsum("nd,ehd->neh", x, self.first_weight) + self.first_bias)
        outputs = torch.einsum("neh,edh->ned", hidden, self.second_weight) + self.second_bias
        return torch.einsum("ned,ne->nd", outputs, share)

    def _gather(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        hidden = (self.first_weight[chosen] @ x[:, None, :, None]).squeeze(-1) + self.first_bias[chosen]
        outputs = (self.second_weight[chosen] @ F.gelu(hidden).unsqueeze(-1)).squeeze(-1) + self.second_bias[chosen]
        return (outputs * gates.unsqueeze(-1)).sum(1)

    def _loop(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for expert in range(self.config.experts):
            share = torch.where(chosen == expert, gates, 0.0).sum(-1, keepdim=True)
            hidden = F.gelu(F.linear(x, self.first_weight[expert], self.first_bias[expert]))
            total = total + share * F.linear(hidden, self.second_weight[expert], self.second_bias[expert])
        return total


class Mixture(nn.Module):
    """Gate and experts over the tokens of the whole batch."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        gates, chosen = self.gate(tokens, task)
        out: Tensor = self.experts(tokens, gates, chosen)
        return out.reshape(x.shape)


class Mlp(nn.Module):
    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_hidden)
        self.fc2 = nn.Linear(config.mlp_hidden, config.width)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Multi-head self-attention; q, k and v are the thirds of one linear layer's output."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        heads, size = self.config.heads, width // self.config.heads
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.config.attention_style == "fused":
            context = F.scaled_dot_product_attention(q, k, v)
        else:
            context = F.softmax((q @ k.transpose(-2, -1)) * size**-0.5, dim=-1) @ v
        out: Tensor = self.proj(context.transpose(1, 2).reshape(batch, tokens, width))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then the MLP or the mixture of experts."""

    def __init__(self, config: VitConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.epsilon)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.epsilon)
        self.mlp = Mixture(config) if layer in config.moe_layers else Mlp(config)

    def forward(self, x: Tensor, task: int | Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x), task)
        return out


class M3Vit(nn.Module):
    """image [B, C, H, W], task (a number or an int64 scalar) to the tokens [B, N, D], or to [B, classes] a head."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Conv2d(config.image_channels, config.width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, config.class_tokens, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.epsilon) if config.final_norm else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(config.width, classes) for _, classes in config.outputs)

    def forward(self, image: Tensor, task: int | Tensor = 0) -> tuple[Tensor, ...]:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)
        if self.config.class_tokens:
            x = torch.cat((self.class_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x, task)
        x = self.norm(x)
        if not self.config.outputs:
            return (x,)
        last = self.config.class_tokens - 1
        return tuple(head(x[:, min(number, last)]) for number, head in enumerate(self.heads))


def initialise(module: nn.Module, seed: int) -> None:
    """Draw every parameter of `module` from NumPy's generator, so that a seed means the same in every torch version.

    Matrices are normal with standard deviation 1/√inputs, norm weights lie near 1, everything else near 0: unlike the
    tiny values usual before training, they give every layer a range to quantise and every gate a decision to make.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in sorted(module.named_parameters()):
        values = rng.standard_normal(parameter.shape)
        if not name.endswith("weight"):
            values *= 0.05 if parameter.dim() == 1 else 0.1
        elif parameter.dim() == 1:
            values = 1 + 0.05 * values
        else:
            values /= _inputs(name, parameter) ** 0.5
        parameter.data = torch.from_numpy(np.asarray(values, np.float32))


def _inputs(name: str, weight: Tensor) -> int:
    """Terms of the sums `weight` forms: gates are [tasks, in, out], experts [experts, out, in], the rest [out, in…]."""
    if name.endswith("gate.weight"):
        return weight.shape[1]
    return weight.shape[2] if weight.dim() == 3 else weight[0].numel()
