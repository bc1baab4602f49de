"""Bits of the words of the stream, read one by one."""

from __future__ import annotations

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan.instruction import FIELDS, HEADER_BITS, Instruction, Kind, Mode, encode
from moehls.plan.payload import Biases, Matrix, Parameters, Rows, headers_bytes
from moehls.plan.program import build_program
from moehls.plan.shape import Shape
from tests.plan.machine import decode
from tests.plan.support import bare_shape
from tests.support.random_networks import Sizes, random_integer_network

SHAPES = [bare_shape(W8A8, 4, 8), bare_shape(W8A8, 4, 16), bare_shape(W16A16, 4, 8), bare_shape(W16A16, 4, 16)]


def bits(word: np.ndarray, start: int, count: int, *, signed: bool = False) -> int:
    value = int.from_bytes(word.tobytes(), "little") >> start & ((1 << count) - 1)
    return value - (1 << count) if signed and value >> (count - 1) else value


def random_parameters(shape: Shape, blocks: int, channels: int) -> Parameters:
    rng = np.random.default_rng(0)
    limit = 1 << (shape.precision.accumulator_bits - 1)
    positions = np.sort(rng.choice(blocks * shape.block, channels, replace=False))
    bias = rng.integers(-limit, limit, channels)
    multiplier, shift = rng.integers(0, 1 << 16, channels), rng.integers(0, 64, channels)
    return Parameters(blocks, positions, bias, multiplier, shift, rng.integers(0, 256, channels))


def written(payload: Matrix | Parameters | Rows, shape: Shape) -> np.ndarray:
    out = np.zeros((payload.count(shape), shape.word_bits // 8), np.uint8)
    payload.write(out, shape)
    return out


def assert_parameters(word: np.ndarray, block: int, parameters: Parameters, shape: Shape) -> None:
    """Every channel of `block` in its parameter word."""
    acc, within = shape.precision.accumulator_bits, block % shape.blocks_per_parameter_word
    at = {int(position): index for index, position in enumerate(parameters.positions)}
    for c in range(shape.block):
        start = (within * shape.block + c) * (acc + 32)
        found = (
            bits(word, start, acc, signed=True),
            bits(word, start + acc, 16),
            bits(word, start + acc + 16, 8),
            bits(word, start + acc + 24, 8),
        )
        index = at.get(block * shape.block + c)
        arrays = (parameters.bias, parameters.multiplier, parameters.shift, parameters.second)
        assert found == ((0, 0, 0, 0) if index is None else tuple(array[index] for array in arrays))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.precision.name}-{s.block}")
def test_parameters_of_a_step_come_first(shape: Shape) -> None:
    parameters = random_parameters(shape, 5, 3 * shape.block + 2)
    words = written(parameters, shape)
    assert len(words) == -(-5 // shape.blocks_per_parameter_word)
    for block in range(5):
        assert_parameters(words[block // shape.blocks_per_parameter_word], block, parameters, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.precision.name}-{s.block}")
def test_weights_follow_the_parameters_of_their_block(shape: Shape) -> None:
    wb, b, inputs = shape.precision.weight_bits, shape.block, shape.block + 3
    parameters = random_parameters(shape, 5, 3 * b + 2)
    rng = np.random.default_rng(1)
    dtype = np.int8 if wb == 8 else np.int16
    weight = rng.integers(-(1 << (wb - 1)), 1 << (wb - 1), (len(parameters.positions), inputs)).astype(dtype)
    columns = np.arange(inputs) + 2
    words = iter(written(Matrix(parameters, weight, 2, columns), shape))
    padded = np.zeros((5 * b, 2 * b), np.int64)
    padded[np.ix_(parameters.positions, columns)] = weight
    for block in range(5):
        if block % shape.blocks_per_parameter_word == 0:
            word = next(words)
        assert_parameters(word, block, parameters, shape)
        for inputs_block in (0, 1):
            tile = next(words)
            for i in range(b):
                for o in range(b):
                    expected = padded[block * b + o, inputs_block * b + i]
                    assert bits(tile, (o * b + i) * wb, wb, signed=True) == expected
    assert next(words, None) is None


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_residual_rows_are_packed_token_words(precision: Precision) -> None:
    shape = bare_shape(precision, 4, 8)
    values = np.random.default_rng(2).integers(-(1 << 15), 1 << 15, (3, 13))
    words = written(Rows(values, 2), shape)
    a_word = 8 * precision.weight_bits // 16
    assert len(words) == -(-3 * 2 // a_word)
    for row in range(3):
        for channel in range(16):
            index = row * 2 + channel // 8
            found = bits(words[index // a_word], (index % a_word * 8 + channel % 8) * 16, 16, signed=True)
            assert found == (values[row, channel] if channel < 13 else 0)


def test_a_header_keeps_every_field() -> None:
    values = {f.name: -3 if f.signed else (1 << f.bits) - 1 for f in FIELDS} | {"kind": Kind.LINEAR, "mode": Mode.RAW}
    instruction = Instruction(**values)  # type: ignore[arg-type]
    (word,) = headers_bytes([Instruction(Kind.LOAD), instruction], bare_shape(W8A8, 4, 16))
    assert decode(word[HEADER_BITS // 8 :]) == instruction
    assert sum(field.bits for field in FIELDS) <= HEADER_BITS


@pytest.mark.parametrize(
    ("name", "value"), [("rows", 1 << 16), ("x_s1", 1 << 15), ("x_s1", -(1 << 15) - 1), ("n0", -1)]
)
def test_a_field_that_does_not_fit_is_an_error(name: str, value: int) -> None:
    with pytest.raises(MoehlsError, match=f"{name} = {value} does not fit"):
        encode(Instruction(Kind.LINEAR, **{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("token_parallel", [4, 7])
def test_biases_of_scores_lie_tile_by_tile(token_parallel: int) -> None:
    """Entry of query q and key k of a tile at bits (q·Tt + k)·16 of its words: one where Tt = 4, two where Tt = 7."""
    shape = bare_shape(W8A8, token_parallel, 8)
    entries = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, (9, 12)).astype(np.int16)
    payload = Biases(entries)
    groups, words = -(-12 // token_parallel), 1 if token_parallel == 4 else 2
    assert payload.count(shape) == -(-9 // token_parallel) * groups * words
    out = np.zeros((payload.count(shape), shape.word_bits // 8), np.uint8)
    payload.write(out, shape)
    for q, k in ((0, 0), (3, 11), (8, 5), (7, 7)):
        tile = q // token_parallel * groups + k // token_parallel
        at = (q % token_parallel * token_parallel + k % token_parallel) * 16
        assert bits(out[tile * words : (tile + 1) * words], at, 16, signed=True) == entries[q, k]


def test_only_models_with_biases_have_their_hardware_and_words() -> None:
    plain, biased = (
        build_program(random_integer_network(1, sizes=Sizes(biased=has)), SHAPES[0]) for has in (False, True)
    )
    assert (plain.requirements.biased, biased.requirements.biased) == (False, True)
    assert not any(isinstance(step.payload, Biases) for step in plain.steps)
    payload = [step.payload.count(SHAPES[0]) for step in biased.steps if isinstance(step.payload, Biases)]
    assert payload == [9] * 6  # 11 tokens in 3 groups, 2 layers of 3 heads
    assert biased.words == plain.words + sum(payload)
