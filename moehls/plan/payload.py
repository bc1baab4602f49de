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

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray, WeightArray
from moehls.plan.instruction import EXPERT_STEPS, HEADER_BITS, Instruction, encode
from moehls.plan.packing import Form
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
    form: Form = "row"

    def count(self, shape: Shape) -> int:
        return shape.packing(self.form).count(self.blocks)

    def write(self, out: Bytes, shape: Shape) -> None:
        packing = shape.packing(self.form)
        groups = -(-self.blocks // packing.blocks)
        blocks = np.zeros((groups * packing.blocks, packing.block_bits), np.uint8)
        blocks[: self.blocks] = self.bits(shape)
        words = np.zeros((groups, packing.words * packing.word_bits), np.uint8)
        words[:, : packing.blocks * packing.block_bits] = blocks.reshape(groups, -1)
        out[:] = np.packbits(words, axis=1, bitorder="little").reshape(-1, out.shape[1])[: len(out)]

    def bits(self, shape: Shape) -> Bytes:
        """`[blocks, bits of a block]`: the fields of each channel, low bit first.

        Raises:
            MoehlsError: a bias or shift does not fit the machine's format.
        """
        channel = shape.packing(self.form).block_bits // shape.block
        bits = np.zeros((self.blocks * shape.block, channel), np.uint8)
        start = 0
        for values, width in self._fields(shape):
            if values is not None:
                bits[self.positions, start : start + width] = _low_bits(values, width)
            start += width
        return bits.reshape(self.blocks, -1)

    def _fields(self, shape: Shape) -> tuple[tuple[IntArray | None, int], ...]:
        """Every field with its bits, the lowest first."""
        p = shape.precision
        if self.form == "row":
            return (
                (self.bias, p.accumulator_bits),
                (self.multiplier, p.multiplier_bits),
                (self.shift, 8),
                (self.second, 8),
            )
        if self.form == "raw":
            width = min(shape.channel_bits, p.accumulator_bits)
            return ((_fitting(self.bias, "bias", width, signed=True), width),)
        assert self.shift is not None
        shift = _fitting(self.shift, "shift", shape.channel_shift_bits, signed=False)
        first = (self.multiplier, p.multiplier_bits), (shift, shape.channel_shift_bits)
        activates = self.form == "activated"
        width = min(shape.activated_bias_bits if activates else shape.channel_bias_bits, p.accumulator_bits)
        bias = _fitting(self.bias, "bias", width, signed=True), width
        return (*first, (self.second, p.second_multiplier_bits), bias) if activates else (*first, bias)


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
        packing = shape.packing(self.parameters.form)
        padded = np.zeros((blocks * b, self.input_blocks * b), self.weight.dtype)
        padded[np.ix_(self.parameters.positions, self.columns)] = self.weight
        tiles = padded.reshape(blocks, b, self.input_blocks, b).transpose(0, 2, 1, 3)
        words = little_endian(np.ascontiguousarray(tiles), shape.precision.weight_bits // 8)
        words = words.reshape(blocks, self.input_blocks, -1)
        parameters = np.zeros((self.parameters.count(shape), out.shape[1]), np.uint8)
        self.parameters.write(parameters, shape)
        for block in range(blocks):
            word = packing.word_of(block)
            first = block * each + word + 1
            if packing.begins(block):
                out[first - 1] = parameters[word]
            out[first : first + each] = words[block]


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


def _fitting(values: IntArray, name: str, bits: int, *, signed: bool) -> IntArray:
    """`values`, which `bits` bits hold."""
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    if values.size and not low <= values.min() <= values.max() < high:
        raise MoehlsError(
            f"parameters: a {name} of {values.min()} … {values.max()} does not fit the machine's {bits} bits; this is an "
            "error of moehls, please report the model"
        )
    return values


def _low_bits(values: IntArray, count: int) -> Bytes:
    """Integers `[n]` to their low `count` bits `[n, count]` in two's complement, low bit first."""
    return np.unpackbits(little_endian(values, 8), axis=1, bitorder="little")[:, :count]


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
