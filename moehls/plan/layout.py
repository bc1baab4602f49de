"""Bytes between the host and the machine: the stream, the input, the results, and the images of traced memories.

Arrays in, arrays out, all vectorised; the layouts are those of `docs/accelerator.md`, sections 1 and 3. Every number is
little endian, the low bits of a word first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray
from moehls.integer.precision import Precision
from moehls.plan.payload import Bytes, headers_bytes, little_endian
from moehls.plan.shape import Shape
from moehls.plan.steps import InputPlace, OutputPlace, Place, Program

CHUNK_BYTES = 16
"""128 bits: one beat of a port"""
_COUNT_MASK = 0xFFFF


def stream_words(program: Program, shape: Shape) -> Bytes:
    """The whole stream `[words, word_bytes]`: what `weights.bin` holds."""
    instructions = [step.instruction for step in program.steps]
    out = np.empty((program.words, shape.word_bits // 8), np.uint8)
    position = 0
    for n, (step, headers) in enumerate(zip(program.steps, program.headers, strict=True)):
        if headers:
            out[position : position + program.header_words] = headers_bytes(instructions[n : n + headers], shape)
            position += program.header_words
        words = step.words(shape)
        out[position : position + len(words)] = words
        position += len(words)
    return out


def port_chunks(stream: Bytes, ports: int) -> Bytes:
    """`[ports, chunks, 16]`: 128-bit chunk j of the stream lies in port `j mod ports` at `j div ports`."""
    return np.ascontiguousarray(stream.reshape(-1, ports, CHUNK_BYTES).swapaxes(0, 1))


def input_bytes(pixels: npt.NDArray[np.integer[Any]], place: InputPlace, shape: Shape) -> Bytes:
    """Quantised pixels `[patches, pixels a patch]` as the bytes `[input beats · 16]` that INPUT reads.

    Raises:
        MoehlsError: the pixels have another shape.
    """
    if pixels.shape != (place.patches, place.channels):
        raise MoehlsError(
            f"the input has shape {list(pixels.shape)}; the accelerator takes {[place.patches, place.channels]}"
        )
    padded = np.zeros((place.patches, place.blocks, shape.block), np.int64)
    padded.reshape(place.patches, -1)[:, : place.channels] = pixels
    size = shape.precision.activation_bits // 8
    words = little_endian(padded, size).reshape(place.patches * place.blocks, -1)
    out = np.zeros((len(words), place.beats_a_word * CHUNK_BYTES), np.uint8)
    out[:, : words.shape[1]] = words
    return out.ravel()


def output_tensors(results: Bytes, outputs: Iterable[OutputPlace]) -> dict[str, IntArray]:
    """The result stream (bytes) to integers `[rows, channels]` by output name."""
    tensors = {}
    for output in outputs:
        start = output.beat * CHUNK_BYTES
        part = results[start : start + output.beats * CHUNK_BYTES]
        if len(part) < output.beats * CHUNK_BYTES:
            raise MoehlsError(f"the result has {len(results)} bytes, too few for the output {output.name!r}")
        lanes = integers(part.reshape(output.rows, -1), output.bits // 8, signed=True)
        tensors[output.name] = lanes[:, : output.channels]
    return tensors


def activation_tensor(place: Place, image: Bytes, shape: Shape) -> IntArray:
    """Integers `[rows, channels]` at `place` in an activation memory.

    `image` is `[Tt, depth, B·AB/8 + 1]`: the bytes of a token-word, the exponent last.
    """
    operand = shape.precision.activation_bits // 8
    words = _rows(place, image[:, :, : shape.block * operand], shape)
    if place.planes == 1:
        return _real(place, integers(words, operand, signed=place.signed), shape)
    high, low = np.split(words.reshape(place.rows, 2, -1), 2, axis=1)
    fine = (integers(high, operand, signed=True) << (8 * operand)) + integers(low, operand, signed=False)
    return _real(place, fine.reshape(place.rows, -1), shape)


def residual_tensor(place: Place, image: Bytes, shape: Shape) -> IntArray:
    """Integers `[rows, channels]` at `place`; `image` is the residual memory `[Tt, depth, B·2]`."""
    words = _rows(place, image, shape)
    return _real(place, integers(words, shape.precision.residual_bits // 8, signed=True), shape)


def raw_tensor(place: Place, image: Bytes, shape: Shape) -> IntArray:
    """Integers `[rows, channels]` at `place`; `image` is the raw memory `[depth, B·accumulator_bits/8]`."""
    blocks = place.channels.blocks(shape.block)
    index = place.base + np.arange(place.rows)[:, None] * place.stride + np.arange(blocks)
    words = image[index].reshape(place.rows, -1)
    return _real(place, integers(words, shape.precision.accumulator_bits // 8, signed=True), shape)


def queue_gates(place: Place, queue: npt.NDArray[np.uint64], count: IntArray, shape: Shape) -> IntArray:
    """`[tokens, experts]`: the gate of every expert a token chose, -1 elsewhere.

    `queue` is `[experts, MAX_TOKENS]`: lane (8 bits), group (16), gate (16) from bit 0; `count` `[experts]`.
    """
    gates = np.full((place.rows, place.channels.count), -1, np.int64)
    for expert in range(place.channels.count):
        entries = queue[expert, : count[expert]].astype(np.int64)
        lane, group, gate = entries & 0xFF, entries >> 8 & _COUNT_MASK, entries >> 24 & _COUNT_MASK
        gates[group * shape.token_parallel + lane, expert] = gate
    return gates


def chosen_gates(chosen: IntArray, gates: IntArray, experts: int) -> IntArray:
    """Indices and gates `[tokens, k]` of the reference in the form of `queue_gates`; `~expert` is left out."""
    dense = np.full((len(chosen), experts), -1, np.int64)
    token, choice = np.nonzero(chosen >= 0)
    dense[token, chosen[token, choice]] = gates[token, choice]
    return dense


def integers(data: Bytes, size: int, *, signed: bool) -> IntArray:
    """Bytes `[…, n · size]` to integers `[…, n]`."""
    lanes = data.reshape(*data.shape[:-1], -1, size)
    wide = np.zeros((*lanes.shape[:-1], 8), np.uint8)
    wide[..., 8 - size :] = lanes
    if signed:
        return wide.view("<i8")[..., 0].astype(np.int64) >> (64 - 8 * size)
    return (wide.view("<u8")[..., 0] >> np.uint64(64 - 8 * size)).astype(np.int64)


def operand_bytes(precision: Precision, block: int) -> int:
    """Bytes of a token-word's image: operands and exponent."""
    return block * precision.activation_bits // 8 + 1


def _rows(place: Place, image: Bytes, shape: Shape) -> Bytes:
    """`[rows, words · word bytes]`: the words of each row."""
    row, words = np.arange(place.rows)[:, None], place.planes * place.channels.blocks(shape.block)
    address = place.base + row // shape.token_parallel * place.stride + np.arange(words)
    rows: Bytes = image[row % shape.token_parallel, address].reshape(place.rows, -1)
    return rows


def _real(place: Place, padded: IntArray, shape: Shape) -> IntArray:
    return padded[:, place.channels.positions(shape.block)]
