"""Steps of routers and experts: what `moehls.plan.program` does for a Route and for the Experts behind it."""

from __future__ import annotations

from dataclasses import replace

from moehls.integer.operations import IntegerExperts, IntegerRoute
from moehls.plan.builder import bias_only, part_of
from moehls.plan.instruction import ANY_TASK, NO_CAPACITY, Flag, Gating, Instruction, Kind, Mode
from moehls.plan.norms import NormSteps
from moehls.plan.steps import Access, Channels, Place, part_name


class ExpertSteps(NormSteps):
    """One method an operation."""

    def route(self, op: IntegerRoute) -> None:
        norm, x = self.norms.get(op.input), self.places.get(op.input)
        if norm is None and (x is None or x.memory != "m2"):
            self.refuse(op, f"its input {op.input!r} must be the fine value of the LayerNorm before it")
        rows = norm.stop - norm.start if norm is not None else x.rows if x is not None else 0
        tasks, experts, _ = op.weight.shape
        chosen = Flag.CHOSEN if op.normalisation == "chosen" else 0
        mode = Gating.RENORMALISE if op.renormalise else 0
        mode |= Gating.BY_CHOICE if op.capacity and op.priority == "choice" else 0
        mode |= Gating.SIGMOID if op.score == "sigmoid" else 0
        mode |= Gating.UNDIVIDED if op.normalisation == "none" else 0
        mode |= Gating.SELECTION if op.selection is not None else 0
        mode |= Gating.PAIRS if op.pairs else 0
        mode |= Gating.ROOM if op.room else 0
        if op.group:
            self.expert_groups.add(op.group)
            if len(self.expert_groups) > 1:
                self.refuse(
                    op, f"routers have groups of {' and of '.join(map(str, sorted(self.expert_groups)))} experts"
                )
        y = Place("queue", 0, 0, rows, Channels(experts))
        for task in range(tasks):
            number, suffix = (task, f".task{task}") if tasks > 1 else (ANY_TASK, "")
            name = f"{op.name}{suffix}"
            logits = Access(f"{op.output} (logits{suffix})", self.raw_place(rows, Channels(experts)))
            self.logits(op, task, f"{name}.logits", x, logits, number)
            instruction = Instruction(
                Kind.ROUTE, mode, flags=chosen, task=number, n0=experts, n1=op.k, n2=logits.place.stride,
                rows=rows,
                multiplier=int(op.multiplier[task]), shift=int(op.shift[task]),
                split=op.capacity or NO_CAPACITY, offset=op.threshold, x_base=op.kept_groups,
            )  # fmt: skip
            selection = (
                None if op.selection is None else self.parameters(Channels(experts), bias_only(op.selection[task]))
            )
            self.step(name, op.name, instruction, selection, reads=(logits,), writes=(Access(op.output, y),))
            self.stage(op.output, "routing", y, number)
        self.places[op.output] = y

    def logits(self, op: IntegerRoute, task: int, name: str, x: Place | None, logits: Access, number: int) -> None:
        """The logits of a task's router, of all tokens or of a block of them after the other."""
        bias = bias_only(op.bias[task])
        if x is not None:
            self.matrix(name, op.name, Mode.RAW, Access(op.input, x), op.weight[task], bias, logits, task=number)
            return
        place = logits.place
        for part, fine in self.fine_blocks(op.input):
            source = Access(part_name(op.input, part.first), fine)
            to = replace(place, base=place.base + part.first * place.stride, rows=part.rows)
            target = Access(logits.value, to)
            self.matrix(
                f"{name}.row{part.first}", op.name, Mode.RAW, source, op.weight[task], bias, target, task=number
            )

    def experts(self, op: IntegerExperts) -> None:
        x, routing, y = self.operand(op, op.input), self.places.get(op.routing), self.current_residual(op, op.residual)
        if x.memory != "m0" or not x.signed:
            self.refuse(op, "experts must read the output of a LayerNorm")
        if routing is None or routing.rows != x.rows or y.rows != x.rows:
            self.refuse(op, f"its routing {op.routing!r} must come from the tokens the experts read")
        blocks, hidden = self.blocks(x.channels), Channels(op.first_weight.shape[1])
        g_name, h_name = f"{op.name} (gathered)", f"{op.name} (hidden)"
        g = self.place_operand("m1", g_name, x.rows, x.channels)
        gated = op.up_weight is not None
        h = self.place_operand("m3", h_name, x.rows, hidden, signed=gated)
        u_name = f"{op.name} (up)"
        u = self.place_operand("m2", u_name, x.rows, hidden) if gated else None
        queue, residual = Access(op.routing, routing), Access(op.residual, y)
        self.section(f"{op.name}.choice", op.name, len(op.first_weight))
        first_sums, second_sums, up_sums = op.magnitudes
        for e in range(len(op.first_weight)):
            name = f"{op.name}.expert{e}"
            gathered, activated = Access(f"{g_name} {e}", g), Access(f"{h_name} {e}", h)
            updated = Access(op.output if e + 1 == len(op.first_weight) else f"{op.output} ({e})", y)
            gather = Instruction(
                Kind.GATHER, int(op.weigh_inputs), expert=e, n2=blocks, rows=x.rows, x_base=x.base, y_base=g.base
            )
            self.step(f"{name}.gather", op.name, gather, None, reads=(Access(op.input, x), queue), writes=(gathered,))
            gelu = replace(op.gelu, multiplier=op.gelu.multiplier[e])
            first, second = part_of(op.first_scaling, e), part_of(op.second_scaling, e)
            factor = None
            if u is not None and op.up_weight is not None and op.up_scaling is not None:
                factor, up = Access(f"{u_name} {e}", u), part_of(op.up_scaling, e)
                self.matrix(
                    f"{name}.up", op.name, Mode.REQUANTISE, gathered, op.up_weight[e], up, factor, expert=e,
                    magnitudes=None if up_sums is None else up_sums[e],
                )  # fmt: skip
            self.matrix(
                f"{name}.first", op.name, Mode.GATED if gated else Mode.GELU, gathered, op.first_weight[e], first, activated,
                gelu=gelu, expert=e, factor=factor, magnitudes=first_sums[e],
            )  # fmt: skip
            self.matrix(
                f"{name}.second", op.name, Mode.SCATTER, activated, op.second_weight[e], second, updated,
                also_reads=(residual, queue), expert=e, flags=Flag.PLAIN if op.weigh_inputs else 0,
                magnitudes=second_sums[e],
            )  # fmt: skip
            residual = updated
        self.memory.release(g_name)
        self.memory.release(h_name)
        self.memory.release(u_name)
        self.update(op.residual, op.output, y)
