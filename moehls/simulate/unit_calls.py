"""Random calls of single processes, and what they must write: NumPy, from docs/accelerator.md alone.

In go a shape and a seed; out come calls, and the settings with which `tb/step_bench.py` plays them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.integer.arithmetic import halved
from moehls.plan.instruction import NO_SPLIT, Flag, Instruction, Kind, Mode, encode
from moehls.plan.packing import Packing
from moehls.plan.shape import Shape

BEAT_BITS = 128
Words = list[int]


@dataclass(frozen=True)
class Call:
    """One call of a process: what its streams carry and its memories hold, words as integers."""

    name: str
    scalar: int
    """the process's argument: a header, or a number of beats"""
    streams: dict[str, Words]
    memories: dict[str, list[Words]] = field(default_factory=dict)


def packed(values: npt.ArrayLike, bits: int) -> int:
    """Integers to one word, element c at bits `c * bits`, in two's complement."""
    mask = (1 << bits) - 1
    return sum((int(value) & mask) << bits * c for c, value in enumerate(np.asarray(values).ravel()))


def tile_loops(n0: int, n1: int, n2: int) -> list[tuple[int, int, int]]:
    """The nest of every process of the engine."""
    return [(i0, i1, i2) for i0 in range(n0) for i1 in range(n1) for i2 in range(n2)]


def products(shape: Shape, generator: np.random.Generator, loops: tuple[int, int, int], split: int) -> Call:
    """`multiply` on random operands and weights, among them the largest and smallest of every multiplier."""
    tokens, block, precision = shape.token_parallel, shape.block, shape.precision
    bits, weight_bits = precision.activation_bits, precision.weight_bits
    count = int(np.prod(loops))
    low, high = -(1 << (bits - 1)), (1 << bits) - 1  # of signed and unsigned operands
    operands = generator.integers(low, high + 1, (count, tokens, block))
    weights = generator.integers(-(1 << (weight_bits - 1)), 1 << (weight_bits - 1), (count, block, block))
    for n in range(0, count, 3):
        operands[n] = generator.choice([low, high], (tokens, block))
        weights[n] = generator.choice([-(1 << (weight_bits - 1)), (1 << (weight_bits - 1)) - 1], (block, block))
    sums: list[Words] = [[] for _ in range(tokens)]
    total = np.zeros((tokens, block), object)
    for n, (_, _, i2) in enumerate(tile_loops(*loops)):
        before = 0 if i2 == 0 else total << 8 if i2 == split else total
        total = before + operands[n].astype(object) @ weights[n].T.astype(object)
        if i2 == loops[2] - 1:
            for lane in range(tokens):
                sums[lane].append(packed(total[lane], precision.accumulator_bits))
    streams = {_lane("operands", t, tokens): [packed(o, bits + 1) for o in operands[:, t]] for t in range(tokens)}
    streams |= {"tiles": [packed(w, weight_bits) for w in weights]}
    streams |= {_lane("sums", t, tokens): sums[t] for t in range(tokens)}
    instruction = Instruction(Kind.LINEAR, n0=loops[0], n1=loops[1], n2=loops[2], split=split)
    return Call(f"products {loops}, split {split}", encode(instruction), streams)


def stream_order(
    shape: Shape, generator: np.random.Generator, loops: tuple[int, int, int], mode: Mode = Mode.REQUANTISE
) -> Call:
    """`weights` from the stream: every word once, kept for the other token groups; parameters before their blocks."""
    n0, n1, n2 = loops
    packing = shape.packing("activated" if mode == Mode.GELU else "channel")
    packed_words = [_random(generator, shape.word_bits) for _ in range(packing.count(n0))]
    words: Words = []
    tiles: Words = []
    parameters: Words = []
    for i0 in range(n0):
        if packing.begins(i0):
            words.append(packed_words[packing.word_of(i0)])
        block = [_random(generator, shape.word_bits) for _ in range(n2)]
        words += block
        tiles += block * n1
        parameters += [_channels_of(shape, packing, packed_words, i0)] * n1
    instruction = Instruction(Kind.LINEAR, mode, n0=n0, n1=n1, n2=n2, payload_words=len(words))
    streams = {"words": words, "tiles": tiles, "parameters": parameters}
    return Call(f"stream order {loops}, {mode.name}", encode(instruction), streams, {"w": _memory(shape, generator)})


def _channels_of(shape: Shape, packing: Packing, words: Words, block: int) -> int:
    """The parameters of a block, each channel in as many bits as the widest form has."""
    own, size = packing.block_bits // shape.block, max(shape.channel_bits, shape.activated_bits)
    group, number = divmod(block, packing.blocks)
    together = sum(
        word << shape.word_bits * n for n, word in enumerate(words[group * packing.words :][: packing.words])
    )
    bits = together >> number * packing.block_bits
    return sum((bits >> c * own & ((1 << own) - 1)) << c * size for c in range(shape.block))


def memory_order(
    shape: Shape, generator: np.random.Generator, loops: tuple[int, int, int], mode: Mode, has_parameters: bool
) -> Call:
    """`weights` from memory W: keys as outputs (scores) or as inputs (context)."""
    n0, n1, n2 = loops
    block, bits, packing = shape.block, shape.precision.weight_bits, shape.packing("channel")
    memory = _memory(shape, generator)
    words = [_random(generator, shape.word_bits) for _ in range(packing.count(n1))] if has_parameters else []
    strides = (-1, 2, 3)
    base = n0 + 1
    tiles: Words = []
    parameters: Words = []
    for i0, i1, i2 in tile_loops(n0, n1, n2):
        address = base + i0 * strides[0] + i1 * strides[1] + i2 * strides[2]
        keys = [memory[t][address] if t < shape.token_parallel else 0 for t in range(block)]
        elements = np.array([[key >> bits * c & ((1 << bits) - 1) for c in range(block)] for key in keys], object)
        tiles.append(packed(elements.T if mode == Mode.CONTEXT else elements, bits))
        if i2 == 0:
            parameters.append(_channels_of(shape, packing, words, i1) if has_parameters else 0)
    instruction = Instruction(
        Kind.LINEAR, mode, flags=Flag.W_MEMORY | (Flag.PARAMETERS if has_parameters else 0), n0=n0, n1=n1, n2=n2,
        payload_words=len(words), w_base=base, w_s0=strides[0], w_s1=strides[1], w_s2=strides[2],
    )  # fmt: skip
    streams = {"words": words, "tiles": tiles, "parameters": parameters}
    return Call(f"memory order {loops}, {mode.name}", encode(instruction), streams, {"w": memory})


def multiply_calls(shape: Shape, seed: int) -> list[Call]:
    """Calls of `multiply`: one tile and many, with and without a low plane."""
    generator = np.random.default_rng(seed)
    cases = [((1, 1, 1), NO_SPLIT), ((2, 3, 4), NO_SPLIT), ((3, 2, 6), 3), ((1, 4, 2), 1), ((2, 2, 1), NO_SPLIT)]
    return [products(shape, generator, loops, split) for loops, split in cases]


def weights_calls(shape: Shape, seed: int) -> list[Call]:
    """Calls of `weights`: blocks of fewer words than the pipeline is deep, one token group and many, both memory orders."""
    generator = np.random.default_rng(seed)
    most = shape.kept_depth
    calls = [
        stream_order(shape, generator, loops) for loops in ((1, 1, 1), (5, 1, 2), (4, 3, 1), (3, 4, most), (7, 2, 2))
    ]
    blocks = min(3, shape.parameter_depth)
    return [
        *calls,
        memory_order(shape, generator, (3, 2, 2), Mode.SOFTMAX, False),
        memory_order(shape, generator, (2, blocks, 3), Mode.CONTEXT, True),
        stream_order(shape, generator, (2, 3, 2)),
        stream_order(shape, generator, (9, 1, 1), Mode.GELU),
    ]


def feed_calls(shape: Shape, seed: int) -> list[Call]:
    """Calls of `feed`: signed, unsigned and both, and any probabilities behind rises of little and of much."""
    generator = np.random.default_rng(seed)
    most = max(1, shape.activation_depth // 2)
    plain = [_fed(shape, generator, (2, 2, min(3, most)), flags, 2) for flags in (0, Flag.X_UNSIGNED)]
    rows = [_fed(shape, generator, (2, n1, min(40, most)), Flag.X_UNSIGNED, None) for n1 in (1, 2, 1, 1, 1, 1)]
    return [*plain, *rows, _fed(shape, generator, (1, 1, 1), 0, NO_SPLIT)]


def _fed(
    shape: Shape, generator: np.random.Generator, loops: tuple[int, int, int], flags: int, split: int | None
) -> Call:
    """Words of a memory to operands; of a context, without `split`, halved by the rises of the words before."""
    bits, block, tokens, depth = shape.precision.activation_bits, shape.block, shape.token_parallel, loops[2]
    context = split is None
    values = generator.integers(0, 1 << bits, (tokens, shape.activation_depth, block))
    rises = generator.choice([0, 0, 0, 1, 1, 2, 3, 9, 20, 31], (tokens, shape.activation_depth))
    memory = [[packed([*v, r], bits) for v, r in zip(*lane, strict=True)] for lane in zip(values, rises, strict=True)]
    base, strides = (depth - 1, (depth, 0, -1)) if context else (0, (depth, 0, 1))
    names = [_lane("operands", t, tokens) for t in range(tokens)]
    streams: dict[str, Words] = {name: [] for name in (*names, "probability_sums")}
    down, sums = np.zeros((tokens, 1), np.int64), np.zeros(tokens, np.int64)
    for i0, i1, i2 in tile_loops(*loops):
        address = base + i0 * strides[0] + i1 * strides[1] + i2 * strides[2]
        if i2 == 0:
            down, sums = np.zeros_like(down), np.zeros_like(sums)
        own = halved(values[:, address], down)
        sums = sums + own.sum(axis=1)
        if context:
            down = np.minimum(down + rises[:, address, None], 31)
            if i1 == 0 and i2 == depth - 1:
                width = bits + shape.max_tokens.bit_length()
                streams["probability_sums"].append(packed(sums, width))
        is_unsigned = bool(flags & Flag.X_UNSIGNED) or (split is not None and i2 >= split)
        operands = own if is_unsigned else (own ^ 1 << bits - 1) - (1 << bits - 1)
        for t in range(tokens):
            streams[names[t]].append(packed(operands[t], bits + 1))
    instruction = Instruction(
        Kind.LINEAR, Mode.CONTEXT if context else Mode.RAW, flags=flags, n0=loops[0], n1=loops[1], n2=depth,
        split=NO_SPLIT if split is None else split, x_base=base, x_s0=strides[0], x_s1=strides[1], x_s2=strides[2],
    )  # fmt: skip
    name = "context" if context else f"words, flags {flags}, split {split}"
    return Call(f"{name} {loops}", encode(instruction), streams, {"x": memory})


def widen_calls(shape: Shape, seed: int) -> list[Call]:
    """Calls of `widen`: a word and many, from beats of every port, low bits first."""
    generator = np.random.default_rng(seed)
    parts = shape.word_bits // (shape.ports * BEAT_BITS)
    return [_widened(shape, generator, words * parts) for words in (1, 7, 64)]


def _widened(shape: Shape, generator: np.random.Generator, beats: int) -> Call:
    chunks = [_random(generator, BEAT_BITS) for _ in range(beats * shape.ports)]
    a_word = shape.word_bits // BEAT_BITS
    words = [sum(chunk << BEAT_BITS * j for j, chunk in enumerate(some)) for some in batched(chunks, a_word)]
    streams = {_lane("ports", p, shape.ports): chunks[p :: shape.ports] for p in range(shape.ports)}
    return Call(f"{beats} beats a port", beats, streams | {"words": words})


def batched(values: Words, size: int) -> list[Words]:
    """Runs of `size` values."""
    return [values[at : at + size] for at in range(0, len(values), size)]


def bench_settings(
    calls: list[Call], outputs: tuple[str, ...], latency: Callable[[str], int], path: Path, scalar: str = "h"
) -> dict[str, Any]:
    """Settings of `step_bench` for the calls of a process with the parameter `scalar`.

    Streams whose names begin with one of `outputs` are written; `latency` is of the memory behind a formal.
    """
    arrays: dict[str, npt.NDArray[np.uint8]] = {}
    for n, call in enumerate(calls):
        arrays |= {f"{n}.{name}": _bytes(words) for name, words in call.streams.items()}
        for name, banks in call.memories.items():
            image = np.stack([_bytes(words) for words in banks])
            arrays |= {f"{n}.before.{name}": image, f"{n}.after.{name}": image}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return {
        "data": str(path),
        "scalar": scalar,
        "steps": [{"scalar": f"{call.scalar:x}", "name": call.name} for call in calls],
        "inputs": [name for name in calls[0].streams if not name.startswith(outputs)],
        "outputs": [name for name in calls[0].streams if name.startswith(outputs)],
        "memories": {
            name: {"banks": len(banks), "latency": latency(name)} for name, banks in calls[0].memories.items()
        },
    }


def _lane(name: str, lane: int, lanes: int) -> str:
    return f"{name}_{lane}" if lanes > 1 else name


def _random(generator: np.random.Generator, bits: int) -> int:
    return int.from_bytes(generator.bytes(-(-bits // 8)), "little") & ((1 << bits) - 1)


def _memory(shape: Shape, generator: np.random.Generator) -> list[Words]:
    bits = shape.block * shape.precision.activation_bits + 8
    return [[_random(generator, bits) for _ in range(shape.activation_depth)] for _ in range(shape.token_parallel)]


def _bytes(words: Words) -> npt.NDArray[np.uint8]:
    size = max(1, *((word.bit_length() + 7) // 8 for word in words), 1) if words else 1
    text = b"".join(word.to_bytes(size, "little") for word in words)
    return np.frombuffer(text, np.uint8).reshape(len(words), size)
