"""The memory map: depths, storage and blocks of every memory, for one parallelism on one board.

In go the requirements of a program and a board, out comes a `Shape` whose memories fit, and its `MemoryUse` list. What
does not fit in block RAM moves to URAM; the stream FIFO takes the URAM that is left (block RAM on boards without).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from moehls.boards import Board
from moehls.errors import DoesNotFit
from moehls.integer.precision import Precision
from moehls.plan.shape import Shape, Storage
from moehls.plan.steps import Requirements

LIMIT = 0.9
"""share of a board's block RAM that a plan uses; the rest is for routing and what is not counted"""
LUT_LIMIT = 0.9
"""share of its LUTs, as yosys counts them. That is 78 % of its LUT sites, as seven functions fill about six sites, so that a plan
15 % too low still fits; on a fuller device the router takes time from the clock"""
DSP_LIMIT = 0.99
"""share of its DSPs: they are counted product by product"""
LUTRAM_DEPTH = 64
"""shallower memories are LUT RAM"""
_BRAM18_SHAPES = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
_URAM_WIDTH, _URAM_DEPTH = 72, 4096
_BEAT_BITS = 128
_QUEUE_BITS, _SEGMENT_BITS = 40, 64


@dataclass(frozen=True)
class MemoryUse:
    """One memory: `banks` banks of `depth` words of `width` bits, and what they take in all."""

    name: str
    contents: str
    banks: int
    width: int
    depth: int
    storage: Storage
    bram36: float
    uram: int
    lut: int


def bram36_count(width: int, depth: int) -> float:
    """36 kbit blocks (in halves) of a simple dual-port memory."""
    return min(-(-width // w) * -(-depth // d) for w, d in _BRAM18_SHAPES) / 2


def uram_count(width: int, depth: int) -> int:
    return -(-width // _URAM_WIDTH) * -(-depth // _URAM_DEPTH)


def lutram_count(width: int, depth: int) -> int:
    """LUTs: 8 hold 14 bits 32 deep or 7 bits 64 deep (RAM32M16, RAM64M8)."""
    return 8 * -(-width // 14) if depth <= 32 else 8 * -(-width // 7) * -(-depth // 64)


def memory_map(shape: Shape) -> tuple[MemoryUse, ...]:
    """Every memory of the accelerator."""
    p, b, tt = shape.precision, shape.block, shape.token_parallel
    token_word, parameters = b * p.activation_bits + 8, b * shape.parameter_bits
    channels = b * max(shape.channel_bits, shape.activated_bits)
    activation, depth = shape.activation_storage, shape.activation_depth
    entries = shape.max_experts * shape.max_tokens
    blocks = shape.norm_tokens * b * p.residual_bits
    return (
        _use("m0", "normed operand, context", tt, token_word, depth, activation),
        _use("m1", "query and value, gathered tokens", tt, token_word, depth, activation),
        _use("m2", "key, fine planes", tt, token_word, depth, activation),
        _use("m3", "pixels, probabilities, hidden", tt, token_word, depth, activation),
        _use("residual", "residual stream", tt, b * p.residual_bits, shape.residual_depth, shape.residual_storage),
        _use("raw", "router logits, head outputs", 1, b * p.accumulator_bits, shape.raw_depth),
        _use("queue", "tokens of each expert", 1, _QUEUE_BITS, entries),
        _use("kept", "weights of an output block", 1, shape.word_bits, shape.kept_depth),
        _use("norm parameters", "of a layer norm", 1, parameters, shape.norm_depth),
        _use("norm blocks", "tokens between sums and result", 1, blocks, shape.norm_depth + 32),
        _use("context parameters", "of a head", 1, channels, shape.parameter_depth),
        _use("stream", "weights ahead of the compute", 1, shape.word_bits, shape.fifo_words, shape.fifo_storage),
        *(() if shape.experts == "streamed" else (_segments(shape),)),
    )


def _segments(shape: Shape) -> MemoryUse:
    contents = "what this section of the stream and the next one hold"
    return _use("segments", contents, 2, _SEGMENT_BITS, shape.max_experts + 1, "lutram")


def _use(name: str, contents: str, banks: int, width: int, depth: int, storage: Storage | None = None) -> MemoryUse:
    kind: Storage = storage or ("lutram" if depth <= LUTRAM_DEPTH else "bram")
    bram = banks * bram36_count(width, depth) if kind == "bram" else 0
    uram = banks * uram_count(width, depth) if kind == "uram" else 0
    lut = banks * lutram_count(width, depth) if kind == "lutram" else 0
    return MemoryUse(name, contents, banks, width, depth, kind, bram, uram, lut)


def fit_memories(
    requirements: Requirements,
    board: Board,
    precision: Precision,
    parallel: tuple[int, int, int, int],
    stream_words: int,
    *,
    fifo_beats: int | None = None,
    activation_storage: Storage | None = None,
    residual_storage: Storage | None = None,
) -> Shape:
    """The shape with `parallel` = (Tt, B, Le, ports) whose memories fit `board`.

    A fixed FIFO depth or storage is kept; otherwise the first of (block RAM, block RAM), (URAM, block RAM),
    (block RAM, URAM), (URAM, URAM) for (activation, residual) that fits is taken.

    Raises:
        DoesNotFit: nothing fits; says how much each choice of storage takes and what would help.
    """
    shape = Shape(precision, *parallel, **asdict(requirements), fifo_beats=512)
    tried = []
    for activation, residual in _storages(activation_storage, residual_storage):
        trial = replace(shape, activation_storage=activation, residual_storage=residual)
        trial = _with_fifo(trial, board, stream_words, fifo_beats)
        bram, uram = totals(memory_map(trial))
        if bram <= LIMIT * board.bram36 and uram <= board.uram:
            return trial
        if board.uram or not uram:
            tried.append(f"{activation} and {residual}: {bram:g} BRAM36 and {uram} URAM")
    raise DoesNotFit(_too_large(shape, board, tried))


def totals(memories: tuple[MemoryUse, ...]) -> tuple[float, int]:
    """(BRAM36, URAM) of all."""
    return sum(m.bram36 for m in memories), sum(m.uram for m in memories)


def _storages(activation: Storage | None, residual: Storage | None) -> list[tuple[Storage, Storage]]:
    order: list[tuple[Storage, Storage]] = [("bram", "bram"), ("uram", "bram"), ("bram", "uram"), ("uram", "uram")]
    fixed = [(activation or a, residual or r) for a, r in order]
    return list(dict.fromkeys(fixed))


def _with_fifo(shape: Shape, board: Board, stream_words: int, fixed: int | None) -> Shape:
    """The FIFO in the URAM that is left, or in a quarter of the block RAM left; never deeper than the stream."""
    bram, uram = totals(tuple(m for m in memory_map(shape) if m.name != "stream"))
    storage: Literal["uram", "bram"]
    units = (board.uram - uram) // uram_count(shape.word_bits, _URAM_DEPTH)
    if units > 0:
        storage, unit = "uram", _URAM_DEPTH
    else:
        storage, unit = "bram", 512
        units = max(1, int((LIMIT * board.bram36 - bram) / 4 / bram36_count(shape.word_bits, unit)))
    words = unit * min(units, -(-stream_words // unit))
    beats = words * shape.word_bits // (_BEAT_BITS * shape.ports)
    return replace(shape, fifo_storage=storage, fifo_beats=fixed or beats)


def _too_large(shape: Shape, board: Board, tried: list[str]) -> str:
    memories = [m for m in memory_map(shape) if m.name != "stream"]
    largest = max(memories, key=lambda m: m.banks * m.width * m.depth)
    choices = "; ".join(tried) or "ultra RAM, which it does not have"
    return (
        f"the memories do not fit {board.name}, which has {LIMIT * board.bram36:g} BRAM36 (of {board.bram36}, less a "
        f"reserve) and {board.uram} URAM: with {_count(shape.token_parallel, 'token')} and blocks of {shape.block} channels "
        f"in parallel, activations and residual in {choices}. The largest, {largest.name} ({largest.contents}), has "
        f"{_count(largest.banks, 'bank')} of {largest.depth} words of {largest.width} bits. Fewer tokens, a narrower hidden "
        "layer, another token_parallel or a larger board would fit"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number > 1)}"
