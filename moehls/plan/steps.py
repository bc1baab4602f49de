"""The step program and where its values lie: the dataclasses between program builder, simulators and emitter.

A `Program` is what the machine runs; a `Place` says where a token matrix lies in a memory, so that anyone can read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray, TensorKind
from moehls.plan.instruction import Flag, Instruction, Kind
from moehls.plan.payload import Payload
from moehls.plan.shape import Capabilities, Shape

Memory = Literal["m0", "m1", "m2", "m3", "residual", "raw", "queue"]


@dataclass(frozen=True)
class Channels:
    """How the real channels of a value lie in blocks: `heads` equal parts, each padded to whole blocks."""

    count: int
    heads: int = 1

    def blocks(self, block: int) -> int:
        """Blocks a row."""
        return self.heads * -(-(self.count // self.heads) // block)

    def positions(self, block: int) -> IntArray:
        """`[count]`: the padded position of every real channel."""
        channel, size = np.arange(self.count, dtype=np.int64), self.count // self.heads
        return channel // size * (self.blocks(block) // self.heads * block) + channel % size


@dataclass(frozen=True)
class Place:
    """A token matrix in a memory.

    Row n of an activation or residual memory lies in lane `n mod Tt`, group `n div Tt`; block b of plane p of group g
    is the word `base + g·stride + p·blocks + b`. In the raw memory row n is the words `base + n·stride + b`. A routing
    lies in the queues, `rows` tokens and `channels.count` experts.
    """

    memory: Memory
    base: int
    stride: int
    rows: int
    channels: Channels
    signed: bool = True
    planes: int = 1


@dataclass(frozen=True)
class Stage:
    """The value `value` is complete and lies at `place` after step `step` (an index into `Program.steps`).

    `task` is `ANY_TASK`, or the task for which the value is written by this step. Of a value that is never whole, the place
    has the rows from `row` on, or the channels from `channel` on.
    """

    value: str
    kind: TensorKind
    step: int
    task: int
    place: Place
    row: int | None = None
    channel: int | None = None

    @property
    def name(self) -> str:
        """What the steps that write and read the place declare."""
        return part_name(self.value, self.row, self.channel)

    def part(self, whole: IntArray) -> IntArray:
        """What of the value `[rows, channels]` lies at the place."""
        rows = slice(None) if self.row is None else slice(self.row, self.row + self.place.rows)
        count = self.place.channels.count
        channels = slice(None) if self.channel is None else slice(self.channel, self.channel + count)
        found: IntArray = whole[rows, channels]
        return found


def part_name(value: str, row: int | None, channel: int | None = None) -> str:
    """A name of a part of `value`: from a row or a channel on."""
    rows = "" if row is None else f" (rows from {row} on)"
    return f"{value}{rows}" if channel is None else f"{value}{rows} (channels from {channel} on)"


@dataclass(frozen=True)
class Access:
    """What a step declares to read or write in a memory: the name of the value (or temporary) and its place."""

    value: str
    place: Place


@dataclass(frozen=True)
class Step:
    """One step: its header, the parameters and weights behind it, and what it reads and writes."""

    name: str
    operation: str
    """name of the operation of the integer network"""
    instruction: Instruction
    payload: Payload | None
    macs: int
    """real multiply-accumulates: without padding; an expert's are for one token"""
    reads: tuple[Access, ...] = ()
    writes: tuple[Access, ...] = ()

    def words(self, shape: Shape) -> npt.NDArray[np.uint8]:
        """`[payload_words, word_bytes]`: its payload."""
        out = np.zeros((self.instruction.payload_words, shape.word_bits // 8), np.uint8)
        if self.payload is not None:
            self.payload.write(out, shape)
        return out


@dataclass(frozen=True)
class OutputPlace:
    """Output `name` (the value `value`) in the result stream: from `beat`, `rows` rows of `blocks` blocks."""

    name: str
    value: str
    kind: TensorKind
    beat: int
    rows: int
    channels: int
    blocks: int
    block: int
    """lanes a block"""
    bits: int
    """bits a lane in the stream"""

    @property
    def beats(self) -> int:
        return self.rows * self.blocks * self.block * self.bits // 128


@dataclass(frozen=True)
class InputPlace:
    """The input stream: `patches` rows of `blocks` token-words of `channels` real pixels in all."""

    patches: int
    channels: int
    blocks: int
    beats_a_word: int

    @property
    def beats(self) -> int:
        return self.patches * self.blocks * self.beats_a_word


@dataclass(frozen=True)
class Requirements(Capabilities):
    """The least that a program needs of a machine (fields of `Shape`)."""

    activation_depth: int
    residual_depth: int
    raw_depth: int
    kept_depth: int
    norm_depth: int
    parameter_depth: int
    max_tokens: int
    max_experts: int


def headers_begun(steps: Sequence[Step], together: int) -> tuple[int, ...]:
    """`Program.headers` of `steps`: `together` of them, or fewer up to a step with flag LAST."""
    found = [0] * len(steps)
    first = 0
    for n, step in enumerate(steps):
        found[first] += 1
        if found[first] == together or step.instruction.flags & Flag.LAST:
            first = n + 1
    return tuple(found)


@dataclass(frozen=True)
class Program:
    """A network as steps of the machine, for one parallelism; `Shape` depths play no part in it."""

    steps: tuple[Step, ...]
    stages: tuple[Stage, ...]
    input: InputPlace
    outputs: tuple[OutputPlace, ...]
    requirements: Requirements
    headers_together: int
    """steps whose headers lie together, at most"""
    header_words: int
    """words of those"""

    @cached_property
    def headers(self) -> tuple[int, ...]:
        """How many headers lie together from each step on; 0 for a step whose header lies with those of steps before it."""
        return headers_begun(self.steps, self.headers_together)

    @cached_property
    def own_header_words(self) -> tuple[int, ...]:
        """Words of headers that each step begins."""
        return tuple(self.header_words if n else 0 for n in self.headers)

    @cached_property
    def step_words(self) -> tuple[int, ...]:
        """Words of the stream at each step: those of headers where its own is the first there, and its payload."""
        return tuple(n + s.instruction.payload_words for n, s in zip(self.own_header_words, self.steps, strict=True))

    @property
    def words(self) -> int:
        """Words of the whole stream."""
        return sum(self.step_words)

    @property
    def first_words(self) -> int:
        """Words of its first section: all where experts are streamed."""
        kinds = [step.instruction.kind for step in self.steps]
        return sum(self.step_words[: kinds.index(Kind.SECTION) + 1]) if Kind.SECTION in kinds else self.words

    @property
    def output_beats(self) -> int:
        """128-bit beats of the result stream."""
        return max((output.beat + output.beats for output in self.outputs), default=0)
