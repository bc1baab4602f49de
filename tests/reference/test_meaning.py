"""What the integers mean: with known scales each operation approximates its float definition."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.integer.arithmetic import sigmoid
from moehls.integer.operations import (
    HIDDEN,
    GeluRequantise,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNorm,
    IntegerRoute,
    Requantise,
    Scaling,
    ScoreBias,
)
from moehls.integer.precision import PRECISIONS, W16A16, Precision
from moehls.network.operations import GateNormalisation
from moehls.reference.attention import attention
from moehls.reference.embed import embed
from moehls.reference.experts import experts
from moehls.reference.linear import linear
from moehls.reference.norm import norm
from moehls.reference.route import Routing, route

Real = npt.NDArray[np.floating[Any]]
SEEDS = st.integers(0, 2**32 - 1)
RANDOM = settings(max_examples=15, deadline=None)
PRECISION = pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)


def scaling(ratio: np.ndarray, bias: np.ndarray, bits: int = 16) -> Scaling:
    """`ratio ≈ multiplier · 2^-shift`."""
    shift = (bits - 1 - np.floor(np.log2(np.abs(ratio)))).astype(np.int64)
    return Scaling(bias.astype(np.int64), np.rint(ratio * 2.0**shift).astype(np.int64), shift)


def gelu(x: Real) -> Real:
    return np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.ravel()]).reshape(x.shape)


def softmax(x: Real) -> Real:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Real = e / e.sum(axis=-1, keepdims=True)
    return result


@PRECISION
@given(seed=SEEDS, channels=st.integers(2, 200))
@RANDOM
def test_norm_is_layer_norm(precision: Precision, seed: int, channels: int) -> None:
    """The fine value to 2^-10 of a standard deviation; the residual scale drops out but for epsilon."""
    rng = np.random.default_rng(seed)
    real = rng.normal(rng.normal(), 10.0 ** rng.uniform(-1, 1), (3, channels))
    scale = np.abs(real).max() / 32767
    x = np.rint(real / scale).astype(np.int64)
    gain, bias, step, epsilon = rng.normal(1, 0.3, channels), rng.normal(0, 0.3, channels), 2.0**-11, 1e-3
    shift = np.full(channels, 14 + precision.norm_fraction - 11, np.int64)
    parameters = Scaling(
        np.rint(bias / step * 2.0**shift).astype(np.int64), np.rint(gain * 2.0**14).astype(np.int64), shift
    )
    integer_epsilon = round(epsilon * channels**2 / scale**2)
    operation = IntegerNorm("norm", "x", "fine", "operand", 0, 3, parameters, integer_epsilon)
    fine, operand = norm(operation, x, precision)
    exact = x * scale
    centred = exact - exact.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(exact.var(axis=1, keepdims=True) + epsilon) * gain + bias
    assert np.abs(np.clip(fine * step - expected, -16, 16)).max() < 2.0**-9
    limit = 2.0 ** (precision.activation_bits - 1)
    narrowed = np.clip(fine / 2.0**precision.fine_shift, -limit, limit)
    assert np.abs(operand - narrowed).max() <= 1


@PRECISION
@given(seed=SEEDS, channels=st.integers(1, 40))
@RANDOM
def test_linear_is_a_scaled_product(precision: Precision, seed: int, channels: int) -> None:
    rng = np.random.default_rng(seed)
    top = (1 << (precision.activation_bits - 1)) - 1
    x = rng.integers(-top, top, (4, channels))
    w = rng.integers(-100, 101, (6, channels)).astype(np.int8)
    ratio = rng.uniform(0.3, 1, 6) * top / (np.abs(x).max() * 100 * channels)
    bias = rng.integers(-1000, 1001, 6)
    operation = IntegerLinear("linear", "x", "y", w, scaling(ratio, bias), Requantise())
    expected = np.clip((x @ w.T.astype(np.int64) + bias) * ratio, -top - 1, top)  # a bias of small products saturates
    assert np.abs(linear(operation, x, None, precision, "exact") - expected).max() <= 0.5 + top * 2.0**-15


@PRECISION
@given(seed=SEEDS)
@RANDOM
def test_gelu_epilogue_is_gelu_with_an_offset(precision: Precision, seed: int) -> None:
    """Within one step of the unsigned operand plus the error of the GELU itself and of its 8-bit multiplier."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-127, 128, (5, 16))
    w = rng.integers(-127, 128, (8, 16)).astype(np.int8)
    scale = 3.0 / 127 / 127 / 4
    parameters = scaling(np.full(8, scale * 2.0**precision.gelu_fraction), rng.integers(-9999, 9999, 8))
    offset = int(0.17 * 2**precision.delta_fraction)
    shift = precision.delta_fraction + 11 - precision.activation_bits
    multiplier = rng.integers(100, 256, 8)
    operation = IntegerLinear("first", "x", "h", w, parameters, GeluRequantise(multiplier, shift, offset))
    y = linear(operation, x, None, precision, "exact")
    real = gelu((x @ w.T.astype(np.int64) + parameters.bias) * scale) + offset / 2.0**precision.delta_fraction
    expected = np.clip(
        real * multiplier * 2.0 ** (precision.delta_fraction - shift), 0, 2**precision.activation_bits - 1
    )
    step = multiplier * 2.0 ** (precision.delta_fraction - shift)
    assert (
        np.abs(y - expected) <= 0.5 + step * (1.4e-4 + 2.0**-precision.gelu_fraction + 2.0**-14 * np.abs(real))
    ).all()


def test_gelu_offset_keeps_the_negative_lobe() -> None:
    """With the offset the smallest GELU, -0.17, is the operand 0, and GELU(0) is above it."""
    offset = int(0.17 * 2**W16A16.delta_fraction)
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    epilogue = GeluRequantise(np.array([128]), 10, offset)
    operation = IntegerLinear("l", "x", "y", np.array([[1]], np.int16), Scaling(zero, one, zero), epilogue)
    lowest = -round(0.7518 * 2**W16A16.gelu_fraction)
    y = linear(operation, np.array([[lowest], [0]]), None, W16A16, "exact")
    assert y[0, 0] < 10
    assert y[1, 0] == (offset * 128 + 512) >> 10


@PRECISION
@given(seed=SEEDS, tokens=st.integers(1, 60))
@RANDOM
def test_attention_is_softmax_attention(precision: Precision, seed: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    heads, d = 2, 5
    top = (1 << (precision.activation_bits - 1)) - 1
    q, k, v = (rng.integers(-top, top, (tokens, heads * d)) for _ in range(3))
    scale = rng.uniform(0.5, 6, heads) / (top * top)
    score = scaling(scale * math.log2(math.e) * 2.0**precision.score_fraction, np.zeros(heads))
    unit = scaling(np.full(heads * d, 2.0**-precision.context_fraction), np.zeros(heads * d))
    entries = rng.integers(-(1 << 15) + 1, 1 << 15, (heads, tokens, tokens))
    entries[rng.random(entries.shape) < 0.3] = HIDDEN
    entries[:, np.arange(tokens), np.arange(tokens)] = 0
    bias = ScoreBias(entries.astype(np.int16), rng.integers(0, 2, heads) + (0 if precision.weight_bits == 8 else 16))
    operation = IntegerAttention("a", "q", "k", "v", "y", heads, score.multiplier, score.shift, unit, bias)
    y = attention(operation, q, k, v, precision)
    added = np.where(entries == HIDDEN, -np.inf, np.ldexp(entries.astype(float), bias.shift[:, None, None]))
    by_head = [x.reshape(tokens, heads, d).swapaxes(0, 1).astype(np.float64) for x in (q, k, v)]
    weights = softmax(scale[:, None, None] * (by_head[0] @ by_head[1].swapaxes(1, 2) + added))
    expected = (weights @ by_head[2]).swapaxes(0, 1).reshape(tokens, -1)
    score_error = 2.0 ** -(precision.score_fraction + 1) + 2.0**-14
    # A floored probability loses less than one of the 2^(AB-1) or more steps the largest has.
    floor_error = tokens * weights.max(axis=2).T / 2 ** (precision.activation_bits - 1)
    bound = 1 + top * 2 * (score_error + floor_error)
    assert (np.abs(y - expected).reshape(tokens, heads, d) <= bound[:, :, None]).all()


@PRECISION
@pytest.mark.parametrize("multiplier", [1, 65535])
def test_hidden_keys_are_not_there(precision: Precision, multiplier: int) -> None:
    """However small the other scores are, saturated ones among them; where all keys are hidden the values' mean is left."""
    rng, top = np.random.default_rng(1), (1 << (precision.activation_bits - 1)) - 1
    q, k, v = (rng.integers(-top, top, (9, 4)) for _ in range(3))
    q[0], k[:] = top, -top
    unit = scaling(np.full(4, 2.0**-precision.context_fraction), np.zeros(4))
    shift = np.array([0 if multiplier > 1 else 2 * precision.activation_bits - 4])
    entries = np.zeros((1, 9, 9), np.int16)
    entries[:, 1:, [0, 1, 2, 3, 6]] = HIDDEN
    entries[:, 0] = HIDDEN
    bias = ScoreBias(entries, np.zeros(1, np.int64))
    hiding = IntegerAttention("a", "q", "k", "v", "y", 1, np.array([multiplier]), shift, unit, bias)
    y = attention(hiding, q, k, v, precision)
    seen = [4, 5, 7, 8]
    np.testing.assert_array_equal(y[1:], attention(replace(hiding, bias=None), q, k[seen], v[seen], precision)[1:])
    np.testing.assert_allclose(y[0], v.mean(axis=0), atol=1)


@pytest.mark.parametrize("normalisation", ["all", "chosen"])
@given(seed=SEEDS, count=st.integers(1, 40))
@RANDOM
def test_route_is_softmax_and_top_k(normalisation: GateNormalisation, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    fine = rng.integers(-32768, 32768, (6, 16))
    weight = rng.integers(-127, 128, (2, count, 16)).astype(np.int8)
    scale = rng.uniform(0.2, 4, 2) / (127 * 32768)
    parameters = scaling(scale * math.log2(math.e) * 2.0**10, np.zeros(2))
    bias = rng.integers(-1000, 1000, (2, count))
    k = int(rng.integers(1, count, endpoint=True))
    operation = IntegerRoute("route", "x", "y", weight, bias, parameters.multiplier, parameters.shift, k, normalisation)
    for task in range(2):
        routing = route(operation, fine, task, PRECISIONS["w8a8"])
        logits = (fine @ weight[task].T.astype(np.int64) + bias[task]) * scale[task]
        best = np.take_along_axis(logits, routing.chosen, axis=1)
        assert np.array_equal(best, -np.sort(-logits, axis=1)[:, :k])
        expected = (
            np.take_along_axis(softmax(logits), routing.chosen, axis=1) if normalisation == "all" else softmax(best)
        )
        assert np.abs(routing.gates / 2.0**15 - expected).max() < 1.5e-3
        if normalisation == "chosen":
            assert np.abs(routing.gates.sum(axis=1) - 2**15).max() <= 2 + k


@pytest.mark.parametrize("normalisation", ["all", "chosen", "none"])
@given(seed=SEEDS, count=st.sampled_from([6, 12]))
@RANDOM
def test_route_is_sigmoids_of_experts_in_kept_groups(normalisation: GateNormalisation, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    fine = rng.integers(-32768, 32768, (6, 16))
    weight = rng.integers(-127, 128, (1, count, 16)).astype(np.int8)
    scale = rng.uniform(0.2, 4, 1) / (127 * 32768)
    parameters = scaling(scale * math.log2(math.e) * 2.0**10, np.zeros(1))
    bias = np.zeros((1, count), np.int64)
    fields = (weight, bias, parameters.multiplier, parameters.shift, 3, normalisation)
    routing = route(
        IntegerRoute("route", "x", "y", *fields, score="sigmoid", group=3, kept_groups=1), fine, 0, PRECISIONS["w8a8"]
    )
    logits = (fine @ weight[0].T.astype(np.int64)) * scale
    group = logits.reshape(6, -1, 3).max(axis=2).argmax(axis=1)
    assert (np.sort(routing.chosen, axis=1) == 3 * group[:, None] + np.arange(3)).all()
    scores = 1 / (1 + np.exp(-logits))
    expected = np.take_along_axis(scores, routing.chosen, axis=1)
    if normalisation != "none":
        expected /= (scores if normalisation == "all" else expected).sum(axis=1, keepdims=True)
    assert np.abs(routing.gates / 2.0**15 - expected).max() < 1.5e-3


def test_the_table_of_sigmoids_is_as_near_as_documented() -> None:
    t = np.arange(-(18 << 10), 18 << 10)
    found, exact = sigmoid(t, 10) / 65535, 1 / (1 + 2.0 ** (-t / 1024))
    assert np.abs(found - exact).max() < 3.3e-5
    assert ((np.abs(found - exact) - 1 / 65535)[t < 0] < 2.4e-4 * exact[t < 0]).all()


@PRECISION
@given(seed=SEEDS)
@RANDOM
def test_embed_is_a_patch_projection(precision: Precision, seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = (1 << precision.activation_bits) - 1
    pixels = rng.integers(0, top + 1, (4, 12))
    weight = rng.integers(-100, 100, (5, 12)).astype(np.int8)
    ratio = np.full(5, 8000 / (12 * 100 * top))
    initial = rng.integers(-5000, 5000, (5, 5))
    operation = IntegerEmbed("e", "image", "x", weight, scaling(ratio, np.full(5, 77)), initial, 1)
    y = embed(operation, pixels, precision)
    assert np.array_equal(y[0], initial[0])
    expected = initial[1:] + (pixels @ weight.T.astype(np.int64) + 77) * ratio
    assert np.abs(y[1:] - expected).max() <= 0.5 + 8000 * 2.0**-15


@PRECISION
@given(seed=SEEDS, count=st.integers(1, 5))
@RANDOM
def test_experts_add_the_gated_mlps(precision: Precision, seed: int, count: int) -> None:
    """Each chosen expert adds gate · MLP to the residual; rounding costs about half a step an expert."""
    rng = np.random.default_rng(seed)
    tokens, d, hidden, top = 5, 8, 6, 1 << precision.activation_bits
    x = rng.integers(-127, 128, (tokens, d))
    first, second = (rng.integers(-100, 101, s).astype(np.int8) for s in ((count, hidden, d), (count, d, hidden)))
    g_scale, offset, s2 = 3.0 / 127 / 100 / 3, int(0.17 * 2**precision.delta_fraction), precision.delta_fraction + 11
    s2 -= precision.activation_bits
    one = scaling(np.full((count, hidden), g_scale * 2.0**precision.gelu_fraction), np.zeros((count, hidden)))
    ratio = 2000.0 / (top * 100)
    two = scaling(np.full((count, d), ratio * 2.0**precision.expert_fraction), rng.integers(-99, 99, (count, d)))
    epilogue = GeluRequantise(np.full((count, hidden), 200), s2, offset)
    operation = IntegerExperts("m", "x", "routing", "r", "y", first, one, epilogue, second, two)
    k = int(rng.integers(1, count, endpoint=True))
    chosen = np.argsort(rng.random((tokens, count)), axis=1)[:, :k]
    gates = rng.integers(0, 2**15 // k, (tokens, k))
    residual = rng.integers(-9000, 9000, (tokens, d))
    routing = Routing(np.zeros((tokens, count), np.int64), chosen, gates)
    y = experts(operation, x, routing, residual, precision, "exact")
    step = 200 * 2.0 ** (precision.delta_fraction - s2)
    expected = residual.astype(np.float64)
    for n in range(tokens):
        for e, gate in zip(chosen[n], gates[n], strict=True):
            h = np.clip(
                (gelu(first[e].astype(np.int64) @ x[n] * g_scale) + offset / 2.0**precision.delta_fraction) * step,
                0,
                top - 1,
            )
            expected[n] += gate / 2.0**15 * (second[e].astype(np.int64) @ h + two.bias[e]) * ratio
    hidden_error = 0.5 + step * (1.4e-4 + 2.0**-precision.gelu_fraction)
    assert np.abs(y - expected).max() <= 0.6 * k + 1 + ratio * 100 * hidden * hidden_error
