"""The parts of the quantiser: factors, pixel lattices, ranges, weight rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moehls.integer.operations import RealArray
from moehls.integer.precision import PRECISIONS, W8A8, Precision
from moehls.network.operations import Embed
from moehls.quantize.embed import integer_input
from moehls.quantize.fixed_point import factor
from moehls.quantize.ranges import NORMALISED, balanced_steps, clipped_range
from moehls.quantize.weights import compensation, round_weights, second_moments, weight_steps
from tests.quantize.support import float_network


@given(st.floats(2.0**-40, 2.0**15), st.integers(6, 16))
def test_a_factor_is_as_near_as_its_bits_allow(target: float, bits: int) -> None:
    found = factor(target, bits)
    assert 1 <= int(found.multiplier) < 1 << bits
    assert 0 <= int(found.shift) <= 63
    if target < 1 << bits:
        assert abs(float(found.value) / target - 1) <= 2.0**-bits


def pixels(levels: RealArray, scale: float, offset: float) -> RealArray:
    return ((levels - offset) * scale).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS.keys())
@pytest.mark.parametrize(
    ("scale", "offset"), [(1 / 255, 0.0), (1 / 256, 0.0), (1.0, 0.0), (1 / 255 / 0.229, 0.485 * 255), (2 / 255, 127.5)]
)
def test_images_of_8_bit_levels_are_exact(precision: Precision, scale: float, offset: float) -> None:
    """Divided by 255 or 256, raw, normalised as for ImageNet, and scaled to -1 … 1: every pixel lies on a level.

    Levels that the calibration did not hold are exact as well.
    """
    network = float_network()
    embed = network.operations[0]
    assert isinstance(embed, Embed)
    generator = np.random.default_rng(0)
    seen = generator.permutation(np.arange(20, 240))[:200][generator.integers(0, 200, (4, *network.input.shape))]
    source = integer_input(network.input, embed, pixels(seen, scale, offset).astype(np.float32), precision)
    unseen = pixels(np.arange(256.0), scale, offset)
    levels = unseen / source.scale[0] + source.offset[0]
    assert np.abs(levels - np.rint(levels)).max() < 0.01
    assert np.allclose(np.diff(np.rint(levels)), 1)
    if offset == 0.0:
        assert np.rint(levels).min() >= 0
        assert np.rint(levels).max() <= 255


def test_other_images_get_all_levels() -> None:
    network = float_network()
    embed = network.operations[0]
    assert isinstance(embed, Embed)
    images = np.random.default_rng(1).normal(size=(4, *network.input.shape)).astype(np.float32)
    source = integer_input(network.input, embed, images, W8A8)
    levels = images / source.scale[:, None, None] + source.offset[:, None, None]
    assert levels.min() >= -0.5
    assert levels.max() <= 255.5
    assert np.ptp(levels) > 230


def test_ranges_clip_what_is_rare_and_keep_what_is_not() -> None:
    generator = np.random.default_rng(2)
    even, peaked = generator.uniform(-1, 1, (4000, 1)), generator.standard_normal((4000, 1))
    for x, levels, low, high in ((even, 15, 0.9, 1.5), (peaked, 15, 0.4, 0.8), (peaked, 65535, 1.4, 3.1)):
        _, top = clipped_range(NORMALISED.of(x), NORMALISED.shares, levels)
        assert low < float(top[0]) / x.max() < high  # where steps are cheap nothing is clipped, unseen data included


def test_ranges_follow_the_middle_of_a_channel() -> None:
    x = np.random.default_rng(3).uniform(40, 42, (1000, 1))
    low, high = clipped_range(NORMALISED.of(x), NORMALISED.shares, 255)
    assert 38 < float(low[0]) < 40.5
    assert 41.5 < float(high[0]) < 44


def product_error(x: RealArray, steps: RealArray, weight: RealArray) -> float:
    """Mean squared error of `x · weightᵀ` with both quantised plainly."""
    rounded = np.rint(x / steps) * steps
    scaled = weight * steps
    size = np.abs(scaled).max(axis=1, keepdims=True) / 127
    return float(((rounded @ (np.rint(scaled / size) * size / steps).T - x @ weight.T) ** 2).mean())


def test_balanced_steps_beat_the_finest_and_equal_ones() -> None:
    """A few loud channels with small weights: neither steps by range alone nor one step for all."""
    generator = np.random.default_rng(4)
    loudness = np.exp(generator.normal(0, 2, 64))
    x = generator.standard_normal((2000, 64)) * loudness
    weight = generator.standard_normal((48, 64)) / loudness**0.5
    least = np.abs(x).max(axis=0) / 127
    steps = balanced_steps(least, x.std(axis=0), [weight], 127)
    assert (steps >= least * (1 - 1e-12)).all()
    errors = [product_error(x, s, weight) for s in (steps, np.full(64, least.max()))]
    assert errors[0] < 0.5 * errors[1]
    assert errors[0] <= 1.05 * product_error(x, least, weight)


def test_compensated_rounding_beats_plain_rounding() -> None:
    """On inputs that go together, which the inputs of every layer do."""
    generator = np.random.default_rng(5)
    inputs = np.rint(generator.normal(size=(3000, 12)) @ generator.normal(size=(12, 70)) * 20 + 30).astype(np.int64)
    weight = generator.normal(size=(40, 70))
    _, covariance = second_moments(inputs)
    step = weight_steps(weight, np.diag(covariance), 127)
    found = round_weights(weight, step, compensation(covariance), 127)
    plain = np.clip(np.rint(weight / step[:, None]), -127, 127)
    assert np.abs(found).max() <= 127

    def error(integers: RealArray) -> float:
        difference = integers * step[:, None] - weight
        return float(np.einsum("oi,ij,oj->", difference, covariance, difference))

    assert error(found.astype(np.float64)) < 0.3 * error(plain)


def test_rounding_takes_constant_inputs() -> None:
    inputs = np.full((50, 8), 3, np.int64)
    _, covariance = second_moments(inputs)
    weight = np.random.default_rng(6).normal(size=(4, 8))
    found = round_weights(weight, np.full(4, 0.01), compensation(covariance), 127)
    assert np.abs(found - np.clip(np.rint(weight / 0.01), -127, 127)).max() <= 1
