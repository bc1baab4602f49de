"""Gates and mixtures of experts in the forms in which people write them, as small PyTorch modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models.exports.forms import (
    CAPACITY,
    CHOSEN,
    EXPERTS,
    GROUPS,
    HIDDEN,
    TASKS,
    WIDTH,
    Form,
)


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
        if self.form == "topk_sigmoid":
            chosen, index = torch.topk(logits, CHOSEN, dim=-1)
            return torch.sigmoid(chosen), index
        if self.form == "grouped":
            return self._grouped(F.softmax(logits, dim=-1))
        if self.form.startswith("sigmoid"):
            gates, index = torch.topk(torch.sigmoid(logits), CHOSEN, dim=-1)
            return gates / gates.sum(-1, keepdim=True) if self.form == "sigmoid_renormalise" else gates, index
        if self.form == "topk_softmax":
            chosen, index = torch.topk(logits, CHOSEN, dim=-1)
            return F.softmax(chosen, dim=-1), index
        if self.form == "m3vit":
            noisy = logits + torch.randn_like(logits) * (1.0 / EXPERTS) * 0.0
            gates, index = torch.topk(F.softmax(noisy, dim=-1), CHOSEN + 1, dim=-1)
            return gates[:, :CHOSEN], index[:, :CHOSEN]
        gates, index = torch.topk(F.softmax(logits, dim=-1), 1 if self.form == "one" else CHOSEN, dim=-1)
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

    @staticmethod
    def _grouped(scores: Tensor) -> tuple[Tensor, Tensor]:
        """DeepSeek-V2: the group with the best expert, then the best experts of that group."""
        groups = scores.view(scores.shape[0], GROUPS, -1).max(dim=-1).values
        kept = torch.topk(groups, k=1, dim=-1, sorted=False)[1]
        mask = torch.zeros_like(groups).scatter_(1, kept, 1)
        wide = mask.unsqueeze(-1).expand(-1, GROUPS, EXPERTS // GROUPS).reshape(scores.shape[0], -1)
        return torch.topk(scores.masked_fill(~wide.bool(), 0.0), k=CHOSEN, dim=-1, sorted=False)


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

    def _capacity_kept(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """Only choices that a threshold has kept take a place, first choices first."""
        kept = F.one_hot(index.t().reshape(-1), EXPERTS) * (gates.t().reshape(-1, 1) > 0)
        place = (torch.cumsum(kept, dim=0) * kept).sum(-1).reshape(CHOSEN, -1).t()
        return self._dense(x, gates * (place <= CAPACITY), index)

    def _capacity_mask(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """Choices without room get no weight; every expert runs on all tokens."""
        return self._dense(x, gates * self._room(index, False)[0], index)

    def _index_add(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            token, slot = torch.where(index == e)
            total = total.index_add(0, token, self._expert(x[token], e) * gates[token, slot].unsqueeze(-1))
        return total

    def _index_add_batch(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """Mixtral in transformers 4: rows of a batch of one, cast back before they are added."""
        total = torch.zeros_like(x)
        mask = F.one_hot(index, EXPERTS).permute(2, 1, 0)
        for e in range(EXPERTS):
            slot, token = torch.where(mask[e])
            rows = x[None, token].reshape(-1, WIDTH)
            total = total.index_add(0, token, (self._expert(rows, e) * gates[token, slot, None]).to(x.dtype))
        return total

    def _repeat(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """DeepSeek-V2's code for training: every token once a slot, rows written expert by expert, then weighed."""
        rows, flat = x.repeat_interleave(CHOSEN, dim=0), index.view(-1)
        out = torch.empty_like(rows)
        for e in range(EXPERTS):
            out[flat == e] = self._expert(rows[flat == e], e)
        return (out.view(*gates.shape, -1) * gates.unsqueeze(-1)).sum(1)

    def _where(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for e in range(EXPERTS):
            for slot in range(CHOSEN):
                chosen = (index[:, slot] == e).unsqueeze(-1)
                out = self._expert(x, e) * gates[:, slot : slot + 1]
                total = total + torch.where(chosen, out, torch.zeros_like(x))
        return total

    def _assign(self, x: Tensor, gates: Tensor, index: Tensor) -> Tensor:
        """Switch: the output of the only expert, times its probability."""
        out = torch.zeros_like(x)
        for e in range(EXPERTS):
            mask = (index == e).any(-1)
            out[mask] = self._expert(x[mask], e)
        return out * gates

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
