"""Parameters and weights as words of the stream, bit for bit as `docs/accelerator.md`, sections 3 and 4, says.

In go arrays of the integer network (kept by reference, nothing is copied before `write`), out come bytes
`[words, word_bytes]`. Padded channels have zero weights and zero parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray, WeightArray
from moehls.plan.instruction import EXPERT_STEPS, HEADER_BITS, Instruction, encode
from moehls.plan.shape import BIAS_BITS, Shape

Bytes = npt.NDArray[np.uint8]


class Payload(Protocol):
    """What follows a header word."""

    def count(self, shape: Shape) -> int:
        """Words."""

    def write(self, out: Bytes, shape: Shape) -> None:
        """Fill `out` `[count, word_bytes]`, which comes zeroed."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of `blocks` output blocks; real channel c lies at `positions[c]`. All words come first, packed."""

    blocks: int
    positions: IntArray
    bias: IntArray
    multiplier: IntArray | None = None
    shift: IntArray | None = None
    second: IntArray | None = None

    def count(self, shape: Shape) -> int:
        return -(-self.blocks // shape.blocks_per_parameter_word)

    def write(self, out: Bytes, shape: Shape) -> None:
        used = shape.blocks_per_parameter_word * shape.block * shape.parameter_bits // 8
        flat = np.zeros(len(out) * used, np.uint8)
        packed = self.bytes(shape)
        flat[: packed.size] = packed.ravel()
        out[:, :used] = flat.reshape(len(out), used)

    def bytes(self, shape: Shape) -> Bytes:
        """`[blocks · B, parameter_bits / 8]`: bias, multiplier, shift, second multiplier, low byte first."""
        wide = shape.precision.accumulator_bits // 8
        packed = np.zeros((self.blocks * shape.block, shape.parameter_bits // 8), np.uint8)
        fields = (
            (self.bias, 0, wide),
            (self.multiplier, wide, 2),
            (self.shift, wide + 2, 1),
            (self.second, wide + 3, 1),
        )
        for values, start, size in fields:
            if values is not None:
                packed[self.positions, start : start + size] = little_endian(values, 8)[:, :size]
        return packed


@dataclass(frozen=True)
class Matrix:
    """Parameters and weights of a LINEAR step in stream order.

    `weight` is `[out, in]`; output channel o lies at `parameters.positions[o]`, input channel i at `columns[i]` of
    `input_blocks` blocks.
    """

    parameters: Parameters
    weight: WeightArray
    input_blocks: int
    columns: IntArray
    magnitudes: IntArray | None = None
    """`[out]`: `Σ|w|`; None where nothing is requantised"""

    def count(self, shape: Shape) -> int:
        return self.parameters.count(shape) + self.parameters.blocks * self.input_blocks

    def write(self, out: Bytes, shape: Shape) -> None:
        blocks, each, b = self.parameters.blocks, self.input_blocks, shape.block
        group = shape.blocks_per_parameter_word
        padded = np.zeros((blocks * b, self.input_blocks * b), self.weight.dtype)
        padded[np.ix_(self.parameters.positions, self.columns)] = self.weight
        tiles = padded.reshape(blocks, b, self.input_blocks, b).transpose(0, 2, 1, 3)
        words = little_endian(np.ascontiguousarray(tiles), shape.precision.weight_bits // 8)
        words = words.reshape(blocks, self.input_blocks, -1)
        parameters = np.zeros((self.parameters.count(shape), out.shape[1]), np.uint8)
        self.parameters.write(parameters, shape)
        out[:: 1 + group * each] = parameters
        first = np.arange(blocks) * each + np.arange(blocks) // group + 1
        for block in range(blocks):
            out[first[block] : first[block] + each] = words[block]


@dataclass(frozen=True)
class Biases:
    """Of a SOFTMAX step: `entries` `[queries, keys]` tile by tile, Tt queries by Tt keys, in whole words; zeros beyond them."""

    entries: npt.NDArray[np.int16]

    def count(self, shape: Shape) -> int:
        queries, keys = (-(-int(size) // shape.token_parallel) for size in self.entries.shape)
        return queries * keys * shape.bias_words

    def write(self, out: Bytes, shape: Shape) -> None:
        tt = shape.token_parallel
        queries, keys = (-(-size // tt) for size in self.entries.shape)
        padded = np.zeros((queries * tt, keys * tt), np.int16)
        padded[: self.entries.shape[0], : self.entries.shape[1]] = self.entries
        tiles = padded.reshape(queries, tt, keys, tt).swapaxes(1, 2).reshape(queries * keys, tt * tt)
        data = little_endian(tiles, BIAS_BITS // 8).reshape(queries * keys, -1)
        out.reshape(queries * keys, -1)[:, : data.shape[1]] = data


@dataclass(frozen=True)
class Rows:
    """Token-words of residual lanes, token-major: `values` `[rows, channels]` in `blocks` blocks a row."""

    values: IntArray
    blocks: int

    def count(self, shape: Shape) -> int:
        return -(-len(self.values) * self.blocks // token_words_a_word(shape))

    def write(self, out: Bytes, shape: Shape) -> None:
        rows, channels = self.values.shape
        padded = np.zeros((rows, self.blocks * shape.block), np.int64)
        padded[:, :channels] = self.values
        data = little_endian(padded, shape.precision.residual_bits // 8).ravel()
        flat = np.zeros(out.size, np.uint8)
        flat[: data.size] = data
        out[:] = flat.reshape(out.shape)


def token_words_a_word(shape: Shape) -> int:
    """Token-words of residual lanes in a word of the stream."""
    return shape.word_bits // (shape.block * shape.precision.residual_bits)


def headers_together(shape: Shape) -> int:
    """Steps whose headers lie together, before the first one's payload: a word's, or an expert's where it is read by choice."""
    word = shape.word_bits // HEADER_BITS
    return word if shape.experts == "streamed" else max(word, EXPERT_STEPS)


def header_words(shape: Shape) -> int:
    """Words that such headers take."""
    return headers_together(shape) * HEADER_BITS // shape.word_bits


def headers_bytes(instructions: Sequence[Instruction], shape: Shape) -> Bytes:
    """`[header_words, word_bytes]`: the headers of consecutive steps, the first in the low bits."""
    size = HEADER_BITS // 8
    out = np.zeros((headers_together(shape), size), np.uint8)
    for n, instruction in enumerate(instructions):
        out[n] = np.frombuffer(encode(instruction).to_bytes(size, "little"), np.uint8)
    return out.reshape(-1, shape.word_bits // 8)


def little_endian(values: npt.NDArray[Any], size: int) -> Bytes:
    """Integers `[…]` to their low `size` bytes `[…, size]` in two's complement, low byte first."""
    wide = np.ascontiguousarray(values, dtype=f"<i{size}")
    return wide.view(np.uint8).reshape(*values.shape, size)
