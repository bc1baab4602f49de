"""Random programs of single steps as checks of a campaign: data, sizes and addresses that no network of the tests reaches.

The functional model (`tests/plan/machine.py`, written from docs/accelerator.md) says what the results and the memories hold
at the end. Words that the program does not write depend on what was there before; the model, run twice from opposite
memories, shows which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray
from moehls.plan.check import ENGINE
from moehls.plan.instruction import NO_SPLIT, Binding, Flag, Instruction, Kind, Mode, Source
from moehls.plan.layout import CHUNK_BYTES, port_chunks
from moehls.plan.shape import Shape
from moehls.simulate.csim import Library, Memories
from moehls.simulate.faults import Checked
from moehls.simulate.rtl import Images, RtlSimulator, peeked
from moehls.simulate.simulator import MemoryImages
from tests.csim.bench import Bench, BenchStep, memory_of, model_state, step_beats, stream_of
from tests.plan.machine import Machine
from tests.tb.edge_programs import edge_programs
from tests.tb.extreme_programs import extreme_programs, filled
from tests.tb.short_programs import short_programs

_PAGE = 4096
_UNREAD = ("exponents of m0", "exponents of m1", "exponents of m2")
"""the RTL keeps no bits that nobody reads"""
_STATE = (*(f"{what}m{n}" for n in range(4) for what in ("", "exponents of ")), "residual", "raw", "queue", "count")
_TYPES: dict[str, type[np.generic]] = {"residual": np.int16, "raw": np.int64, "queue": np.int64, "count": np.int64}
"""types that hold a memory's values; all others fit 16 bits"""
_SPECIAL = {Mode.RESIDUAL: "residual", Mode.WIDE: "residual", Mode.SCATTER: "residual", Mode.RAW: "raw"}


def written(instruction: Instruction) -> tuple[str, ...]:
    """The memories that a step writes, with the exponents that somebody reads."""
    mode = instruction.mode
    match instruction.kind:
        case Kind.INPUT:
            return ("m3", "exponents of m3")
        case Kind.LOAD:
            return ("residual",)
        case Kind.NORM:
            return (f"m{mode}", *(("m2",) if instruction.flags & Flag.PLANES else ()))
        case Kind.POOL:
            return ("residual",) if mode == Source.RESIDUAL else ("m0",)
        case Kind.ROUTE:
            return ("queue", "count")
        case Kind.GATHER:
            return ("m1",)
        case Kind.LINEAR:
            name = _SPECIAL[Mode(mode)] if mode in _SPECIAL else ENGINE[Binding(instruction.binding)][2]
            return (name, "exponents of m3") if name == "m3" else (name,)
    return ()


@dataclass(frozen=True)
class Left:
    """What a step leaves in a memory, and which words of it the program has written."""

    step: int
    memory: str
    values: IntArray
    known: npt.NDArray[np.bool_]


class StepProgram:
    """A program, its input, and what must be in the results and, after every step, in the memories."""

    def __init__(self, bench: Bench, steps: list[BenchStep], form: Any) -> None:
        self.shape = bench.shape
        self.program = [*steps, BenchStep(Instruction(Kind.END))]
        self.stream = stream_of(self.program, self.shape)
        self.pixels = np.concatenate([part.ravel() for part in bench.pixels]) if bench.pixels else np.zeros(0, np.uint8)
        self.beats = sum(step_beats(step.instruction, self.shape) for step in steps)
        last = len(steps) - 1
        every = [name for name in _STATE if name not in _UNREAD]
        places = [every if n == last else list(written(step.instruction)) for n, step in enumerate(steps)]
        self.results, values = self._run(_extreme(Machine(self.shape, form)), places)
        same, others = self._run(_opposite(_extreme(Machine(self.shape, form))), places)
        assert self.results == same, "a program sends what it never wrote"
        where = [(step, name) for step, names in enumerate(places) for name in names]
        self.left = [
            Left(step, name, value, self._known(step, name, value == other))
            for (step, name), value, other in zip(where, values, others, strict=True)
        ]

    def _run(self, machine: Machine, places: list[list[str]]) -> tuple[bytes, list[IntArray]]:
        """The results, and the memories at the places."""
        kept: list[IntArray] = []

        def keep(step: int, after: Machine) -> None:
            state = model_state(after)
            kept.extend(state[name].astype(_TYPES.get(name, np.uint16)) for name in places[step])

        return machine.run(self.stream, self.pixels.tobytes(), 0, keep), kept

    def _known(self, step: int, name: str, same: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Words that the program has written: they do not depend on what was there before."""
        if name == "count":  # a router leaves the counts of the experts that it has not
            routes = [s.instruction.n0 for s in self.program[: step + 1] if s.instruction.kind == Kind.ROUTE]
            same &= np.arange(self.shape.max_experts) < (routes[-1] if routes else 0)
        return same

    def wrong(self, left: Left, memories: MemoryImages) -> str | None:
        """Where a memory differs from the model's."""
        found = memory_of(memories, self.shape, left.memory)
        if not (left.known & (found != left.values)).any():
            return None
        return f"step {left.step} ({self.program[left.step].instruction.kind.name}): memory {left.memory} differs"

    def csim(self, library: Library) -> str | None:
        """Run it on the C simulation."""
        wrong: list[str] = []

        def on_step(index: int, _ran: bool, memories: Memories) -> None:
            found = (self.wrong(left, memories) for left in self.left if left.step == index)
            wrong.extend(difference for difference in found if difference is not None)

        library.load(port_chunks(self.stream, self.shape.ports))
        results = library.run(self.pixels, self.beats, 0, on_step)
        return wrong[0] if wrong else None if results.tobytes() == self.results else "the results differ"

    def rtl(self, simulator: RtlSimulator) -> Checked:
        """Run it on the RTL."""
        bench = simulator.bench
        chunks = port_chunks(self.stream, self.shape.ports)
        parts = [*chunks, self.pixels, np.full(max(1, self.beats) * CHUNK_BYTES, 0xA5, np.uint8)]
        starts = np.cumsum([0, *(-(-max(1, part.size) // _PAGE) * _PAGE for part in parts)]).tolist()
        for start, part in zip(starts, parts, strict=False):
            if part.size:
                bench.load(start, part)
        values = {f"weights{port}": starts[port] for port in range(len(chunks))}
        values |= {"input": starts[-3], "output": starts[-2], "task": 0, "weight_beats": chunks.shape[1]}
        values |= {"input_beats": len(self.pixels) // CHUNK_BYTES, "output_beats": self.beats}
        for name, value in values.items():
            bench.write(simulator.registers[name]["offset"], value, simulator.registers[name]["bits"])
        places = {(left.step, left.memory.split()[-1]) for left in self.left}
        places |= {(step, "count") for step, memory in places if memory == "queue"}
        for step, memory in sorted(places):
            bench.command("peek", step, memory, peeked(bench, step, memory))
        run = bench.start(simulator.limit)
        if not run.done:
            return Checked("the kernel hangs", run.cycles, run.steps)
        if len(run.steps) != len(self.program):
            return Checked(f"{len(run.steps)} steps run in place of {len(self.program)}", run.cycles, run.steps)
        wrong = (self.wrong(left, Images(simulator, left.step)) for left in self.left)
        difference = next((found for found in wrong if found is not None), None)
        results = bench.dump(starts[-2], self.beats * CHUNK_BYTES).tobytes() if self.beats else b""
        if difference is None and results != self.results:
            difference = "the results differ"
        return Checked(difference, run.cycles, run.steps)


def _extreme(machine: Machine) -> Machine:
    """The machine with residuals at their limits: a sum that saturates from both saturates from all between them."""
    machine.residual = np.where(machine.residual < 0, -(1 << 15), (1 << 15) - 1)
    return machine


def _opposite(machine: Machine) -> Machine:
    """The machine with other memories, bit by bit or number by number."""
    machine.data = [(1 << machine.p.activation_bits) - 1 - data for data in machine.data]
    machine.exponent = [exponent + 1 for exponent in machine.exponent]
    machine.residual, machine.raw = ~machine.residual, ~machine.raw
    machine.queue, machine.count = machine.queue + 1, machine.count + 1
    return machine


def step_programs(shape: Shape, form: Any, seed: int) -> list[StepProgram]:
    """Programs with every kind and mode of a step, of many short steps, and at the edges of what a step may hold."""
    made = []
    usual = [*[_norms] * 5, *[_products] * 8, *[_attention] * 16, *[_experts] * 3, _long]
    for number, steps in enumerate([*usual, *short_programs(), *extreme_programs(), *edge_programs()]):
        bench = Bench(shape, np.random.default_rng((seed, number)))
        made.append(StepProgram(bench, list(steps(bench, number)), form))
    return made


def _some(bench: Bench, low: int, high: int) -> int:
    return int(bench.rng.integers(low, high + 1))


def _norms(bench: Bench, _number: int) -> Iterator[BenchStep]:
    shape = bench.shape
    for epsilon in (0, 12345, (1 << 48) - 1):
        rows, blocks = _some(bench, 6, 12), _some(bench, 1, min(4, shape.norm_depth))
        yield bench.load(Instruction(Kind.LOAD, n2=blocks, rows=rows))
        first = _some(bench, 0, rows - 1)
        place = {"w_base": first % shape.token_parallel, "w_s0": first // shape.token_parallel}
        norm = Instruction(Kind.NORM, n2=blocks, channels=blocks * shape.block, epsilon=epsilon)
        yield bench.norm(replace(norm, flags=Flag.PLANES, rows=rows, x_base=3, y_base=2))
        yield bench.norm(replace(norm, rows=rows - first, y_base=20, **place))  # type: ignore[arg-type]
        yield BenchStep(Instruction(Kind.STORE, Source.RESIDUAL, rows=rows - first, n2=blocks, **place))
        yield BenchStep(Instruction(Kind.STORE, Source.FINE, rows=rows - first, n2=blocks, x_base=3, **place))
    yield bench.load(Instruction(Kind.LOAD, n2=1, rows=5))
    yield bench.norm(Instruction(Kind.NORM, rows=5, n2=1, channels=shape.block, y_base=40))
    row = bench.load(Instruction(Kind.LOAD, n2=1, rows=2))
    payload: Any = row.payload
    payload.values[:] = -(1 << 15)  # no variance: the root of its floor
    yield row
    yield bench.norm(Instruction(Kind.NORM, rows=2, n2=1, channels=shape.block, y_base=44))


def _products(bench: Bench, number: int) -> Iterator[BenchStep]:
    shape = bench.shape
    rows, inputs, outputs = _some(bench, 5, 12), 2 * _some(bench, 1, 2), _some(bench, 2, 4)
    yield from filled(bench, rows, max(inputs, outputs))
    mode = (Mode.REQUANTISE, Mode.GELU, Mode.RESIDUAL, Mode.RAW)[number % 4]
    planes = mode == Mode.RAW and shape.precision.activation_bits == 8
    linear = Instruction(
        Kind.LINEAR, mode, Binding.PROJECT, flags=[0, Flag.X_UNSIGNED][number // 4 % 2], n0=outputs,
        n1=-(-rows // shape.token_parallel), n2=inputs, rows=rows, x_s1=inputs, x_s2=1,
        y_base=20 if mode not in (Mode.RAW, Mode.RESIDUAL) else 0, y_s0=1, y_s1=outputs,
        split=inputs // 2 if planes else NO_SPLIT, shift=_some(bench, 8, 20), offset=_some(bench, 0, 1 << 14),
    )  # fmt: skip
    yield bench.linear(linear, (4, 30) if shape.precision.activation_bits == 8 else (20, 50))
    if mode == Mode.RAW:
        yield BenchStep(Instruction(Kind.STORE, Source.RAW, rows=rows, n2=outputs))


def _attention(bench: Bench, number: int) -> Iterator[BenchStep]:
    shape = bench.shape
    queries, keys, blocks = _some(bench, 5, 12), _some(bench, 9, 12), _some(bench, 1, 2)
    query_groups, key_groups = (-(-n // shape.token_parallel) for n in (queries, keys))
    yield from filled(bench, max(queries, keys), blocks)
    yield BenchStep(
        Instruction(
            Kind.LINEAR, Mode.SOFTMAX, Binding.SCORES, Flag.W_MEMORY, n0=query_groups, n1=key_groups, n2=blocks, rows=keys,
            x_s0=blocks, x_s2=1, w_s1=blocks, w_s2=1, y_base=24, y_s0=key_groups, y_s1=1,
            multiplier=_some(bench, 1 << 14, 65535), shift=19 + number % 8,
        )
    )  # fmt: skip
    yield bench.context(
        Instruction(
            Kind.LINEAR, Mode.CONTEXT, Binding.CONTEXT, Flag.W_MEMORY | Flag.PARAMETERS | Flag.X_UNSIGNED,
            n0=query_groups, n1=blocks, n2=key_groups, rows=keys, x_base=24 + key_groups - 1, x_s0=key_groups, x_s2=-1,
            w_base=(key_groups - 1) * blocks, w_s1=1, w_s2=-blocks, y_s0=blocks, y_s1=1,
        )
    )  # fmt: skip


def _experts(bench: Bench, number: int) -> Iterator[BenchStep]:
    """Route, gather and scatter; every second expert has the gate of its neighbour, so logits tie."""
    shape = bench.shape
    tokens, blocks, experts = _some(bench, 6, 12), _some(bench, 1, 2), _some(bench, 2, shape.max_experts)
    groups, logits = -(-tokens // shape.token_parallel), -(-experts // shape.block)
    gate = bench.linear(
        Instruction(
            Kind.LINEAR, Mode.RAW, Binding.PROJECT, n0=logits, n1=groups, n2=blocks, rows=tokens, x_s1=blocks, x_s2=1,
            y_s0=1, y_s1=logits,
        )
    )  # fmt: skip
    payload: Any = gate.payload
    payload.weight[1::2] = payload.weight[::2]
    payload.parameters.bias[:] = 0
    yield from filled(bench, tokens, blocks)
    yield gate
    yield BenchStep(
        Instruction(
            Kind.ROUTE, flags=[0, Flag.CHOSEN][number % 2], n0=experts, n1=_some(bench, 1, experts), n2=logits, rows=tokens,
            multiplier=_some(bench, 1 << 12, 65535), shift=_some(bench, 10, 24),
        )
    )  # fmt: skip
    for expert in range(experts):
        yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=blocks, y_base=24))
        scatter = Instruction(
            Kind.LINEAR, Mode.SCATTER, Binding.SCORES, expert=expert, n0=blocks, n1=groups, n2=blocks, rows=tokens,
            x_base=24, x_s1=blocks, x_s2=1,
        )  # fmt: skip
        yield bench.linear(scatter, (4, 20))


def _long(bench: Bench, _number: int) -> Iterator[BenchStep]:
    """Steps of more than 512 iterations of every loop, and addresses of more than 8 bits."""
    shape = bench.shape
    tokens, blocks, experts = 132, 4, 4
    groups = -(-tokens // shape.token_parallel)
    yield bench.input(Instruction(Kind.INPUT, n2=blocks, rows=groups * shape.token_parallel))
    yield bench.load(Instruction(Kind.LOAD, n2=blocks, rows=groups * shape.token_parallel))
    yield bench.norm(
        Instruction(Kind.NORM, rows=groups * shape.token_parallel, n2=blocks, channels=blocks * shape.block)
    )
    linear = Instruction(Kind.LINEAR, n1=groups, n2=blocks, rows=tokens, x_s1=blocks, x_s2=1, y_s0=1)
    yield bench.linear(replace(linear, mode=Mode.GELU, binding=Binding.PROJECT, n0=blocks, y_s1=blocks, shift=12))
    yield bench.linear(replace(linear, mode=Mode.RESIDUAL, binding=Binding.CONTEXT, n0=blocks, y_s1=blocks))
    yield bench.linear(replace(linear, mode=Mode.RAW, binding=Binding.PROJECT, n0=1, y_s1=1))
    yield BenchStep(
        Instruction(Kind.ROUTE, n0=experts, n1=2, n2=1, rows=tokens, multiplier=40000, shift=20, flags=Flag.CHOSEN)
    )
    for expert in range(experts):
        yield BenchStep(Instruction(Kind.GATHER, expert=expert, n2=blocks))
        own = replace(linear, mode=Mode.SCATTER, binding=Binding.SCORES, expert=expert, n0=blocks)
        yield bench.linear(own, (4, 20))
    yield BenchStep(Instruction(Kind.STORE, Source.RESIDUAL, rows=tokens, n2=blocks))
    yield BenchStep(Instruction(Kind.STORE, Source.RAW, rows=tokens, n2=1))


def roomy(shape: Shape) -> Shape:
    """The shape with memories that hold every program of here, and sums and shifts as wide as any."""
    least = {"activation_depth": 136, "residual_depth": 136, "raw_depth": 260, "kept_depth": 8, "norm_depth": 4}
    least |= {"parameter_depth": 4, "max_tokens": 1200, "max_experts": 4}
    wide = replace(
        shape,
        scaled_bits=64,
        shift_low=0,
        shift_high=63,
        second_bits=64,
        second_shift_low=0,
        second_shift_high=63,
        channel_bias_bits=64,
        activated_bias_bits=64,
        channel_shift_bits=6,
    )
    return replace(wide, **{name: max(value, getattr(shape, name)) for name, value in least.items()})  # type: ignore[arg-type]
