"""Steps, places and stages: what the operations of `moehls.plan.program` are put together from.

A `Builder` collects the steps of a program in order and knows where every live value lies.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NoReturn

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    Scaling,
    TensorKind,
    WeightArray,
)
from moehls.plan.allocate import Allocator
from moehls.plan.bounds import epilogue_bounds
from moehls.plan.instruction import (
    ANY_TASK,
    NO_CAPACITY,
    NO_EXPERT,
    NO_SPLIT,
    Binding,
    Flag,
    Gating,
    Instruction,
    Kind,
    Mode,
    Source,
    Target,
)
from moehls.plan.packing import Form
from moehls.plan.payload import Biases, Matrix, Parameters, Payload
from moehls.plan.shape import Shape
from moehls.plan.splits import Block, blocks_of, blockwise_norms, waiting_linears
from moehls.plan.steps import (
    Access,
    Channels,
    InputPlace,
    Memory,
    OutputPlace,
    Place,
    Requirements,
    Stage,
    Step,
    part_name,
)
from moehls.plan.uses import attention_roles, factors, heads_of_norms, last_uses

BINDINGS: dict[tuple[Memory, Memory], Binding] = {
    ("m0", "m1"): Binding.QUERY_VALUE,
    ("m0", "m2"): Binding.KEY,
    ("m1", "m3"): Binding.SCORES,
    ("m3", "m0"): Binding.CONTEXT,
    ("m0", "m3"): Binding.PROJECT,
    ("m2", "m3"): Binding.ROUTER,
    ("m1", "m2"): Binding.UP,
    ("m3", "m2"): Binding.CONTEXT_BESIDE,
}
"""(X, Y) of a LINEAR step; a mode that writes elsewhere takes any binding with its X."""
_WITHOUT_Y = {"m0": Binding.PROJECT, "m1": Binding.SCORES, "m2": Binding.ROUTER, "m3": Binding.CONTEXT}


@dataclass
class Builder:
    network: IntegerNetwork
    shape: Shape
    steps: list[Step] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    outputs: list[OutputPlace] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    memory: Allocator = field(default_factory=Allocator)
    residual: str | None = None
    """the value in the residual memory"""
    input: InputPlace | None = None
    raw_depth: int = 1
    rows: Allocator = field(default_factory=Allocator)
    """of the residual memory"""
    sides: dict[str, Place] = field(default_factory=dict)
    """residual values beside the stream: pooled, constant, wide"""
    waiting: dict[str, IntegerLinear] = field(default_factory=dict)
    """queries, keys and values that are made with their attention, a group of heads at a time"""
    norms: dict[str, IntegerNorm] = field(default_factory=dict)
    """of the fine values that are made with their readers, a block of tokens at a time"""
    expert_groups: set[int] = field(default_factory=set)
    """sizes of the groups that routers choose experts from"""

    def __post_init__(self) -> None:
        self.roles, self.last_use = attention_roles(self.network), last_uses(self.network)
        self.factors = factors(self.network)
        self.heads = heads_of_norms(self.network, self.roles)
        self.shown = {output.value for output in self.network.outputs}
        self.waits, self.blockwise = (
            waiting_linears(self.network, self.shape),
            blockwise_norms(self.network, self.shape),
        )
        for op in self.network.operations:  # what they read is read again later
            if isinstance(op, IntegerLinear) and op.output in self.waits:
                self._read_until(self.waits[op.output], op.input)
            if isinstance(op, IntegerNorm) and op.fine in self.blockwise:
                self._read_until(self.blockwise[op.fine], op.input)
                if op.operand in self.last_use:
                    self._read_until(self.blockwise[op.fine], op.operand)

    def _read_until(self, index: int, value: str) -> None:
        self.last_use[value] = max(index, self.last_use.get(value, -1))

    def release(self, index: int) -> None:
        """Give back what no operation after `index` reads."""
        for value in [v for v in self.places if self.last_use.get(v, -1) <= index]:
            self.memory.release(value)
            del self.places[value]
            if value == self.residual:  # another stream may lie there now
                self.rows.release("stream")
                self.residual = None
        for value in [v for v in self.sides if self.last_use.get(v, -1) <= index]:
            self.rows.release(value)
            del self.sides[value]

    def requirements(self) -> Requirements:
        instructions = [step.instruction for step in self.steps]
        streams = [s.payload for s in self.steps if isinstance(s.payload, Matrix)]
        contexts = [s.instruction for s in self.steps if s.instruction.mode == Mode.CONTEXT]
        norms = [s.instruction for s in self.steps if s.instruction.kind == Kind.NORM]
        keyed = [i for i in instructions if i.kind == Kind.ROUTE or (i.kind == Kind.LINEAR and i.mode == Mode.SOFTMAX)]
        routes = [s.instruction for s in self.steps if s.instruction.kind == Kind.ROUTE]
        blocks = [i.n2 for i in instructions if i.kind in (Kind.LOAD, Kind.NORM, Kind.POOL)]
        bounds = epilogue_bounds(self.steps, self.shape.block, self.network.precision)
        return Requirements(
            activation_depth=self.memory.depth,
            residual_depth=self.rows.depth,
            raw_depth=self.raw_depth,
            kept_depth=max((m.input_blocks for m in streams), default=1),
            norm_depth=max(blocks, default=1),
            parameter_depth=max((i.n1 for i in contexts), default=1),
            max_tokens=max([self.network.tokens, *(i.rows for i in keyed)]),
            max_experts=max([s.instruction.n0 for s in self.steps if s.instruction.kind == Kind.ROUTE], default=1),
            gated=any(s.instruction.mode == Mode.GATED for s in self.steps if s.instruction.kind == Kind.LINEAR),
            pools=any(s.instruction.kind == Kind.POOL for s in self.steps),
            plain_norms=any(i.flags & Flag.PLAIN for i in norms),
            thresholds=any(i.offset for i in routes),
            capacities=any(i.split != NO_CAPACITY for i in routes),
            rooms=any(i.mode & Gating.ROOM for i in routes),
            sigmoids=any(i.mode & Gating.SIGMOID for i in routes),
            expert_group=max(self.expert_groups, default=0),
            selections=any(i.mode & Gating.SELECTION for i in routes),
            weighed_inputs=any(i.kind == Kind.GATHER and i.mode for i in instructions),
            sides=any(i.kind == Kind.LOAD and i.y_base for i in instructions),
            norm_targets=any(i.mode != Target.M0 for i in norms),
            wide=any(i.kind == Kind.LINEAR and i.mode == Mode.WIDE for i in instructions),
            biased=any(isinstance(step.payload, Biases) for step in self.steps),
            bias_shift_low=bounds.bias_shift_low,
            bias_shift_high=bounds.bias_shift_high,
            beside=any(i.kind == Kind.LINEAR and i.binding == Binding.CONTEXT_BESIDE for i in instructions),
            scaled_bits=bounds.scaled_bits,
            shift_low=bounds.shift_low,
            shift_high=bounds.shift_high,
            second_bits=bounds.second_bits,
            second_shift_low=bounds.second_shift_low,
            second_shift_high=bounds.second_shift_high,
            channel_bias_bits=self.shape.channel_bias_bits,
            activated_bias_bits=self.shape.activated_bias_bits,
            channel_shift_bits=self.shape.channel_shift_bits,
        )

    def matrix(
        self, name: str, operation: str, mode: Mode, source: Access, weight: WeightArray, scaling: Scaling,
        target: Access, *, also_reads: tuple[Access, ...] = (), gelu: GeluRequantise | None = None,
        task: int = ANY_TASK, expert: int = NO_EXPERT, tokens: int | None = None, factor: Access | None = None,
        flags: int = 0, magnitudes: IntArray | None = None,
    ) -> None:  # fmt: skip
        """A LINEAR step in stream order, over `tokens` real rows of `source` (all by default); GATED multiplies with `factor`."""
        x, y = source.place, target.place
        if weight.shape[1] != x.channels.count:
            raise MoehlsError(f"{name}: {weight.shape[1]} input channels, but {source.value!r} has {x.channels.count}")
        blocks, planes = self.blocks(x.channels), x.planes
        form: Form = "raw" if mode == Mode.RAW else "activated" if gelu else "channel"
        parameters = self.parameters(y.channels, scaling, form, gelu)
        matrix = Matrix(parameters, weight, blocks, x.channels.positions(self.shape.block), magnitudes)
        y_s0, y_s1 = (0, 0) if mode == Mode.SCATTER else (1, y.stride)
        writes_memory = mode in (Mode.REQUANTISE, Mode.GELU, Mode.GATED)
        instruction = Instruction(
            Kind.LINEAR,
            mode,
            BINDINGS[x.memory, y.memory] if writes_memory else _WITHOUT_Y[x.memory],
            flags=flags | (0 if x.signed else Flag.X_UNSIGNED),
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
            multiplier=gelu.form if gelu else 0,
        )
        if factor is not None:
            instruction = replace(instruction, w_base=factor.place.base, w_s0=1, w_s1=factor.place.stride)
            also_reads += (factor,)
        macs = weight.size * (1 if expert != NO_EXPERT else tokens or x.rows)
        self.step(name, operation, instruction, matrix, reads=(source, *also_reads), writes=(target,), macs=macs)

    def step(
        self, name: str, operation: str, instruction: Instruction, payload: Payload | None, *,
        reads: tuple[Access, ...] = (), writes: tuple[Access, ...] = (), macs: int = 0,
    ) -> None:  # fmt: skip
        if payload is not None:
            instruction = replace(instruction, payload_words=payload.count(self.shape))
        self.steps.append(Step(name, operation, instruction, payload, macs, reads, writes))

    def section(self, name: str, operation: str, experts: int) -> None:
        """The experts that follow are read by choice, where the shape prefetches them."""
        if self.shape.experts == "prefetched":
            self.step(name, operation, Instruction(Kind.SECTION, n0=experts), None)

    def blocks_in(self, rows: int, at_most: int | None = None) -> tuple[Block, ...]:
        """`rows` rows in as many blocks of tokens as the shape asks for."""
        parts = self.shape.token_blocks if at_most is None else min(at_most, self.shape.token_blocks)
        return tuple(blocks_of(rows, parts, self.shape))

    def store(
        self, value: str, kind: TensorKind, place: Place, rows: int | None = None, row: int | None = None
    ) -> None:
        """A STORE of `value`, if it is an output; of one of `rows` rows in all that lies there from row `row` on."""
        names = [output.name for output in self.network.outputs if output.value == value]
        if not names:
            return
        source = {"residual": Source.RESIDUAL, "fine": Source.FINE, "raw": Source.RAW}[kind]
        blocks = self.blocks(place.channels)
        base = {"x_base": place.base} if kind == "fine" else {"y_base": place.base} if kind == "raw" else {}
        base |= {"w_s0": place.base // blocks} if kind == "residual" else {}
        instruction = Instruction(Kind.STORE, source, n2=blocks, rows=place.rows, **base)
        wide = 64 if self.shape.precision.accumulator_bits > 32 else 32
        bits = wide if kind == "raw" else 16
        beat = max((o.beat + o.beats for o in self.outputs), default=0)
        for name in names if not row else ():
            output = OutputPlace(
                name, value, kind, beat, rows or place.rows, place.channels.count, blocks, self.shape.block, bits
            )
            self.outputs.append(output)
        self.step(f"store {value}", "", instruction, None, reads=(Access(part_name(value, row), place),))

    def stage(
        self, value: str, kind: TensorKind, place: Place, task: int = ANY_TASK, row: int | None = None, channel: int | None = None
    ) -> None:  # fmt: skip
        self.stages.append(Stage(value, kind, len(self.steps) - 1, task, place, row, channel))

    def update(self, before: str, after: str, place: Place) -> None:
        """The residual value `before` was replaced by `after`."""
        if before in self.sides:
            self.sides[after] = self.sides.pop(before)
            self.rows.rename(before, after)
        else:
            self.residual = after
            self.places[after] = place
        self.stage(after, "residual", place)
        self.store(after, "residual", place)

    def place_operand(self, memory: Memory, value: str, rows: int, channels: Channels, *, signed: bool = True) -> Place:
        blocks = self.blocks(channels)
        place = Place(
            memory, self.memory.take(memory, value, self.groups(rows) * blocks), blocks, rows, channels, signed
        )
        self.places[value] = place
        return place

    def place_side(self, value: str, rows: int, channels: Channels) -> Place:
        """Rows of the residual memory, at an address as of a group of such rows from 0 on."""
        blocks = self.blocks(channels)
        base = self.rows.take("residual", value, self.groups(rows) * blocks, blocks)
        place = Place("residual", base, blocks, rows, channels)
        self.sides[value] = place
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
        if value in self.sides:
            return self.sides[value]
        if value != self.residual:
            self.refuse(op, f"reads the residual {value!r}, which was replaced by {self.residual!r}")
        return self.places[value]

    def parameters(
        self, channels: Channels, scaling: Scaling, form: Form = "row", gelu: GeluRequantise | None = None
    ) -> Parameters:
        positions = channels.positions(self.shape.block)
        second = gelu.multiplier if gelu else None
        return Parameters(
            self.blocks(channels), positions, scaling.bias, scaling.multiplier, scaling.shift, second, form
        )

    def blocks(self, channels: Channels) -> int:
        return channels.blocks(self.shape.block)

    def groups(self, rows: int) -> int:
        return -(-rows // self.shape.token_parallel)

    def beats_a_word(self) -> int:
        return -(-self.shape.block * self.shape.precision.activation_bits // 128)

    def refuse(self, op: IntegerOperation, what: str) -> NoReturn:
        raise MoehlsError(f"{op.name}: {what}; the machine has no step for it, so change the model or report it")


def part_of(scaling: Scaling, part: int | slice) -> Scaling:
    return Scaling(scaling.bias[part], scaling.multiplier[part], scaling.shift[part])


def bias_only(bias: IntArray) -> Scaling:
    """Parameters of a raw product, which has a bias only."""
    return Scaling(bias, np.zeros_like(bias), np.zeros_like(bias))
