"""From the integer network to the step program of one machine shape (`docs/accelerator.md`, section 3).

In go an IntegerNetwork and a Shape, out comes a `Program`: steps in the order of the stream, and a `Stage` for every
value that lies in a memory. The depths of the shape take no part: they are compared with `Program.requirements`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    GeluRequantise,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerRoute,
    Raw,
    Requantise,
    Scaling,
    TensorKind,
    WeightArray,
)
from moehls.plan.allocate import Allocator
from moehls.plan.instruction import ANY_TASK, NO_EXPERT, NO_SPLIT, Binding, Flag, Instruction, Kind, Mode, Source
from moehls.plan.payload import Matrix, Parameters, Payload, Rows
from moehls.plan.shape import Shape
from moehls.plan.steps import (
    Access,
    Channels,
    InputPlace,
    Memory,
    OutputPlace,
    Place,
    Program,
    Requirements,
    Stage,
    Step,
)
from moehls.plan.uses import attention_roles, last_uses

BINDINGS: dict[tuple[Memory, Memory], Binding] = {
    ("m0", "m1"): Binding.QUERY_VALUE,
    ("m0", "m2"): Binding.KEY,
    ("m1", "m3"): Binding.SCORES,
    ("m3", "m0"): Binding.CONTEXT,
    ("m0", "m3"): Binding.PROJECT,
    ("m2", "m3"): Binding.ROUTER,
}
"""(X, Y) of a LINEAR step; a mode that writes elsewhere takes any binding with its X."""
_WITHOUT_Y = {"m0": Binding.PROJECT, "m1": Binding.SCORES, "m2": Binding.ROUTER, "m3": Binding.CONTEXT}


def build_program(network: IntegerNetwork, shape: Shape) -> Program:
    """The steps of `network` on a machine with the parallelism of `shape`.

    Raises:
        MoehlsError: an operation that the machine has no step for, by name, and what to do.
    """
    return _Builder(network, shape).build()


@dataclass
class _Builder:
    network: IntegerNetwork
    shape: Shape
    steps: list[Step] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    outputs: list[OutputPlace] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    memory: Allocator = field(default_factory=Allocator)
    residual: str | None = None
    input: InputPlace | None = None
    raw_depth: int = 1

    def build(self) -> Program:
        self.roles, self.last_use = attention_roles(self.network), last_uses(self.network)
        self.shown = {output.value for output in self.network.outputs}
        for index, operation in enumerate(self.network.operations):
            self.operation(operation)
            for value in [v for v in self.places if self.last_use.get(v, -1) <= index]:
                self.memory.release(value)
                if value != self.residual:
                    del self.places[value]
        self.step("end", "", Instruction(Kind.END), None)
        for output in self.network.outputs:
            if all(place.name != output.name for place in self.outputs):
                raise MoehlsError(f"output {output.name!r}: the value {output.value!r} is not computed by the network")
        if self.input is None:
            raise MoehlsError("the network has no patch embedding; the machine starts with one")
        return Program(tuple(self.steps), tuple(self.stages), self.input, tuple(self.outputs), self.requirements())

    def requirements(self) -> Requirements:
        streams = [s.payload for s in self.steps if isinstance(s.payload, Matrix)]
        contexts = [s.instruction for s in self.steps if s.instruction.mode == Mode.CONTEXT]
        residual = [s.instruction.n2 for s in self.steps if s.instruction.kind == Kind.LOAD]
        return Requirements(
            activation_depth=self.memory.depth,
            residual_depth=self.groups(self.network.tokens) * max(residual, default=1),
            raw_depth=self.raw_depth,
            kept_depth=max((m.input_blocks * m.planes for m in streams), default=1),
            norm_depth=max(residual, default=1),
            parameter_depth=max((i.payload_words for i in contexts), default=1),
            max_tokens=self.network.tokens,
            max_experts=max([s.instruction.expert + 1 for s in self.steps if s.instruction.expert != NO_EXPERT] + [1]),
        )

    def operation(self, operation: IntegerOperation) -> None:
        match operation:
            case IntegerEmbed():
                self.embed(operation)
            case IntegerNorm():
                self.norm(operation)
            case IntegerLinear():
                self.linear(operation)
            case IntegerAttention():
                self.attention(operation)
            case IntegerRoute():
                self.route(operation)
            case IntegerExperts():
                self.experts(operation)

    # --- operations

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
        y = Place("residual", 0, self.blocks(Channels(width)), tokens, Channels(width))
        load = Instruction(Kind.LOAD, n2=y.stride, rows=tokens)
        before = f"{op.output} (initial)"
        self.step(f"{op.name}.initial", op.name, load, Rows(op.initial, y.stride), writes=(Access(before, y),))
        read = Access(op.input, x)
        self.matrix(op.name, op.name, Mode.RESIDUAL, x, read, op.weight, op.scaling, y, op.output, before)
        if op.prefix:  # the product added the bias of the patches to the prefix tokens too: load them once more
            again = replace(load, rows=op.prefix)
            rows, y_prefix = Rows(op.initial[: op.prefix], y.stride), replace(y, rows=op.prefix)
            self.step(f"{op.name}.prefix", op.name, again, rows, writes=(Access(op.output, y_prefix),))
        self.update(before, op.output, y)

    def norm(self, op: IntegerNorm) -> None:
        x = self.current_residual(op, op.input)
        rows, blocks, tt = op.stop - op.start, x.stride, self.shape.token_parallel
        y = self.place_operand("m0", op.operand, rows, x.channels)
        planes = 16 // self.shape.precision.activation_bits
        fine_is_read = op.fine in self.last_use or op.fine in self.shown
        base = self.memory.take("m2", op.fine, self.groups(rows) * planes * blocks) if fine_is_read else 0
        fine = Place("m2", base, planes * blocks, rows, x.channels, planes=planes)
        instruction = Instruction(
            Kind.NORM,
            flags=Flag.PLANES if fine_is_read else 0,
            n2=blocks,
            rows=rows,
            channels=x.channels.count,
            epsilon=op.epsilon,
            w_base=op.start % tt,
            w_s0=op.start // tt,
            x_base=base,
            y_base=y.base,
        )
        writes = (Access(op.operand, y),) + ((Access(op.fine, fine),) if fine_is_read else ())
        parameters = self.parameters(x.channels, op.scaling)
        self.step(op.name, op.name, instruction, parameters, reads=(Access(op.input, x),), writes=writes)
        self.stage(op.operand, "operand", y)
        if fine_is_read:
            self.places[op.fine] = fine
            self.stage(op.fine, "fine", fine)
            self.store(op.fine, "fine", fine)

    def linear(self, op: IntegerLinear) -> None:
        x = self.operand(op, op.input)
        out, rows = Channels(len(op.weight)), x.rows
        match op.epilogue:
            case Raw():
                self.raw(op, x, out)
            case AddResidual(residual=residual):
                y = self.current_residual(op, residual)
                if (y.rows, y.channels) != (rows, out):
                    self.refuse(op, f"adds {rows} rows of {out.count} channels to a residual of another shape")
                read = Access(op.input, x)
                self.matrix(op.name, op.name, Mode.RESIDUAL, x, read, op.weight, op.scaling, y, op.output, residual)
                self.update(residual, op.output, y)
            case Requantise():
                self.requantise(op, x, out, None)
            case GeluRequantise() as gelu:
                self.requantise(op, x, out, gelu)

    def requantise(self, op: IntegerLinear, x: Place, out: Channels, gelu: GeluRequantise | None) -> None:
        memory: Memory = "m0" if x.memory == "m3" else "m3"
        if op.output in self.roles:
            memory, heads = self.roles[op.output]
            out = Channels(out.count, heads)
            if gelu:
                self.refuse(op, "query, key and value are signed; GELU cannot come before attention")
        if (x.memory, memory) not in BINDINGS:
            self.refuse(op, "query, key and value must be computed from the output of a LayerNorm")
        y = self.place_operand(memory, op.output, x.rows, out, signed=gelu is None)
        mode = Mode.GELU if gelu else Mode.REQUANTISE
        read = Access(op.input, x)
        self.matrix(op.name, op.name, mode, x, read, op.weight, op.scaling, y, op.output, gelu=gelu)
        self.stage(op.output, "operand", y)

    def raw(self, op: IntegerLinear, x: Place, out: Channels) -> None:
        y = self.raw_place(x.rows, out)
        scaling = Scaling(op.scaling.bias, np.zeros_like(op.scaling.bias), np.zeros_like(op.scaling.bias))
        self.matrix(op.name, op.name, Mode.RAW, x, Access(op.input, x), op.weight, scaling, y, op.output)
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
            scores = Instruction(
                Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY,
                n0=queries, n1=keys, n2=each, rows=k.rows,
                x_base=q.base + head * each, x_s0=q.stride, x_s2=1,
                w_base=k.base + head * each, w_s1=k.stride, w_s2=1,
                y_base=p.base, y_s0=p.stride, y_s1=1,
                multiplier=int(op.score_multiplier[head]), shift=int(op.score_shift[head]),
            )  # fmt: skip
            reads = (Access(op.query, _head(q, head, each)), Access(op.key, _head(k, head, each)))
            macs = q.rows * k.rows * size
            name = f"{op.name}.scores{head}"
            self.step(name, op.name, scores, None, reads=reads, writes=(Access(p_name, p),), macs=macs)
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
        y = Place("queue", 0, 0, x.rows, Channels(experts))
        for task in range(tasks):
            number, suffix = (task, f".task{task}") if tasks > 1 else (ANY_TASK, "")
            name = f"{op.name}{suffix}"
            scaling = Scaling(op.bias[task], np.zeros_like(op.bias[task]), np.zeros_like(op.bias[task]))
            logits, raw = f"{op.output} (logits{suffix})", self.raw_place(x.rows, Channels(experts))
            read = Access(op.input, x)
            self.matrix(
                f"{name}.logits", op.name, Mode.RAW, x, read, op.weight[task], scaling, raw, logits, task=number
            )
            instruction = Instruction(
                Kind.ROUTE, flags=chosen, task=number, n0=experts, n1=op.k, n2=raw.stride, rows=x.rows,
                multiplier=int(op.multiplier[task]), shift=int(op.shift[task]),
            )  # fmt: skip
            reads, writes = (Access(logits, raw),), (Access(op.output, y),)
            self.step(name, op.name, instruction, None, reads=reads, writes=writes)
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
        h = self.place_operand("m3", h_name, x.rows, hidden, signed=False)
        queue = Access(op.routing, routing)
        value = op.residual
        for e in range(len(op.first_weight)):
            name, after = f"{op.name}.expert{e}", op.output if e + 1 == len(op.first_weight) else f"{op.output} ({e})"
            gather = Instruction(Kind.GATHER, expert=e, n2=blocks, rows=x.rows, x_base=x.base, y_base=g.base)
            own_g, own_h = Access(f"{g_name} {e}", g), Access(f"{h_name} {e}", h)
            self.step(f"{name}.gather", op.name, gather, None, reads=(Access(op.input, x), queue), writes=(own_g,))
            gelu = replace(op.gelu, multiplier=op.gelu.multiplier[e])
            first, second = _part(op.first_scaling, e), _part(op.second_scaling, e)
            self.matrix(
                f"{name}.first", op.name, Mode.GELU, g, own_g, op.first_weight[e], first, h, own_h.value,
                gelu=gelu, expert=e,
            )  # fmt: skip
            self.matrix(
                f"{name}.second", op.name, Mode.SCATTER, h, own_h, op.second_weight[e], second, y, after, value,
                expert=e, queue=queue,
            )  # fmt: skip
            value = after
        self.memory.release(g_name)
        self.memory.release(h_name)
        self.update(op.residual, op.output, y)

    # --- steps

    def matrix(
        self, name: str, operation: str, mode: Mode, x: Place, read: Access, weight: WeightArray, scaling: Scaling,
        y: Place, value: str, before: str | None = None, *, gelu: GeluRequantise | None = None,
        task: int = ANY_TASK, expert: int = NO_EXPERT, queue: Access | None = None,
    ) -> None:  # fmt: skip
        """A LINEAR step in stream order; `before` is the value that `value` replaces in place."""
        if weight.shape[1] != x.channels.count:
            raise MoehlsError(f"{name}: {weight.shape[1]} input channels, but {read.value!r} has {x.channels.count}")
        blocks, planes = self.blocks(x.channels), x.planes
        parameters = self.parameters(y.channels, scaling, gelu)
        matrix = Matrix(parameters, weight, blocks, x.channels.positions(self.shape.block), planes)
        y_s0, y_s1 = {Mode.SCATTER: (0, 0)}.get(mode, (1, y.stride))
        writes_memory = mode in (Mode.REQUANTISE, Mode.GELU)
        instruction = Instruction(
            Kind.LINEAR,
            mode,
            BINDINGS[x.memory, y.memory] if writes_memory else _WITHOUT_Y[x.memory],
            flags=0 if x.signed else Flag.X_UNSIGNED,
            task=task,
            expert=expert,
            n0=parameters.blocks,
            n1=self.groups(x.rows),
            n2=blocks * planes,
            rows=x.rows,
            x_base=x.base,
            x_s1=x.stride,
            x_s2=1,
            y_base=y.base,
            y_s0=y_s0,
            y_s1=y_s1,
            split=blocks if planes == 2 else NO_SPLIT,
            shift=gelu.shift if gelu else 0,
            offset=gelu.offset if gelu else 0,
        )
        reads = (read,) + ((Access(before, y),) if before else ()) + ((queue,) if queue else ())
        macs = weight.size * (1 if expert != NO_EXPERT else x.rows)
        self.step(name, operation, instruction, matrix, reads=reads, writes=(Access(value, y),), macs=macs)

    def step(
        self, name: str, operation: str, instruction: Instruction, payload: Payload | None, *,
        reads: tuple[Access, ...] = (), writes: tuple[Access, ...] = (), macs: int = 0,
    ) -> None:  # fmt: skip
        if payload is not None:
            instruction = replace(instruction, payload_words=payload.count(self.shape))
        self.steps.append(Step(name, operation, instruction, payload, macs, reads, writes))

    def store(self, value: str, kind: TensorKind, place: Place) -> None:
        """A STORE of `value`, if it is an output."""
        names = [output.name for output in self.network.outputs if output.value == value]
        if not names:
            return
        source = {"residual": Source.RESIDUAL, "fine": Source.FINE, "raw": Source.RAW}[kind]
        blocks = self.blocks(place.channels)
        base = {"x_base": place.base} if kind == "fine" else {"y_base": place.base}
        instruction = Instruction(Kind.STORE, source, n2=blocks, rows=place.rows, **base)
        wide = 64 if self.shape.precision.accumulator_bits > 32 else 32
        bits = wide if kind == "raw" else 16
        beat = max((o.beat + o.beats for o in self.outputs), default=0)
        for name in names:
            output = OutputPlace(
                name, value, kind, beat, place.rows, place.channels.count, blocks, self.shape.block, bits
            )
            self.outputs.append(output)
        self.step(f"store {value}", "", instruction, None, reads=(Access(value, place),))

    def stage(self, value: str, kind: TensorKind, place: Place, task: int = ANY_TASK) -> None:
        self.stages.append(Stage(value, kind, len(self.steps) - 1, task, place))

    def update(self, before: str, after: str, place: Place) -> None:
        """The residual value `before` was replaced by `after`."""
        self.residual = after
        self.places[after] = place
        self.stage(after, "residual", place)
        self.store(after, "residual", place)

    # --- places

    def place_operand(self, memory: Memory, value: str, rows: int, channels: Channels, *, signed: bool = True) -> Place:
        blocks = self.blocks(channels)
        place = Place(
            memory, self.memory.take(memory, value, self.groups(rows) * blocks), blocks, rows, channels, signed
        )
        self.places[value] = place
        return place

    def raw_place(self, rows: int, channels: Channels) -> Place:
        blocks = self.blocks(channels)
        self.raw_depth = max(self.raw_depth, rows * blocks)
        return Place("raw", 0, blocks, rows, channels)

    def operand(self, op: IntegerOperation, value: str) -> Place:
        place = self.places.get(value)
        if place is None or place.memory not in ("m0", "m1", "m2", "m3") or place.planes != 1:
            self.refuse(op, f"its input {value!r} is not an operand in an activation memory")
        if isinstance(op, IntegerAttention) != (value in self.roles):
            self.refuse(op, f"{value!r} must be read by one attention and by nothing else")
        return place

    def current_residual(self, op: IntegerOperation, value: str) -> Place:
        if value != self.residual:
            self.refuse(op, f"reads the residual {value!r}, which was replaced by {self.residual!r}")
        return self.places[value]

    def parameters(self, channels: Channels, scaling: Scaling, gelu: GeluRequantise | None = None) -> Parameters:
        positions = channels.positions(self.shape.block)
        second = gelu.multiplier if gelu else None
        return Parameters(self.blocks(channels), positions, scaling.bias, scaling.multiplier, scaling.shift, second)

    def blocks(self, channels: Channels) -> int:
        return channels.blocks(self.shape.block)

    def groups(self, rows: int) -> int:
        return -(-rows // self.shape.token_parallel)

    def beats_a_word(self) -> int:
        return -(-self.shape.block * self.shape.precision.activation_bits // 128)

    def refuse(self, op: Any, what: str) -> NoReturn:
        raise MoehlsError(f"{op.name}: {what}; the machine has no step for it, so change the model or report it")


def _head(place: Place, head: int, blocks: int) -> Place:
    """The part of `place` that head `head` takes, `blocks` blocks."""
    size = place.channels.count // place.channels.heads
    return replace(place, base=place.base + head * blocks, channels=Channels(size))


def _part(scaling: Scaling, part: int | slice) -> Scaling:
    return Scaling(scaling.bias[part], scaling.multiplier[part], scaling.shift[part])
