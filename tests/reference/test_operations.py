"""Each operation of the NumPy reference equals the scalar implementation, for any shapes, parameters and values.

The parameters are drawn from their whole range (multipliers from 0, shifts to 63) and the values with many extremes, so
saturation, ties and vanishing values occur; a shift that keeps the result in view is drawn as often as any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moehls.integer.operations import (
    AddResidual,
    Epilogue,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNorm,
    IntegerRoute,
    Raw,
    Requantise,
    Scaling,
    ScoreBias,
    WeightArray,
)
from moehls.integer.precision import PRECISIONS, Precision
from moehls.network.operations import ActivationForm, GateNormalisation, Score
from moehls.reference.attention import attention
from moehls.reference.embed import embed
from moehls.reference.experts import experts
from moehls.reference.linear import linear
from moehls.reference.norm import norm
from moehls.reference.route import Routing, route
from tests.reference import scalar
from tests.support.random_networks import random_score_bias

SIZE = st.integers(1, 7)


@dataclass(frozen=True)
class Draw:
    """Random arrays of one precision from a seed."""

    rng: np.random.Generator
    precision: Precision
    form: ActivationForm

    def values(self, bits: int, shape: tuple[int, ...], *, signed: bool = True) -> IntArray:
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        kinds = [
            self.rng.integers(low, high, shape, endpoint=True),
            self.rng.choice(np.array([low, high, 0, 1]), shape),
            self.rng.integers(max(low, -3), 4, shape),
        ]
        return np.choose(self.rng.choice(3, shape, p=[0.6, 0.2, 0.2]), kinds).astype(np.int64)

    def operand(self, *shape: int, signed: bool = True) -> IntArray:
        return self.values(self.precision.activation_bits, shape, signed=signed)

    def weight(self, *shape: int) -> WeightArray:
        limit = (1 << (self.precision.weight_bits - 1)) - 1
        values = np.clip(self.values(self.precision.weight_bits, shape), -limit, limit)
        return values.astype(np.int8) if limit < 128 else values.astype(np.int16)

    def scaling(self, spread: float, target: float, *shape: int) -> Scaling:
        """Half of the channels take accumulators of size `spread` to about `target`, half are anything."""
        p = self.precision
        multiplier = self.values(p.multiplier_bits, shape, signed=False)
        near = np.clip(np.log2(spread * np.maximum(multiplier, 1) / target) + self.rng.integers(-2, 3, shape), 0, 63)
        anything = self.rng.random(shape) < 0.5
        shift = np.where(anything, self.rng.integers(0, 64, shape), near).astype(np.int64)
        bias = self.values(int(np.log2(spread)) + 1, shape)
        return Scaling(bias, multiplier, shift)

    def gelu(self, *shape: int) -> GeluRequantise:
        p = self.precision
        offset = int(self.rng.integers(0, 1 << p.delta_fraction))
        shift = int(self.rng.integers(0, 64)) if self.rng.random() < 0.5 else p.delta_fraction + 8 - p.activation_bits
        return GeluRequantise(self.values(8, shape, signed=False), shift, offset)

    def gated(self, *shape: int) -> GatedRequantise:
        p = self.precision
        usual = p.delta_fraction + 8 + int(self.rng.integers(0, 4))
        shift = int(self.rng.integers(0, 64)) if self.rng.random() < 0.3 else usual
        return GatedRequantise("u", self.values(8, shape, signed=False), shift)

    def score_bias(self, heads: int, tokens: int, spread: float) -> ScoreBias:
        return random_score_bias(self.rng, (heads, tokens, tokens), np.full(heads, spread), self.precision)

    def accumulator(self, terms: int) -> float:
        """Usual size of a sum of products."""
        return math.sqrt(terms) * 2.0 ** (self.precision.weight_bits + self.precision.activation_bits - 3)


def draws(test: Callable[..., None]) -> Callable[..., None]:
    """Every precision; seeds and GELU forms by hypothesis."""
    drawn = st.builds(
        lambda seed, precision, form: Draw(np.random.default_rng(seed), precision, form),
        st.integers(0, 2**32 - 1),
        st.sampled_from(list(PRECISIONS.values())),
        st.sampled_from(get_args(ActivationForm)),
    )
    return settings(max_examples=60, deadline=None)(given(draw=drawn, n=SIZE, d=SIZE, out=SIZE)(test))


@draws
def test_embed(draw: Draw, n: int, d: int, out: int) -> None:
    prefix = int(draw.rng.integers(0, 3))
    scaling = draw.scaling(draw.accumulator(d), 2.0**15, out)
    initial = draw.values(draw.precision.residual_bits, (prefix + n, out))
    operation = IntegerEmbed("embed", "image", "x", draw.weight(out, d), scaling, initial, prefix)
    pixels = draw.operand(n, d, signed=False)
    assert embed(operation, pixels, draw.precision).tolist() == scalar.embed(operation, pixels.tolist(), draw.precision)


@draws
def test_norm(draw: Draw, n: int, d: int, out: int) -> None:
    start = int(draw.rng.integers(0, n))
    shift = draw.rng.choice([draw.rng.integers(0, 64, d), draw.rng.integers(8, 16, d)])
    scaling = Scaling(draw.values(30, (d,)), draw.values(16, (d,)), shift)
    epsilon = int(draw.rng.choice([0, 1, 10**6]))
    centred = bool(draw.rng.integers(2))
    operation = IntegerNorm("norm", "x", "fine", "operand", start, n, scaling, epsilon, centred)
    x = draw.values(16, (n, d)) // int(draw.rng.choice([1, 100, 65536]))
    fine, operand = norm(operation, x, draw.precision)
    assert (fine.tolist(), operand.tolist()) == scalar.norm(operation, x.tolist(), draw.precision)


@pytest.mark.parametrize("epilogue", ["requantise", "gelu", "gated", "add", "raw"])
@draws
def test_linear(epilogue: str, draw: Draw, n: int, d: int, out: int) -> None:
    p = draw.precision
    kinds: dict[str, tuple[float, Epilogue]] = {
        "requantise": (2.0**p.activation_bits, Requantise()),
        "gelu": (2.0**p.gelu_fraction, draw.gelu(out)),
        "gated": (2.0**p.gelu_fraction, draw.gated(out)),
        "add": (2.0**p.residual_bits, AddResidual("r")),
        "raw": (1.0, Raw()),
    }
    target, kind = kinds[epilogue]
    scaling = draw.scaling(draw.accumulator(d), target, out)
    operation = IntegerLinear("linear", "x", "y", draw.weight(out, d), scaling, kind)
    x = draw.operand(n, d, signed=bool(draw.rng.integers(2)))
    bits = {"add": p.residual_bits, "gated": p.activation_bits}.get(epilogue)
    other = None if bits is None else draw.values(bits, (n, out))
    expected = scalar.linear(operation, x.tolist(), None if other is None else other.tolist(), p, draw.form)
    assert linear(operation, x, other, p, draw.form).tolist() == expected


@draws
def test_attention(draw: Draw, n: int, d: int, out: int) -> None:
    p, heads = draw.precision, out
    score = draw.scaling(draw.accumulator(d), 2.0 ** (p.score_fraction + 2), heads)
    scaling = draw.scaling(2.0 ** (p.activation_bits + p.context_fraction - 1), 2.0**p.activation_bits, heads * d)
    bias = draw.score_bias(heads, n, draw.accumulator(d)) if draw.rng.integers(2) else None
    operation = IntegerAttention("attention", "q", "k", "v", "y", heads, score.multiplier, score.shift, scaling, bias)
    q, k, v = (draw.operand(n, heads * d) for _ in range(3))
    expected = scalar.attention(operation, q.tolist(), k.tolist(), v.tolist(), p)
    assert attention(operation, q, k, v, p).tolist() == expected


@pytest.mark.parametrize(("score", "selects"), [("softmax", False), ("sigmoid", False), ("sigmoid", True)])
@pytest.mark.parametrize("normalisation", ["all", "chosen", "none"])
@draws
def test_route(
    normalisation: GateNormalisation, score: Score, selects: bool, draw: Draw, n: int, d: int, out: int
) -> None:
    p, tasks = draw.precision, 2
    spread = 2.0 ** (p.weight_bits + p.fine_bits - 3) * d**0.5
    scaling = draw.scaling(spread, 2.0 ** (p.logit_fraction + 2), tasks)
    weight, bias = draw.weight(tasks, out, d), draw.values(int(np.log2(spread)) + 1, (tasks, out))
    copied = draw.rng.integers(0, out, out)
    weight, bias = weight[:, copied], bias[:, copied]
    group = int(draw.rng.choice([size for size in range(1, out + 1) if out % size == 0]))
    kept = int(draw.rng.integers(1, out // group, endpoint=True))
    k = int(draw.rng.integers(1, kept * group, endpoint=True))
    capacity, choice = int(draw.rng.choice([0, 1, n])), bool(draw.rng.integers(2))
    room = k == 2 and capacity > 0 and choice and bool(draw.rng.integers(2))
    operation = IntegerRoute(
        "route", "fine", "routing", weight, bias, scaling.multiplier, scaling.shift, k,
        "all" if score == "softmax" and normalisation == "none" else normalisation,
        threshold=0 if room else int(draw.rng.choice([0, 9000])), renormalise=not room and bool(draw.rng.integers(2)),
        capacity=capacity, priority="choice" if choice else "token", room=room,
        score=score, group=group, kept_groups=kept, pairs=selects and group > 1 and bool(draw.rng.integers(2)),
        selection=draw.values(18, (tasks, out))[:, copied] if selects else None,
    )  # fmt: skip
    fine = draw.values(p.fine_bits, (n, d))
    for task in range(tasks):
        routing = route(operation, fine, task, p)
        found = (routing.logits.tolist(), routing.chosen.tolist(), routing.gates.tolist())
        assert found == scalar.route(operation, fine.tolist(), task, p)


@pytest.mark.parametrize("gated", [False, True])
@draws
def test_experts(gated: bool, draw: Draw, n: int, d: int, out: int) -> None:
    p, hidden = draw.precision, out
    count = int(draw.rng.integers(1, 6))
    k = int(draw.rng.integers(1, count, endpoint=True))
    operation = IntegerExperts(
        "experts",
        "x",
        "routing",
        "r",
        "y",
        draw.weight(count, hidden, d),
        draw.scaling(draw.accumulator(d), 2.0**p.gelu_fraction, count, hidden),
        draw.gelu(count, hidden),
        draw.weight(count, d, hidden),
        draw.scaling(draw.accumulator(hidden), 2.0**23, count, d),
    )
    if gated:
        up_scaling = draw.scaling(draw.accumulator(d), 2.0**p.activation_bits, count, hidden)
        second = replace(draw.gelu(count, hidden), offset=0)
        operation = replace(operation, gelu=second, up_weight=draw.weight(count, hidden, d), up_scaling=up_scaling)
    operation = replace(operation, weigh_inputs=bool(draw.rng.integers(2)))
    x, residual = draw.operand(n, d), draw.values(p.residual_bits, (n, d))
    columns = count + int(draw.rng.integers(0, 2))  # the last may have no expert
    chosen = np.argsort(draw.rng.random((n, columns)), axis=1)[:, :k]
    gates = draw.rng.integers(0, 2**15, (n, k), endpoint=True)
    routing = Routing(np.zeros((n, count), np.int64), chosen, gates)
    expected = scalar.experts(operation, x.tolist(), chosen.tolist(), gates.tolist(), residual.tolist(), p, draw.form)
    assert experts(operation, x, routing, residual, p, draw.form).tolist() == expected


def test_equal_logits_go_to_the_lower_expert() -> None:
    weight = np.array([[[1], [3], [3], [2], [3]]], np.int8)
    zeros = np.zeros((1, 5), np.int64)
    one = np.array([1], np.int64)
    operation = IntegerRoute("route", "fine", "routing", weight, zeros, one, one, 3, "all")
    routing = route(operation, np.array([[100], [0], [-100]], np.int64), 0, PRECISIONS["w8a8"])
    assert routing.chosen.tolist() == [[1, 2, 4], [0, 1, 2], [0, 3, 1]]


def test_normalised_value_saturates_in_very_wide_rows() -> None:
    """One channel that stands out of 20,000 lies 141 deviations from the mean; norm_bits hold 128."""
    width = 20_000
    x = np.zeros((1, width), np.int64)
    x[0, 0] = 30_000
    unit = Scaling(np.full(width, -(1 << 19)), np.ones(width, np.int64), np.zeros(width, np.int64))
    operation = IntegerNorm("norm", "x", "fine", "operand", 0, 1, unit, 0)
    fine, operand = norm(operation, x, PRECISIONS["w8a8"])
    assert fine[0, 0] == -1
    assert (fine.tolist(), operand.tolist()) == scalar.norm(operation, x.tolist(), PRECISIONS["w8a8"])


def test_context_saturates_at_the_most_negative_value() -> None:
    """All values -2^15: where the reciprocal is a little large the context leaves 24 bits and must not wrap."""
    p = PRECISIONS["w16a16"]
    one, zero = np.ones(1, np.int64), np.zeros(1, np.int64)
    operation = IntegerAttention("a", "q", "k", "v", "y", 1, one, zero, Scaling(np.array([1 << 23]), one, zero))
    lowest = []
    for tokens in range(1, 40):
        q = np.zeros((tokens, 1), np.int64)
        k = np.arange(tokens)[:, None] * 77
        v = np.full((tokens, 1), -(1 << 15))
        y = attention(operation, q + 1, k, v, p)
        assert y.tolist() == scalar.attention(operation, (q + 1).tolist(), k.tolist(), v.tolist(), p)
        lowest.append(int(y.min()))
    assert min(lowest) == 0
