"""From the integer network to the step program of one machine shape (`docs/accelerator.md`, section 3).

In go an IntegerNetwork and a Shape, out comes a `Program`: steps in the order of the stream, and a `Stage` for every
value that lies in a memory. The depths of the shape take no part: they are compared with `Program.requirements`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerPool,
    IntegerRoute,
    Raw,
    Requantise,
    Scaling,
    Widen,
)
from moehls.plan.builder import BINDINGS, Builder
from moehls.plan.instruction import (
    ANY_TASK,
    NO_CAPACITY,
    Binding,
    Flag,
    Gating,
    Instruction,
    Kind,
    Mode,
    Source,
    Target,
)
from moehls.plan.payload import Biases, Rows, header_words, headers_together
from moehls.plan.sections import in_sections
from moehls.plan.shape import Shape
from moehls.plan.steps import Access, Channels, InputPlace, Memory, Place, Program


def build_program(network: IntegerNetwork, shape: Shape) -> Program:
    """The steps of `network` on a machine with the parallelism of `shape`.

    Raises:
        MoehlsError: an operation that the machine has no step for, by name, and what to do.
    """
    builder = _Operations(network, shape)
    for index, operation in enumerate(network.operations):
        builder.operation(operation)
        builder.release(index)
    builder.step("end", "", Instruction(Kind.END), None)
    for output in network.outputs:
        if all(place.name != output.name for place in builder.outputs):
            raise MoehlsError(f"output {output.name!r}: {output.value!r} is not a residual, fine or raw value")
    if builder.input is None:
        raise MoehlsError("the network has no patch embedding; the machine starts with one")
    steps, stages, outputs = tuple(builder.steps), tuple(builder.stages), tuple(builder.outputs)
    if shape.experts == "prefetched":
        steps = in_sections(steps, shape)
    return Program(
        steps, stages, builder.input, outputs, builder.requirements(), headers_together(shape), header_words(shape)
    )


_TARGETS: dict[Memory, Target] = {"m0": Target.M0, "m1": Target.M1, "m2": Target.M2}


class _Operations(Builder):
    """One method an operation."""

    def operation(self, operation: IntegerOperation) -> None:
        match operation:
            case IntegerEmbed():
                self.embed(operation)
            case IntegerConstant():
                self.constant(operation)
            case IntegerNorm():
                self.norm(operation)
            case IntegerPool():
                self.pool(operation)
            case IntegerLinear():
                self.linear(operation)
            case IntegerAttention():
                self.attention(operation)
            case IntegerRoute():
                self.route(operation)
            case IntegerExperts():
                self.experts(operation)

    def embed(self, op: IntegerEmbed) -> None:
        if self.steps:
            self.refuse(op, "the patch embedding must be the first operation")
        tokens, width = op.initial.shape
        pixels = Channels(op.weight.shape[1])
        blocks = self.blocks(pixels)
        x = self.place_operand("m3", op.input, tokens, pixels, signed=False)
        self.input = InputPlace(tokens - op.prefix, pixels.count, blocks, self.beats_a_word())
        instruction = Instruction(Kind.INPUT, n0=op.prefix, n2=blocks, rows=tokens, y_base=x.base)
        self.step(f"{op.name}.input", op.name, instruction, None, writes=(Access(op.input, x),))
        blocks = self.blocks(Channels(width))
        base = self.rows.take("residual", "stream", self.groups(tokens) * blocks)
        y = Place("residual", base, blocks, tokens, Channels(width))
        load = Instruction(Kind.LOAD, n2=y.stride, rows=tokens)
        before = f"{op.output} (initial)"
        self.step(f"{op.name}.initial", op.name, load, Rows(op.initial, y.stride), writes=(Access(before, y),))
        self.matrix(
            op.name, op.name, Mode.RESIDUAL, Access(op.input, x), op.weight, op.scaling, Access(op.output, y),
            also_reads=(Access(before, y),), tokens=tokens - op.prefix,
        )  # fmt: skip
        if op.prefix:  # the product added the bias of the patches to the prefix tokens too: load them once more
            again = replace(load, rows=op.prefix)
            rows, y_prefix = Rows(op.initial[: op.prefix], y.stride), replace(y, rows=op.prefix)
            self.step(f"{op.name}.prefix", op.name, again, rows, writes=(Access(op.output, y_prefix),))
        self.update(before, op.output, y)

    def constant(self, op: IntegerConstant) -> None:
        rows, channels = op.rows.shape
        y = self.place_side(op.output, rows, Channels(channels))
        load = Instruction(Kind.LOAD, n2=y.stride, rows=rows, y_base=y.base)
        self.step(op.name, op.name, load, Rows(op.rows, y.stride), writes=(Access(op.output, y),))
        self.stage(op.output, "residual", y)

    def norm(self, op: IntegerNorm) -> None:
        x = self.current_residual(op, op.input)
        rows, tt = op.stop - op.start, self.shape.token_parallel
        memory, heads = self.roles.get(op.operand, ("m0", 1))
        if heads != x.channels.heads:
            self.refuse(op, f"an attention of {heads} heads reads it, and its input is not the output of a linear")
        if op.heads > 1 and (op.heads != heads or rows != x.rows):
            self.refuse(op, f"normalises {op.heads} heads of an attention of {heads}, or of some tokens only")
        y = self.place_operand(memory, op.operand, rows, x.channels)
        planes = 16 // self.shape.precision.activation_bits
        fine_is_read = op.fine in self.last_use or op.fine in self.shown
        if fine_is_read and memory != "m0":
            self.refuse(op, "its output is read by an attention and by a router, or shown")
        base = self.memory.take("m2", op.fine, self.groups(rows) * planes * x.stride) if fine_is_read else 0
        fine = Place("m2", base, planes * x.stride, rows, x.channels, planes=planes)
        # heads lie side by side as token groups do: a row of each lane, head and group
        own = Channels(x.channels.count // op.heads, x.channels.heads // op.heads)
        blocks = self.blocks(own)
        instruction = Instruction(
            Kind.NORM,
            _TARGETS[memory],
            flags=(Flag.PLANES if fine_is_read else 0)
            | (0 if op.centred else Flag.RMS)
            | (Flag.PLAIN if op.plain else 0),
            n2=blocks,
            rows=rows if op.heads == 1 else self.groups(rows) * tt * op.heads,
            channels=own.count,
            epsilon=op.epsilon,
            w_base=op.start % tt,
            w_s0=x.base // blocks + op.start // tt,
            x_base=base,
            y_base=y.base,
        )
        writes = (Access(op.operand, y),) + ((Access(op.fine, fine),) if fine_is_read else ())
        parameters = self.parameters(own, op.scaling)
        self.step(op.name, op.name, instruction, parameters, reads=(Access(op.input, x),), writes=writes)
        self.stage(op.operand, "operand", y)
        if fine_is_read:
            self.places[op.fine] = fine
            self.stage(op.fine, "fine", fine)
            self.store(op.fine, "fine", fine)

    def pool(self, op: IntegerPool) -> None:
        x = self.places.get(op.input) if op.of_fine else self.current_residual(op, op.input)
        if x is None or (op.of_fine and x.memory != "m2"):
            self.refuse(op, f"its input {op.input!r} must be the fine value of a LayerNorm")
        blocks, tt = self.blocks(x.channels), self.shape.token_parallel
        y = (
            self.place_operand("m0", op.output, 1, x.channels)
            if op.of_fine
            else self.place_side(op.output, 1, x.channels)
        )
        instruction = Instruction(
            Kind.POOL,
            Source.FINE if op.of_fine else Source.RESIDUAL,
            n2=blocks,
            rows=op.stop - op.start,
            w_base=op.start % tt,
            w_s0=op.start // tt + (0 if op.of_fine else x.base // blocks),
            x_base=x.base if op.of_fine else 0,
            y_base=y.base,
        )
        parameters = self.parameters(x.channels, op.scaling)
        reads, writes = (Access(op.input, x),), (Access(op.output, y),)
        self.step(op.name, op.name, instruction, parameters, reads=reads, writes=writes)
        self.stage(op.output, "operand" if op.of_fine else "residual", y)

    def linear(self, op: IntegerLinear) -> None:
        fine = self.places.get(op.input)
        of_fine = isinstance(op.epilogue, Widen) and fine is not None and fine.memory == "m2"
        x = fine if of_fine and fine is not None else self.operand(op, op.input)
        out, rows = Channels(len(op.weight)), x.rows
        match op.epilogue:
            case Raw():
                self.raw(op, x, out)
            case Widen():
                y = self.place_side(op.output, rows, Channels(out.count, self.heads.get(op.output, 1)))
                self.matrix(
                    op.name, op.name, Mode.WIDE, Access(op.input, x), op.weight, op.scaling, Access(op.output, y)
                )
                self.stage(op.output, "residual", y)
                self.store(op.output, "residual", y)
            case AddResidual(residual=residual):
                y = self.current_residual(op, residual)
                if (y.rows, y.channels) != (rows, out):
                    self.refuse(op, f"adds {rows} rows of {out.count} channels to a residual of another shape")
                self.matrix(
                    op.name, op.name, Mode.RESIDUAL, Access(op.input, x), op.weight, op.scaling, Access(op.output, y),
                    also_reads=(Access(residual, y),),
                )  # fmt: skip
                self.update(residual, op.output, y)
            case Requantise():
                self.requantise(op, x, out, None)
            case GeluRequantise() as gelu:
                self.requantise(op, x, out, gelu)
            case GatedRequantise() as gated:
                self.gated(op, x, out, gated)

    def requantise(self, op: IntegerLinear, x: Place, out: Channels, gelu: GeluRequantise | None) -> None:
        memory: Memory = "m0" if x.memory == "m3" else "m3"
        if op.output in self.factors:
            memory = "m1"
        if op.output in self.roles:
            memory, heads = self.roles[op.output]
            out = Channels(out.count, heads)
            if gelu:
                self.refuse(op, "query, key and value are signed; GELU cannot come before attention")
        if (x.memory, memory) not in BINDINGS:
            self.refuse(op, "query, key, value and gated MLPs must be computed from the output of a LayerNorm")
        y = self.place_operand(memory, op.output, x.rows, out, signed=gelu is None)
        mode = Mode.GELU if gelu else Mode.REQUANTISE
        source, target = Access(op.input, x), Access(op.output, y)
        self.matrix(op.name, op.name, mode, source, op.weight, op.scaling, target, gelu=gelu)
        self.stage(op.output, "operand", y)

    def gated(self, op: IntegerLinear, x: Place, out: Channels, epilogue: GatedRequantise) -> None:
        """The other branch lies in M1, which is memory W of the binding from M0 to M3."""
        up = self.operand(op, epilogue.up)
        if x.memory != "m0" or up.memory != "m1" or (up.rows, up.channels) != (x.rows, out):
            self.refuse(op, "a gated MLP must be computed from the output of a LayerNorm")
        y = self.place_operand("m3", op.output, x.rows, out)
        self.matrix(
            op.name, op.name, Mode.GATED, Access(op.input, x), op.weight, op.scaling, Access(op.output, y),
            gelu=GeluRequantise(epilogue.multiplier, epilogue.shift, 0, epilogue.form), factor=Access(epilogue.up, up),
        )  # fmt: skip
        self.stage(op.output, "operand", y)

    def raw(self, op: IntegerLinear, x: Place, out: Channels) -> None:
        y = self.raw_place(x.rows, out)
        source, target = Access(op.input, x), Access(op.output, y)
        self.matrix(op.name, op.name, Mode.RAW, source, op.weight, _bias(op.scaling.bias), target)
        self.stage(op.output, "raw", y)
        self.store(op.output, "raw", y)

    def attention(self, op: IntegerAttention) -> None:
        q, k, v = (self.operand(op, name) for name in (op.query, op.key, op.value))
        if k.rows != v.rows or k.channels != q.channels or v.channels != q.channels:
            self.refuse(op, "query, key and value must have the same channels, key and value the same tokens")
        queries, keys = self.groups(q.rows), self.groups(k.rows)
        y = self.place_operand("m0", op.output, q.rows, q.channels)
        p_name = f"{op.name} (probabilities)"
        p = self.place_operand("m3", p_name, q.rows, Channels(keys * self.shape.block), signed=False)
        each = self.blocks(q.channels) // op.heads
        size = q.channels.count // op.heads
        for head in range(op.heads):
            biases = Biases(op.bias.entries[head]) if op.bias is not None else None
            scores = Instruction(
                Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY | (Flag.PARAMETERS if biases else 0),
                n0=queries, n1=keys, n2=each, rows=k.rows,
                x_base=q.base + head * each, x_s0=q.stride, x_s2=1,
                w_base=k.base + head * each, w_s1=k.stride, w_s2=1,
                y_base=p.base, y_s0=p.stride, y_s1=1,
                multiplier=int(op.score_multiplier[head]), shift=int(op.score_shift[head]),
                offset=int(op.bias.shift[head]) if op.bias is not None else 0,
            )  # fmt: skip
            reads = (Access(op.query, _head(q, head, each)), Access(op.key, _head(k, head, each)))
            macs = q.rows * k.rows * size
            name = f"{op.name}.scores{head}"
            self.step(name, op.name, scores, biases, reads=reads, writes=(Access(p_name, p),), macs=macs)
            context = Instruction(
                Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED,
                n0=queries, n1=each, n2=keys, rows=k.rows,
                x_base=p.base + keys - 1, x_s0=p.stride, x_s2=-1,
                w_base=v.base + (keys - 1) * v.stride + head * each, w_s1=1, w_s2=-v.stride,
                y_base=y.base + head * each, y_s0=y.stride, y_s1=1,
            )  # fmt: skip
            part = slice(head * size, (head + 1) * size)
            parameters = self.parameters(Channels(size), _part(op.scaling, part))
            reads = (Access(p_name, p), Access(op.value, _head(v, head, each)))
            writes = (Access(op.output, _head(y, head, each)),)
            self.step(f"{op.name}.context{head}", op.name, context, parameters, reads=reads, writes=writes, macs=macs)
        self.memory.release(p_name)
        self.stage(op.output, "operand", y)

    def route(self, op: IntegerRoute) -> None:
        x = self.places.get(op.input)
        if x is None or x.memory != "m2":
            self.refuse(op, f"its input {op.input!r} must be the fine value of the LayerNorm before it")
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
        y = Place("queue", 0, 0, x.rows, Channels(experts))
        for task in range(tasks):
            number, suffix = (task, f".task{task}") if tasks > 1 else (ANY_TASK, "")
            name = f"{op.name}{suffix}"
            logits = Access(f"{op.output} (logits{suffix})", self.raw_place(x.rows, Channels(experts)))
            source, bias = Access(op.input, x), _bias(op.bias[task])
            self.matrix(f"{name}.logits", op.name, Mode.RAW, source, op.weight[task], bias, logits, task=number)
            instruction = Instruction(
                Kind.ROUTE, mode, flags=chosen, task=number, n0=experts, n1=op.k, n2=logits.place.stride,
                rows=x.rows,
                multiplier=int(op.multiplier[task]), shift=int(op.shift[task]),
                split=op.capacity or NO_CAPACITY, offset=op.threshold, x_base=op.kept_groups,
            )  # fmt: skip
            selection = None if op.selection is None else self.parameters(Channels(experts), _bias(op.selection[task]))
            self.step(name, op.name, instruction, selection, reads=(logits,), writes=(Access(op.output, y),))
            self.stage(op.output, "routing", y, number)
        self.places[op.output] = y

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
        for e in range(len(op.first_weight)):
            name = f"{op.name}.expert{e}"
            gathered, activated = Access(f"{g_name} {e}", g), Access(f"{h_name} {e}", h)
            updated = Access(op.output if e + 1 == len(op.first_weight) else f"{op.output} ({e})", y)
            gather = Instruction(
                Kind.GATHER, int(op.weigh_inputs), expert=e, n2=blocks, rows=x.rows, x_base=x.base, y_base=g.base
            )
            self.step(f"{name}.gather", op.name, gather, None, reads=(Access(op.input, x), queue), writes=(gathered,))
            gelu = replace(op.gelu, multiplier=op.gelu.multiplier[e])
            first, second = _part(op.first_scaling, e), _part(op.second_scaling, e)
            factor = None
            if u is not None and op.up_weight is not None and op.up_scaling is not None:
                factor, up = Access(f"{u_name} {e}", u), _part(op.up_scaling, e)
                self.matrix(f"{name}.up", op.name, Mode.REQUANTISE, gathered, op.up_weight[e], up, factor, expert=e)
            self.matrix(
                f"{name}.first", op.name, Mode.GATED if gated else Mode.GELU, gathered, op.first_weight[e], first, activated,
                gelu=gelu, expert=e, factor=factor,
            )  # fmt: skip
            self.matrix(
                f"{name}.second", op.name, Mode.SCATTER, activated, op.second_weight[e], second, updated,
                also_reads=(residual, queue), expert=e, flags=Flag.PLAIN if op.weigh_inputs else 0,
            )  # fmt: skip
            residual = updated
        self.memory.release(g_name)
        self.memory.release(h_name)
        self.memory.release(u_name)
        self.update(op.residual, op.output, y)


def _head(place: Place, head: int, blocks: int) -> Place:
    """The part of `place` that head `head` takes, `blocks` blocks."""
    size = place.channels.count // place.channels.heads
    return replace(place, base=place.base + head * blocks, channels=Channels(size))


def _part(scaling: Scaling, part: int | slice) -> Scaling:
    return Scaling(scaling.bias[part], scaling.multiplier[part], scaling.shift[part])


def _bias(bias: IntArray) -> Scaling:
    """Parameters of a raw product, which has a bias only."""
    return Scaling(bias, np.zeros_like(bias), np.zeros_like(bias))
