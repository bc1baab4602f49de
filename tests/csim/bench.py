"""A bench for single steps: random programs on the C++ and on the functional model, all memories compared after each step.

The model (`tests/plan/machine.py`) is written from `docs/accelerator.md` and knows nothing of the C++.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moehls.integer.operations import HIDDEN, IntArray, WeightArray
from moehls.network.operations import ActivationForm
from moehls.plan.instruction import NO_EXPERT, Instruction, Kind, Mode, Source
from moehls.plan.layout import integers, port_chunks
from moehls.plan.packing import Form
from moehls.plan.payload import Biases, Bytes, Matrix, Parameters, Payload, Rows, headers_bytes, headers_together
from moehls.plan.sections import in_sections
from moehls.plan.shape import Shape
from moehls.plan.steps import Step, headers_begun
from moehls.simulate.csim import Library
from moehls.simulate.simulator import MemoryImages
from tests.plan.machine import Machine

FORMS: tuple[ActivationForm, ...] = ("exact", "silu")
"""activations of the accelerators under test"""


@dataclass(frozen=True)
class BenchStep:
    instruction: Instruction
    payload: Payload | None = None


@dataclass
class Bench:
    """Random payloads for one shape; every method gives the step with its payload."""

    shape: Shape
    rng: np.random.Generator
    pixels: list[Bytes] = field(default_factory=list)

    def input(self, instruction: Instruction) -> BenchStep:
        operand = self.shape.block * self.shape.precision.activation_bits // 8
        words = np.zeros(((instruction.rows - instruction.n0) * instruction.n2, max(operand, 16)), np.uint8)
        words[:, :operand] = self.rng.integers(0, 256, (len(words), operand))
        self.pixels.append(words)
        return BenchStep(instruction)

    def load(self, instruction: Instruction) -> BenchStep:
        scale = 1 << int(self.rng.integers(4, 16))
        rows, channels = instruction.rows, instruction.n2 * self.shape.block
        return self.step(instruction, Rows(self.rng.integers(-scale, scale, (rows, channels)), instruction.n2))

    def norm(self, instruction: Instruction) -> BenchStep:
        gain = self.rng.integers(-(1 << 15), 1 << 15, instruction.n2 * self.shape.block)
        return self.step(instruction, self.parameters(instruction.n2, 1 << 24, gain, (8, 20)))

    def linear(self, instruction: Instruction, shifts: tuple[int, int] = (8, 24)) -> BenchStep:
        top, b = (1 << (self.shape.precision.weight_bits - 1)) - 1, self.shape.block
        inputs = min(instruction.n2, instruction.split)
        weight = self.rng.integers(-top, top + 1, (instruction.n0 * b, inputs * b))
        narrow = self.shape.precision.weight_bits == 8
        stored: WeightArray = weight.astype(np.int8) if narrow else weight.astype(np.int16)
        parameters = self.parameters(instruction.n0, 1 << 20, None, shifts, form_of(instruction))
        matrix = Matrix(parameters, stored, inputs, np.arange(inputs * b))
        return self.step(instruction, matrix)

    def context(self, instruction: Instruction) -> BenchStep:
        return self.step(instruction, self.parameters(instruction.n1, 1 << 12, None, (8, 24), "channel"))

    def biases(self, queries: int, keys: int, hidden: float) -> Biases:
        entries = self.rng.integers(HIDDEN + 1, -HIDDEN, (queries, keys)) // int(self.rng.choice([1, 30, 30000]))
        return Biases(np.where(self.rng.random(entries.shape) < hidden, HIDDEN, entries).astype(np.int16))

    def parameters(
        self, blocks: int, bias: int, multiplier: IntArray | None, shifts: tuple[int, int], form: Form = "row"
    ) -> Parameters:
        n = blocks * self.shape.block
        multiplier = self.rng.integers(0, 1 << 16, n) if multiplier is None else multiplier
        biases, shift = self.rng.integers(-bias, bias, n), self.rng.integers(*shifts, n)
        return Parameters(blocks, np.arange(n), biases, multiplier, shift, self.rng.integers(0, 256, n), form)

    def step(self, instruction: Instruction, payload: Payload) -> BenchStep:
        return BenchStep(replace(instruction, payload_words=payload.count(self.shape)), payload)


def form_of(instruction: Instruction) -> Form:
    """Of the parameters of a LINEAR step in stream order."""
    if instruction.mode == Mode.RAW:
        return "raw"
    return "activated" if instruction.mode in (Mode.GELU, Mode.GATED) else "channel"


def assert_steps_equal(library: Library, bench: Bench, steps: Sequence[BenchStep], task: int = 0) -> None:
    """Run `steps` on both; every memory is equal after every step, and so are the results."""
    shape = bench.shape
    program = [BenchStep(Instruction(Kind.ROUTE, task=1 - task)), *steps, BenchStep(Instruction(Kind.END))]
    sections = in_sections(_steps(program, shape), shape) if shape.experts == "prefetched" else _steps(program, shape)
    kinds = [step.instruction.kind for step in sections]
    first = len(stream_of(sections[: kinds.index(Kind.SECTION) + 1] if Kind.SECTION in kinds else sections, shape))
    pixels = np.concatenate([part.ravel() for part in bench.pixels]) if bench.pixels else np.zeros(0, np.uint8)
    states: list[dict[str, np.ndarray]] = []
    words = stream_of(sections, shape)
    library.load(port_chunks(words, shape.ports), first * shape.word_bits // (128 * shape.ports))
    beats = sum(step_beats(step.instruction, shape) for step in steps)
    results = library.run(pixels, beats, task, lambda index, ran, memories: states.append(state_of(memories, shape)))

    # the model knows no sections: all payloads in order, and those of experts without tokens are drained
    machine = Machine(shape, FORMS)
    stream = stream_of(program, replace(shape, experts="streamed"))
    states = [state for state, kind in zip(states, kinds, strict=True) if kind != Kind.SECTION]
    _start_from(machine, states[0])
    names = [f"after step {i}, {step.instruction}" for i, step in enumerate(program)]

    def compare(index: int, model: Machine) -> None:
        routes = [s.instruction.n0 for s in program[1 : index + 1] if s.instruction.kind == Kind.ROUTE]
        for memory, value in model_state(model).items():
            # a router leaves the counts of the experts it has not
            known = slice(routes[-1] if routes and memory == "count" else None)
            np.testing.assert_array_equal(
                states[index][memory][known], value[known], err_msg=f"{memory} {names[index]}"
            )

    expected = machine.run(stream, pixels.tobytes(), task, compare)
    assert results.tobytes() == expected


def _steps(program: Sequence[BenchStep], shape: Shape) -> tuple[Step, ...]:
    """The program, with a SECTION before the experts of each choice where the shape prefetches them."""
    found: list[Step] = []
    for n, step in enumerate(program):
        own, before = step.instruction.expert, program[n - 1].instruction.expert
        if shape.experts == "prefetched" and own == 0 and before == NO_EXPERT:
            queued = itertools.takewhile(lambda s: s.instruction.expert != NO_EXPERT, program[n:])
            experts = len({s.instruction.expert for s in queued})
            found.append(Step("", "", Instruction(Kind.SECTION, n0=experts), None, 0))
        found.append(Step("", "", step.instruction, step.payload, 0))
    return tuple(found)


def stream_of(program: Sequence[BenchStep | Step], shape: Shape) -> Bytes:
    parts = []
    for n, (step, headers) in enumerate(zip(program, headers_begun(program, headers_together(shape)), strict=True)):
        if headers:
            parts.append(headers_bytes([s.instruction for s in program[n : n + headers]], shape))
        parts.append(np.zeros((step.instruction.payload_words, shape.word_bits // 8), np.uint8))
        if step.payload is not None:
            step.payload.write(parts[-1], shape)
    return np.concatenate(parts)


def step_beats(instruction: Instruction, shape: Shape) -> int:
    if instruction.kind != Kind.STORE:
        return 0
    bits = 16 if instruction.mode != Source.RAW else 32 if shape.precision.accumulator_bits == 32 else 64
    return instruction.rows * instruction.n2 * shape.block * bits // 128


def state_of(memories: MemoryImages, shape: Shape) -> dict[str, np.ndarray]:
    names = [*(f"{what}m{n}" for n in range(4) for what in ("", "exponents of ")), "residual", "raw", "queue", "count"]
    return {name: memory_of(memories, shape, name) for name in names}


def memory_of(memories: MemoryImages, shape: Shape, name: str) -> np.ndarray:
    """One memory's values, or its exponents."""
    if name.startswith("exponents"):
        return memories.activation(int(name[-1]))[:, :, -1].astype(np.int64)
    if name == "residual":
        return integers(memories.residual(), 2, signed=True)
    if name == "raw":
        return integers(memories.raw(), shape.precision.accumulator_bits // 8, signed=True)
    if name == "queue":
        return memories.queue().astype(np.int64)
    if name == "count":
        return memories.count()
    return integers(memories.activation(int(name[-1]))[:, :, :-1], shape.precision.activation_bits // 8, signed=False)


def _start_from(machine: Machine, state: dict[str, np.ndarray]) -> None:
    """The model's memories start as the library's are: they outlive a run."""
    machine.data = [state[f"m{i}"].copy() for i in range(4)]
    machine.exponent = [state[f"exponents of m{i}"].copy() for i in range(4)]
    machine.residual, machine.raw = state["residual"].copy(), state["raw"].copy()
    queue = state["queue"]
    machine.queue = np.stack([queue & 0xFF, queue >> 8 & 0xFFFF, queue >> 24], axis=2)
    machine.count = state["count"].copy()


def model_state(machine: Machine) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}
    for number in range(4):
        state[f"m{number}"] = machine.data[number]
        state[f"exponents of m{number}"] = machine.exponent[number]
    lane, group, gate = np.moveaxis(machine.queue, 2, 0)
    state["queue"], state["count"] = lane | group << 8 | gate << 24, machine.count
    return state | {"residual": machine.residual, "raw": machine.raw}
