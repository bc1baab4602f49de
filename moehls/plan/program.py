"""From the integer network to the step program of one machine shape (`docs/accelerator.md`, section 3).

In go an IntegerNetwork and a Shape, out comes a `Program`: steps in the order of the stream, and a `Stage` for every
value that lies in a memory. The depths of the shape take no part: they are compared with `Program.requirements`.
"""

from __future__ import annotations

from dataclasses import replace

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
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
    Widen,
)
from moehls.plan.builder import BINDINGS, bias_only, part_of
from moehls.plan.experts import ExpertSteps
from moehls.plan.instruction import (
    Binding,
    Flag,
    Instruction,
    Kind,
    Mode,
    Source,
)
from moehls.plan.payload import Biases, Parameters, Rows, header_words, headers_together
from moehls.plan.sections import in_sections
from moehls.plan.shape import Shape
from moehls.plan.splits import heads_in
from moehls.plan.steps import Access, Channels, InputPlace, Memory, Place, Program, part_name


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


class _Operations(ExpertSteps):
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
        own = self.blocks(Channels(width))
        parts = self.blocks_in(tokens, -(-blocks // own))  # pixels need no more room than the tokens they become
        whole = self.place_operand("m3", op.input, parts[0].rows, pixels, signed=False)
        self.input = InputPlace(tokens - op.prefix, pixels.count, blocks, self.beats_a_word())
        base = self.rows.take("residual", "stream", self.groups(tokens) * own)
        y = Place("residual", base, own, tokens, Channels(width))
        load = Instruction(Kind.LOAD, n2=y.stride, rows=tokens)
        before = f"{op.output} (initial)"
        for part in parts:
            name, prefix = op.name if len(parts) == 1 else f"{op.name}.row{part.first}", op.prefix * (part.first == 0)
            x, to = replace(whole, rows=part.rows), part.of(y, self.shape)
            instruction = Instruction(Kind.INPUT, n0=prefix, n2=blocks, rows=x.rows, y_base=x.base)
            self.step(f"{name}.input", op.name, instruction, None, writes=(Access(op.input, x),))
            if part.first == 0:
                self.step(f"{op.name}.initial", op.name, load, Rows(op.initial, y.stride), writes=(Access(before, y),))
            self.matrix(
                name, op.name, Mode.RESIDUAL, Access(op.input, x), op.weight, op.scaling, Access(op.output, to),
                also_reads=(Access(before, to),), tokens=x.rows - prefix, magnitudes=op.magnitudes,
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
        of_fine = isinstance(op.epilogue, Widen | AddResidual) and fine is not None and fine.memory == "m2"
        x = fine if of_fine and fine is not None else self.operand(op, op.input)
        out, rows = Channels(len(op.weight)), x.rows
        match op.epilogue:
            case Raw():
                self.raw(op, x, out)
            case Widen():
                y = self.place_side(op.output, rows, Channels(out.count, self.heads.get(op.output, 1)))
                self.matrix(
                    op.name, op.name, Mode.WIDE, Access(op.input, x), op.weight, op.scaling, Access(op.output, y),
                    magnitudes=op.magnitudes,
                )  # fmt: skip
                self.stage(op.output, "residual", y)
                self.store(op.output, "residual", y)
            case AddResidual(residual=residual):
                y = self.current_residual(op, residual)
                if (y.rows, y.channels) != (rows, out):
                    self.refuse(op, f"adds {rows} rows of {out.count} channels to a residual of another shape")
                self.matrix(
                    op.name, op.name, Mode.RESIDUAL, Access(op.input, x), op.weight, op.scaling, Access(op.output, y),
                    also_reads=(Access(residual, y),), magnitudes=op.magnitudes,
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
            if op.output in self.waits:
                self.waiting[op.output] = op
                return
            memory, heads = self.roles[op.output]
            out = Channels(out.count, heads)
            if gelu:
                self.refuse(op, "query, key and value are signed; GELU cannot come before attention")
        if (x.memory, memory) not in BINDINGS:
            self.refuse(op, "query, key, value and gated MLPs must be computed from the output of a LayerNorm")
        y = self.place_operand(memory, op.output, x.rows, out, signed=gelu is None)
        mode = Mode.GELU if gelu else Mode.REQUANTISE
        source, target = Access(op.input, x), Access(op.output, y)
        self.matrix(op.name, op.name, mode, source, op.weight, op.scaling, target, gelu=gelu, magnitudes=op.magnitudes)
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
            magnitudes=op.magnitudes,
        )  # fmt: skip
        self.stage(op.output, "operand", y)

    def raw(self, op: IntegerLinear, x: Place, out: Channels) -> None:
        y = self.raw_place(x.rows, out)
        source, target = Access(op.input, x), Access(op.output, y)
        self.matrix(op.name, op.name, Mode.RAW, source, op.weight, bias_only(op.scaling.bias), target)
        self.stage(op.output, "raw", y)
        self.store(op.output, "raw", y)

    def attention(self, op: IntegerAttention) -> None:
        waiting = [self.waiting.pop(name) for name in (op.query, op.key, op.value) if name in self.waiting]
        if not waiting:
            q, k, v = (self.operand(op, name) for name in (op.query, op.key, op.value))
            y = self.place_operand("m0", op.output, q.rows, q.channels)
            self.heads_of(op, range(op.heads), None, q, k, v, y)
            self.stage(op.output, "operand", y)
            return
        # the normed operand, which all heads read, stays in M0
        rows, channels = self.operand(waiting[0], waiting[0].input).rows, Channels(len(op.scaling.bias), op.heads)
        y = self.place_operand("m2", op.output, rows, channels)
        for heads in heads_in(op.heads, self.shape.head_groups):
            q, k, v = (self.of_heads(linear, op.heads, heads) for linear in waiting)
            self.heads_of(op, heads, heads.start * channels.count // op.heads, q, k, v, y)
            for linear in waiting:
                self.memory.release(linear.output)
        self.stage(op.output, "operand", y)

    def of_heads(self, op: IntegerLinear, count: int, heads: range) -> Place:
        """A LINEAR of some of the `count` heads of a query, key or value."""
        x, size, memory = self.operand(op, op.input), len(op.weight) // count, self.roles[op.output][0]
        part = slice(heads.start * size, heads.stop * size)
        y = self.place_operand(memory, op.output, x.rows, Channels(len(heads) * size, len(heads)))
        source, target = Access(op.input, x), Access(part_name(op.output, None, part.start), y)
        name, scaling = f"{op.name}.heads{heads.start}", part_of(op.scaling, part)
        self.matrix(
            name, op.name, Mode.REQUANTISE, source, op.weight[part], scaling, target, magnitudes=op.magnitudes[part]
        )
        self.stage(op.output, "operand", y, channel=part.start)
        return y

    def heads_of(
        self, op: IntegerAttention, heads: range, channel: int | None, q: Place, k: Place, v: Place, y: Place
    ) -> None:
        """Scores and contexts of `heads`, whose queries, keys and values lie at q, k and v, from channel `channel` on, to y."""
        if k.rows != v.rows or k.channels != q.channels or v.channels != q.channels:
            self.refuse(op, "query, key and value must have the same channels, key and value the same tokens")
        p_name, each = f"{op.name} (probabilities)", self.blocks(q.channels) // len(heads)
        parts, size = self.blocks_in(q.rows), q.channels.count // len(heads)
        columns = Channels(self.groups(k.rows) * self.shape.block)
        whole = self.place_operand("m3", p_name, parts[0].rows, columns, signed=False)
        query, key, value = (part_name(name, None, channel) for name in (op.query, op.key, op.value))
        for n, head in enumerate(heads):
            own, to = _head(q, n, each), _head(y, head, each)
            keys, values = Access(key, _head(k, n, each)), Access(value, _head(v, n, each))
            own_scaling = part_of(op.scaling, slice(head * size, (head + 1) * size))
            parameters = self.parameters(Channels(size), own_scaling, "channel")
            for part in parts:
                suffix = str(head) if len(parts) == 1 else f"{head}.row{part.first}"
                p = Access(p_name, replace(whole, rows=part.rows))
                self.scores(op, head, suffix, part.first, Access(query, part.of(own, self.shape)), keys, p)
                self.context(op, suffix, p, values, Access(op.output, part.of(to, self.shape)), parameters)
        self.memory.release(p_name)

    def scores(
        self, op: IntegerAttention, head: int, suffix: str, first: int, query: Access, key: Access, target: Access
    ) -> None:
        """Probabilities of the queries at `query`, of one head, from token `first` on, to `target`."""
        q, k, p = query.place, key.place, target.place
        biases = None if op.bias is None else Biases(op.bias.entries[head, first : first + q.rows])
        instruction = Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY | (Flag.PARAMETERS if biases else 0),
            n0=self.groups(q.rows), n1=p.stride, n2=self.blocks(q.channels), rows=k.rows,
            x_base=q.base, x_s0=q.stride, x_s2=1, w_base=k.base, w_s1=k.stride, w_s2=1,
            y_base=p.base, y_s0=p.stride, y_s1=1,
            multiplier=int(op.score_multiplier[head]), shift=int(op.score_shift[head]),
            offset=0 if op.bias is None else int(op.bias.shift[head]),
        )  # fmt: skip
        macs, name = q.rows * k.rows * q.channels.count, f"{op.name}.scores{suffix}"
        self.step(name, op.name, instruction, biases, reads=(query, key), writes=(target,), macs=macs)

    def context(
        self, op: IntegerAttention, suffix: str, source: Access, value: Access, target: Access, parameters: Parameters
    ) -> None:
        """Sums of the values, weighed by the probabilities at `source`, to `target`."""
        p, v, y = source.place, value.place, target.place
        last = p.stride - 1  # keys come from the last group to the first
        instruction = Instruction(
            Kind.LINEAR, Mode.CONTEXT, BINDINGS["m3", y.memory], Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED,
            n0=self.groups(p.rows), n1=self.blocks(v.channels), n2=p.stride, rows=v.rows,
            x_base=p.base + last, x_s0=p.stride, x_s2=-1, w_base=v.base + last * v.stride, w_s1=1, w_s2=-v.stride,
            y_base=y.base, y_s0=y.stride, y_s1=1,
        )  # fmt: skip
        macs, name = p.rows * v.rows * v.channels.count, f"{op.name}.context{suffix}"
        self.step(name, op.name, instruction, parameters, reads=(source, value), writes=(target,), macs=macs)


def _head(place: Place, head: int, blocks: int) -> Place:
    """The part of `place` that head `head` takes, `blocks` blocks."""
    size = place.channels.count // place.channels.heads
    return Place(place.memory, place.base + head * blocks, place.stride, place.rows, Channels(size), place.signed)
