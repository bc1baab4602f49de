"""Proof that no value is overwritten before its last reader: a live-range simulation of a program.

In goes a program, out comes nothing or an error. Every word of every memory has an owner, the value last written there.
The addresses come from the instructions alone, the names from what the steps declare; the two must agree at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray
from moehls.plan.instruction import ANY_TASK, NO_EXPERT, Binding, Flag, Instruction, Kind, Mode, Source, Target, encode
from moehls.plan.shape import Shape
from moehls.plan.steps import Access, Memory, Place, Program, Requirements, Step

ENGINE: dict[Binding, tuple[Memory, Memory, Memory]] = {
    Binding.QUERY_VALUE: ("m0", "m3", "m1"),
    Binding.KEY: ("m0", "m3", "m2"),
    Binding.SCORES: ("m1", "m2", "m3"),
    Binding.CONTEXT: ("m3", "m1", "m0"),
    Binding.PROJECT: ("m0", "m1", "m3"),
    Binding.ROUTER: ("m2", "m1", "m3"),
    Binding.UP: ("m1", "m3", "m2"),
    Binding.CONTEXT_BESIDE: ("m3", "m1", "m2"),
}
"""(X, W, Y)"""
NORM: dict[Target, Memory] = {Target.M0: "m0", Target.M1: "m1", Target.M2: "m2"}
ADDRESS_BITS = 16


@dataclass(frozen=True)
class _Words:
    """Words of a memory: lanes and addresses, broadcast against each other."""

    memory: Memory
    lanes: IntArray
    addresses: IntArray


def check_program(program: Program, shape: Shape) -> None:
    """Simulate the owners of all words, after a check that every address and header field fits its width.

    What a step counts through in the small memories (parameters, kept weights, queues) must lie within those of `shape`.

    Raises:
        MoehlsError: a step reads or a stage shows a word that holds another value, an address lies outside of what the
            program requires, a step touches words it does not declare, or needs more of a small memory than the shape
            has. It names the step and the values. Or the model is too large for 16-bit addresses.
    """
    _check_sizes(program)
    owners = _Owners(program.requirements, shape)
    shown: dict[int, list[Access]] = {}
    for stage in program.stages:
        shown.setdefault(stage.step, []).append(Access(stage.name, stage.place))
    for index, step in enumerate(program.steps):
        owners.run(step)
        _check_small(step, shape)
        for access in shown.get(index, []):
            owners.expect(step, access, "shows")


def _check_sizes(program: Program) -> None:
    """Addresses and header fields have 16 bits."""
    need = program.requirements
    for name, depth in (
        ("activation", need.activation_depth),
        ("residual", need.residual_depth),
        ("raw", need.raw_depth),
    ):
        if depth > 1 << ADDRESS_BITS:
            raise MoehlsError(
                f"the {name} memory needs {depth} words a bank, the machine addresses {1 << ADDRESS_BITS}; "
                "use fewer tokens, narrower layers or a larger token_parallel or block"
            )
    for step in program.steps:
        encode(step.instruction)


def _check_small(step: Step, shape: Shape) -> None:
    """The memories that no address of a header reaches: a step's counts index them."""
    for what, count, depth in _small(step.instruction, shape):
        if count > depth:
            _fail(step, f"has {count} {what}, the machine {depth}")


def _small(i: Instruction, shape: Shape) -> Iterator[tuple[str, int, int]]:
    """What a step counts in a small memory, how many, and how many the machine has."""
    if i.expert != NO_EXPERT:
        yield "experts", i.expert + 1, shape.max_experts
        yield "rows of an expert", i.rows, shape.max_tokens
    match i.kind:
        case Kind.NORM | Kind.POOL:
            yield "blocks of channels", i.n2, shape.norm_depth
        case Kind.ROUTE:
            yield "experts", i.n0, shape.max_experts
            yield "tokens", i.rows, shape.max_tokens
        case Kind.SECTION:
            yield "experts", i.n0, shape.max_experts
        case Kind.LINEAR if not i.flags & Flag.W_MEMORY:
            yield "words of kept weights", min(i.n2, i.split), shape.kept_depth
        case Kind.LINEAR if i.mode == Mode.SOFTMAX:
            yield "keys", i.rows, shape.max_tokens
        case Kind.LINEAR if i.flags & Flag.PARAMETERS:
            yield "blocks of parameters", i.n1, shape.parameter_depth


def _fail(step: Step, what: str) -> NoReturn:
    raise MoehlsError(f"plan: step {step.name!r} {what}; this is an error of moehls, please report the model")


@dataclass
class _Owners:
    requirements: Requirements
    shape: Shape
    names: list[str] = field(default_factory=lambda: ["nothing"])
    conditions: list[tuple[int, int]] = field(default_factory=lambda: [(ANY_TASK, NO_EXPERT)])
    """(task, expert) under which each name is written"""
    words: dict[Memory, IntArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tt, need = self.shape.token_parallel, self.requirements
        activation: tuple[Memory, ...] = ("m0", "m1", "m2", "m3")
        self.words = {m: np.zeros((tt, need.activation_depth), np.int64) for m in activation}
        self.words["residual"] = np.zeros((tt, need.residual_depth), np.int64)
        self.words["raw"] = np.zeros((1, need.raw_depth), np.int64)
        self.words["queue"] = np.zeros((1, 1), np.int64)

    def run(self, step: Step) -> None:
        i = step.instruction
        for words in _reads(i, self.shape):
            self.bounds(step, words)
            self.declared(step, words, step.reads, "reads")
        for access in step.reads:
            self.expect(step, access, "reads")
        for access in step.writes:
            self.names.append(access.value)
            in_place = access.place.memory in ("residual", "queue")
            self.conditions.append((ANY_TASK, NO_EXPERT) if in_place else (i.task, i.expert))
        for words in _writes(i, self.shape):
            self.bounds(step, words)
            access = self.declared(step, words, step.writes, "writes")
            number = len(self.names) - len(step.writes) + step.writes.index(access)
            self.words[words.memory][words.lanes, words.addresses] = number

    def expect(self, step: Step, access: Access, verb: str) -> None:
        """Every real row of `access` holds its value, written under a condition that this step shares."""
        place = access.place
        found = self.words[place.memory][_rows(place, self.shape)]
        for number in np.unique(found):
            name, condition, own = self.names[number], self.conditions[number], step.instruction
            if name != access.value:
                _fail(step, f"{verb} {access.value!r} in {place.memory}, where {name!r} lies")
            if condition not in ((ANY_TASK, NO_EXPERT), (own.task, own.expert)):
                _fail(step, f"{verb} {access.value!r}, which only task and expert {condition} write")

    def declared(self, step: Step, words: _Words, accesses: tuple[Access, ...], verb: str) -> Access:
        for access in accesses:
            if access.place.memory == words.memory and np.isin(words.addresses, _addresses(access.place, self)).all():
                return access
        _fail(step, f"{verb} words of {words.memory} that it does not declare")

    def bounds(self, step: Step, words: _Words) -> None:
        depth = self.words[words.memory].shape[1]
        if words.addresses.size and not 0 <= words.addresses.min() <= words.addresses.max() < depth:
            _fail(step, f"leaves {words.memory}, which has {depth} words")


def _addresses(place: Place, owners: _Owners) -> IntArray:
    """Every address of `place`, whole groups."""
    if place.memory == "queue":
        return np.zeros(1, np.int64)
    words = np.arange(place.planes * place.channels.blocks(owners.shape.block))
    rows = place.rows if place.memory == "raw" else -(-place.rows // owners.shape.token_parallel)
    found: IntArray = (place.base + np.arange(rows)[:, None] * place.stride + words).ravel()
    return found


def _rows(place: Place, shape: Shape) -> tuple[IntArray, IntArray]:
    """Lanes and addresses of the real rows of `place`."""
    if place.memory == "queue":
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    row, words = np.arange(place.rows)[:, None], np.arange(place.planes * place.channels.blocks(shape.block))
    if place.memory == "raw":
        return np.zeros_like(row), place.base + row * place.stride + words
    tt = shape.token_parallel
    return row % tt, place.base + row // tt * place.stride + words


def _reads(i: Instruction, shape: Shape) -> Iterator[_Words]:
    match i.kind:
        case Kind.NORM:
            yield _token_words("residual", shape, i.rows, 0, i.n2, i.n2, i.w_s0 * shape.token_parallel + i.w_base)
        case Kind.POOL if i.mode == Source.FINE:
            planes = 16 // shape.precision.activation_bits
            first = i.w_s0 * shape.token_parallel + i.w_base
            yield _token_words("m2", shape, i.rows, i.x_base, planes * i.n2, planes * i.n2, first)
        case Kind.POOL:
            yield _token_words("residual", shape, i.rows, 0, i.n2, i.n2, i.w_s0 * shape.token_parallel + i.w_base)
        case Kind.LINEAR:
            x, w, _ = ENGINE[Binding(i.binding)]
            yield _all_lanes(x, shape, _nest(i, i.x_base, (i.x_s0, i.x_s1, i.x_s2)))
            if i.flags & Flag.W_MEMORY:
                yield _all_lanes(w, shape, _nest(i, i.w_base, (i.w_s0, i.w_s1, i.w_s2)))
            elif i.mode == Mode.GATED:
                yield _all_lanes(w, shape, _nest(i, i.w_base, (i.w_s0, i.w_s1, 0)))
        case Kind.ROUTE:
            yield _Words("raw", np.zeros(1, np.int64), i.y_base + np.arange(i.rows * i.n2))
        case Kind.GATHER:
            yield _token_words("m0", shape, i.rows, i.x_base, i.n2, i.n2)
        case Kind.STORE if i.mode == Source.RAW:
            yield _Words("raw", np.zeros(1, np.int64), i.y_base + np.arange(i.rows * i.n2))
        case Kind.STORE if i.mode == Source.FINE:
            planes = 16 // shape.precision.activation_bits
            yield _token_words("m2", shape, i.rows, i.x_base, planes * i.n2, planes * i.n2)
        case Kind.STORE:
            yield _token_words("residual", shape, i.rows, 0, i.n2, i.n2, i.w_s0 * shape.token_parallel + i.w_base)


def _writes(i: Instruction, shape: Shape) -> Iterator[_Words]:
    match i.kind:
        case Kind.INPUT:
            yield _token_words("m3", shape, i.rows, i.y_base, i.n2, i.n2)
        case Kind.LOAD:
            yield _token_words("residual", shape, i.rows, i.y_base, i.n2, i.n2)
        case Kind.NORM:
            yield _token_words(NORM[Target(i.mode)], shape, i.rows, i.y_base, i.n2, i.n2)
            if i.flags & Flag.PLANES:
                planes = 16 // shape.precision.activation_bits
                yield _token_words("m2", shape, i.rows, i.x_base, planes * i.n2, planes * i.n2)
        case Kind.POOL:
            yield _token_words("m0" if i.mode == Source.FINE else "residual", shape, 1, i.y_base, i.n2, i.n2)
        case Kind.ROUTE:
            yield _Words("queue", np.zeros(1, np.int64), np.zeros(1, np.int64))
        case Kind.GATHER:
            yield _token_words("m1", shape, i.rows, i.y_base, i.n2, i.n2)
        case Kind.LINEAR if i.mode == Mode.RAW:
            rows = i.y_base + np.arange(i.rows)[:, None] * i.y_s1 + np.arange(i.n0) * i.y_s0
            yield _Words("raw", np.zeros(1, np.int64), rows.ravel())
        case Kind.LINEAR if i.mode == Mode.SCATTER:
            yield _token_words("residual", shape, i.rows, i.y_base, i.n0, i.n0)
        case Kind.LINEAR:
            memory = "residual" if i.mode in (Mode.RESIDUAL, Mode.WIDE) else ENGINE[Binding(i.binding)][2]
            yield _all_lanes(memory, shape, _nest(i, i.y_base, (i.y_s0, i.y_s1, 0)))


def _nest(i: Instruction, base: int, strides: tuple[int, int, int]) -> IntArray:
    """Addresses of the loop nest."""
    s0, s1, s2 = strides
    nest = np.arange(i.n0)[:, None, None] * s0 + np.arange(i.n1)[:, None] * s1 + np.arange(i.n2) * s2
    return np.unique(base + nest)


def _all_lanes(memory: Memory, shape: Shape, addresses: IntArray) -> _Words:
    return _Words(memory, np.arange(shape.token_parallel)[:, None], addresses)


def _token_words(memory: Memory, shape: Shape, rows: int, base: int, stride: int, words: int, first: int = 0) -> _Words:
    """`words` words of the tokens `first … first+rows-1`, groups `stride` apart."""
    row, tt = np.arange(first, first + rows)[:, None], shape.token_parallel
    return _Words(memory, row % tt, base + row // tt * stride + np.arange(words))
