"""Bits of the words of the stream, read one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.plan.instruction import FIELDS, HEADER_BITS, Instruction, Kind, Mode, encode
from moehls.plan.packing import Form, channel_widths
from moehls.plan.payload import Biases, Matrix, Parameters, Rows, headers_bytes
from moehls.plan.program import build_program
from moehls.plan.shape import Shape
from tests.plan.machine import decode
from tests.plan.support import bare_shape
from tests.support.random_networks import Sizes, random_integer_network

SHAPES = [bare_shape(W8A8, 4, 8), bare_shape(W8A8, 4, 16), bare_shape(W16A16, 4, 8), bare_shape(W16A16, 4, 16)]
FORMS: tuple[Form, ...] = ("row", "channel", "activated", "raw")


def of_widths(shape: Shape, bias: int, activated: int, shift: int) -> Shape:
    return replace(shape, channel_bias_bits=bias, activated_bias_bits=activated, channel_shift_bits=shift)


FORMATS = [*SHAPES, of_widths(SHAPES[1], 21, 18, 5), of_widths(SHAPES[0], 12, 15, 5), of_widths(SHAPES[2], 40, 31, 6)]


def bits(word: np.ndarray, start: int, count: int, *, signed: bool = False) -> int:
    value = int.from_bytes(word.tobytes(), "little") >> start & ((1 << count) - 1)
    return value - (1 << count) if signed and value >> (count - 1) else value


def random_parameters(shape: Shape, blocks: int, channels: int, form: Form) -> Parameters:
    rng = np.random.default_rng(0)
    acc = shape.precision.accumulator_bits
    width = {
        "row": acc,
        "raw": min(acc, shape.channel_bits),
        "channel": min(acc, shape.channel_bias_bits),
        "activated": min(acc, shape.activated_bias_bits),
    }
    limit = 1 << (width[form] - 1)
    positions = np.sort(rng.choice(blocks * shape.block, channels, replace=False))
    bias = rng.integers(-limit, limit, channels)
    multiplier, shift = rng.integers(0, 1 << 16, channels), rng.integers(0, 1 << shape.channel_shift_bits, channels)
    return Parameters(blocks, positions, bias, multiplier, shift, rng.integers(0, 256, channels), form)


def written(payload: Matrix | Parameters | Rows, shape: Shape) -> np.ndarray:
    out = np.zeros((payload.count(shape), shape.word_bits // 8), np.uint8)
    payload.write(out, shape)
    return out


def assert_parameters(group: np.ndarray, block: int, parameters: Parameters, shape: Shape) -> None:
    """Every channel of `block` in the words of its group."""
    acc, shift, form = shape.precision.accumulator_bits, shape.channel_shift_bits, parameters.form
    channel, activated = min(acc, shape.channel_bias_bits), min(acc, shape.activated_bias_bits)
    fields = {  # name, bits; of none that a step has no use for
        "row": (("bias", acc), ("multiplier", 16), ("shift", 8), ("second", 8)),
        "channel": (("multiplier", 16), ("shift", shift), ("bias", channel)),
        "activated": (("multiplier", 16), ("shift", shift), ("second", 8), ("bias", activated)),
        "raw": (("bias", min(acc, 16 + shift + channel)), ("", max(0, 16 + shift + channel - acc))),
    }[form]
    size, within = sum(width for _, width in fields), block % shape.packing(form).blocks
    at = {int(position): index for index, position in enumerate(parameters.positions)}
    for c in range(shape.block):
        start, index = (within * shape.block + c) * size, at.get(block * shape.block + c)
        for name, width in fields:
            expected = 0 if index is None or not name else getattr(parameters, name)[index]
            assert not width or bits(group, start, width, signed=name == "bias") == expected, (block, c, name)
            start += width


@pytest.mark.parametrize(
    ("widths", "expected"), [((64, 64, 6), (7 / 3, 2)), ((21, 18, 5), (3, 8 / 3)), ((22, 20, 5), (8 / 3, 2.5))]
)
def test_narrow_parameters_share_words(widths: tuple[int, int, int], expected: tuple[float, float]) -> None:
    shape = of_widths(SHAPES[1], *widths)
    found = [shape.packing(form) for form in FORMS[1:3]]
    assert tuple(packing.blocks / packing.words for packing in found) == expected
    for packing in found:
        ends = [((n + 1) * packing.block_bits - 1) // 2048 for n in range(packing.blocks)]
        words = [ends[n % packing.blocks] + n // packing.blocks * packing.words for n in range(20)]
        assert [packing.word_of(n) for n in range(20)] == words
        assert [n for n in range(20) if packing.begins(n)] == [words.index(word) for word in range(words[-1] + 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", FORMATS, ids=lambda s: f"{s.precision.name}-{s.block}-{s.channel_bias_bits}")
def test_parameters_of_a_step_come_first(shape: Shape, form: Form) -> None:
    blocks, packing = 11, shape.packing(form)
    parameters = random_parameters(shape, blocks, 9 * shape.block + 2, form)
    words = written(parameters, shape)
    assert len(words) == (blocks - 1) // packing.blocks * packing.words + -(
        -((blocks - 1) % packing.blocks + 1) * packing.block_bits // shape.word_bits
    )
    for block in range(blocks):
        assert_parameters(words[block // packing.blocks * packing.words :], block, parameters, shape)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("shape", FORMATS, ids=lambda s: f"{s.precision.name}-{s.block}-{s.channel_bias_bits}")
def test_weights_follow_the_word_that_completes_the_parameters_of_their_block(shape: Shape, form: Form) -> None:
    wb, b, inputs, blocks = shape.precision.weight_bits, shape.block, shape.block + 3, 9
    parameters = random_parameters(shape, blocks, 8 * b + 2, form)
    rng = np.random.default_rng(1)
    dtype = np.int8 if wb == 8 else np.int16
    weight = rng.integers(-(1 << (wb - 1)), 1 << (wb - 1), (len(parameters.positions), inputs)).astype(dtype)
    columns = np.arange(inputs) + 2
    words = iter(written(Matrix(parameters, weight, 2, columns), shape))
    padded = np.zeros((blocks * b, 2 * b), np.int64)
    padded[np.ix_(parameters.positions, columns)] = weight
    packing = shape.packing(form)
    for block in range(blocks):
        if block % packing.blocks == 0:
            group: list[np.ndarray] = []
        if len(group) * shape.word_bits < (block % packing.blocks + 1) * packing.block_bits:
            group.append(next(words))
        assert_parameters(np.stack(group), block, parameters, shape)
        for inputs_block in (0, 1):
            tile = next(words)
            for o, i in ((0, 0), (b - 1, 0), (0, b - 1), (3, 5), (b - 1, b - 1)):
                expected = padded[block * b + o, inputs_block * b + i]
                assert bits(tile, (o * b + i) * wb, wb, signed=True) == expected
    assert next(words, None) is None


@pytest.mark.parametrize(
    ("form", "name"), [("channel", "bias"), ("activated", "bias"), ("raw", "bias"), ("channel", "shift")]
)
def test_parameters_that_do_not_fit_their_format_are_an_error(form: Form, name: str) -> None:
    shape = of_widths(SHAPES[1], 8, 7, 5)
    parameters = random_parameters(shape, 1, 4, form)
    wide = replace(parameters, **{name: getattr(parameters, name) + (32 if name == "shift" else 1 << 28)})
    with pytest.raises(MoehlsError, match=f"a {name} of .* does not fit"):
        written(wide, shape)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_the_widths_of_a_network_hold_its_parameters_and_no_bit_less_does(precision: Precision) -> None:
    network = random_integer_network(5, precision)
    widths = channel_widths(network)
    steps = build_program(network, replace(bare_shape(precision, 4, 8), **widths))
    assert steps.requirements.channel_bias_bits == widths["channel_bias_bits"]

    def stream(**narrow: int) -> None:
        shape = replace(bare_shape(precision, 4, 8), **(widths | narrow))  # type: ignore[arg-type]
        for step in build_program(network, shape).steps:
            step.words(shape)

    stream()
    for name, bits_needed in widths.items():
        with pytest.raises(MoehlsError, match="does not fit the machine's"):
            stream(**{name: bits_needed - 1})  # type: ignore[operator]


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
