"""Proves which router and which experts a mixture is, from the coefficients its terms have on sampled logits.

The samples hold logits of many scales, equal logits, and rows in which all tokens agree, so that thresholds,
capacities and tie rules show. A term belongs to expert e where its coefficient is expert e's gate weight on every
row, perhaps times a constant, which then goes to the expert's second layer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import get_args

import numpy as np
import numpy.typing as npt

from moehls.frontend.activations import sigmoid
from moehls.frontend.layout import Array, LayoutError
from moehls.frontend.values import ExpertTerm, Mixture, RouteSource
from moehls.network.interpreter import eligible, within_capacity
from moehls.network.operations import FloatArray, GateNormalisation, Lattice, Priority, Score

TOLERANCE = 1e-5
_SMALLEST = 1e-3
"""Least factor a gate weight may be scaled by."""
ROWS = 1024
"""Least number of sampled rows."""
_NEAR = 1e-6
_APART = 1e-4
"""Logits that differ by more have probabilities that differ, if they are not too small to count."""
LEAST = 10
"""Least number of sampled tensors: one of each kind below."""


def sample_logits(shape: tuple[int, ...], seed: int) -> tuple[FloatArray, ...]:
    """Random logit tensors of `shape` (experts last), of several kinds."""
    rng = np.random.default_rng(seed)
    tokens = max(1, int(np.prod(shape[:-1])))
    samples: list[FloatArray] = []
    for number in range(max(LEAST, min(64, -(-ROWS // tokens)))):
        values = rng.standard_normal(shape)
        kind = number % LEAST
        if kind in (1, 2, 3):
            values *= (0.02, 4.0, 9.0)[kind - 1]
        elif kind == 4:
            values = rng.integers(-2, 3, shape).astype(np.float64)
        elif kind == 5:
            values = rng.standard_normal(shape[-1]) * 3 + 0.01 * values
        elif kind == 6:
            values = -np.abs(values) * 3
        elif kind == 7:
            values = np.round(values) + rng.integers(0, 2) * 20.0
        elif kind > 7:  # all tokens prefer one half of the experts, so that each expert is once left out
            values = 0.1 * values + 3.0 * ((np.arange(shape[-1]) * 2 < shape[-1]) == (kind == 8))
        samples.append(values.astype(np.float32))
    return tuple(samples)


def distinct(sample: FloatArray) -> FloatArray:
    """Logits of at most 6 in steps of 1/256, whose sigmoids are equal in float32 only where the logits are."""
    return np.round(sample * 6.0 / max(6.0, float(np.abs(sample).max())) * 256).astype(np.float32) / np.float32(256)


def below_bias(samples: tuple[FloatArray, ...], bias: FloatArray, seed: int) -> tuple[FloatArray, ...]:
    """More samples, where a bias `[experts]` of the sigmoids is negative: many sums of the two are negative too.

    Experts that are left out by zeros in place of -∞ are then chosen before them.
    """
    negative = -bias[bias < 0].astype(np.float64)
    if not negative.size:
        return ()
    share = float(negative.min()) / 4
    level = np.log(share / (1 + share))
    rng = np.random.default_rng(seed)
    found: list[FloatArray] = []
    for sample, portion in zip(samples, (0.5, 0.8, 0.95, 1.0) * 2, strict=False):
        steps = rng.integers(0, 256, sample.shape) / 256
        found.append(np.where(rng.random(sample.shape) < portion, level - steps, sample).astype(np.float32))
    return tuple(found)


@dataclass(frozen=True)
class Gate:
    """How a router weighs and leaves out experts; the fields are those of `Route`."""

    k: int
    normalisation: GateNormalisation
    threshold: float = 0.0
    renormalise: bool = False
    capacity: int = 0
    priority: Priority = "token"
    score: Score = "softmax"
    group: int = 0
    kept_groups: int = 0
    pairs: bool = False
    selection: tuple[float, ...] | None = None
    """of an expert each"""
    room: bool = False


def gate_weights(logits: Array, gate: Gate) -> npt.NDArray[np.float64]:
    """`[…, tokens, experts]`: the gate weight of each chosen expert, zero for the others; equal logits to the lower
    index."""
    wide = logits.astype(np.float64)
    ranks = logits
    if gate.selection is not None:  # in float32, as the graph adds
        ranks = sigmoid(wide).astype(np.float32) + np.array(gate.selection, np.float32)
    best = eligible(ranks, gate.group, gate.kept_groups, gate.pairs)
    order = np.argsort(-best, axis=-1, kind="stable")[..., : gate.k]
    scores = sigmoid(wide) if gate.score == "sigmoid" else np.exp(wide - wide.max(axis=-1, keepdims=True))
    chosen = np.zeros_like(scores)
    np.put_along_axis(chosen, order, np.take_along_axis(scores, order, axis=-1), axis=-1)
    gates = chosen
    if gate.normalisation != "none":
        total = scores if gate.normalisation == "all" else chosen
        gates = np.asarray(chosen / total.sum(axis=-1, keepdims=True))
    if gate.threshold > 0:
        gates = np.where(gates > gate.threshold, gates, 0)
    if gate.renormalise:
        gates = gates / np.maximum(gates.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    if gate.capacity:
        wanted = np.take_along_axis(gates, order, axis=-1) > 0
        room = within_capacity(order, wanted, logits.shape[-1], gate.capacity, gate.priority)
        kept = np.zeros(gates.shape, bool)
        np.put_along_axis(kept, order, room, axis=-1)
        gates = gates * kept
    if gate.room:
        gates = gates / np.maximum(gates.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    return gates


def weights_by_value(logits: Array, gate: Gate, kept: bool) -> npt.NDArray[np.float64]:
    """As `gate_weights` of a plain gate, where experts are chosen by comparison with the k-th logit: at a tie there all are kept,
    or, where they must be more than the next one, none."""
    wide = logits.astype(np.float64)
    order = -np.sort(-wide, axis=-1)
    if kept:
        chosen = wide >= order[..., gate.k - 1 : gate.k]
    else:
        chosen = wide > order[..., gate.k : gate.k + 1] if gate.k < wide.shape[-1] else np.ones(wide.shape, bool)
    scores = sigmoid(wide) if gate.score == "sigmoid" else np.exp(wide - wide.max(axis=-1, keepdims=True))
    if gate.normalisation == "none":
        return scores * chosen
    total = scores if gate.normalisation == "all" else scores * chosen
    return np.asarray(scores * chosen / np.maximum(total.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny))


@dataclass(frozen=True)
class MatchedExperts:
    """A router and expert weights in the order of its columns, as `Route` and `Experts` hold them."""

    gate: Gate
    arrays: dict[str, FloatArray]
    weigh_inputs: bool
    """whether the gate weights multiply what the experts read"""
    lattices: dict[str, Lattice]
    """of the `hidden` layers and the `up` linears, `[experts · hidden]`, where all experts have one"""


def flat_logits(source: RouteSource) -> Array:
    """All sampled rows, `[samples · tokens, experts]`."""
    layout = source.logits.layout
    kinds = [axis.token for axis in layout.axes]
    if any(not left and right for left, right in pairwise(kinds)):
        raise LayoutError("the router's logits have experts before tokens")
    return np.concatenate([sample.reshape(-1, layout.features) for sample in source.samples])


def match_experts(mixture: Mixture) -> MatchedExperts:
    """Find k, the normalisation and which term is which expert.

    Raises:
        LayoutError: the coefficients are not those of a top-k gate, or an expert is missing.
    """
    logits = flat_logits(mixture.source)
    experts = logits.shape[1]
    found = mixture.terms if len(mixture.terms) <= experts else merged_terms(mixture.terms)
    weigh_inputs = any(term.inputs is not None for term in found)
    if weigh_inputs:
        found = tuple(map(_by_inputs, found))
    coefficients = np.stack([term.coefficient for term in found], axis=1)
    used = int((coefficients != 0).sum(axis=1).max())
    if not 1 <= used <= experts:
        raise LayoutError(f"{used} expert outputs are added for a token, but the router has {experts} columns")
    if len(found) != experts:
        left_out = "; an `if` in Python on the routing leaves out what the example input did not choose: mask instead"
        if len(found) == 1:
            left_out = "; a network of all tokens may be added or weighed by sigmoid(gate(x)), as shared experts are"
        raise LayoutError(
            f"{len(found)} experts meet a router of {experts} columns" + (left_out if len(found) < experts else "")
        )
    apart = np.diff(np.sort(logits, axis=1), axis=1).min(axis=1, initial=np.inf) > _APART
    without_ties = max(1, int((coefficients != 0).sum(axis=1)[apart].max(initial=0)))
    for gates in _hypotheses(mixture, logits, coefficients, used):
        matches = [
            (gate, match) for gate in gates if (match := _match(gate, mixture, logits, coefficients)) is not None
        ]
        if len(matches) > 1:
            raise LayoutError(
                "an expert takes a limited number of tokens, but which come first does not show on samples"
            )
        for gate, match in matches:
            return _matched(gate, match, found, weigh_inputs)
    for gate, kept in product(_plain(without_ties), (True, False)):
        by_value = _match_by_value(gate, kept, logits, coefficients)
        if by_value is not None:
            return _matched(gate, by_value, found, weigh_inputs)
    tokens = len(logits) // len(mixture.source.samples)
    taken = (coefficients != 0).reshape(-1, tokens, experts).sum(axis=1)
    if tokens > taken.max() == taken.min() and experts > 1:
        raise LayoutError(
            f"every expert takes {taken.max()} tokens, whatever the routing: experts choose their tokens (expert choice), which "
            "has no place on the accelerator; tokens must choose their experts"
        )
    if mixture.source.ordered and (coefficients != 0).sum(axis=1).min() < without_ties:
        raise LayoutError(
            f"tokens are put in the order of their gates by {mixture.source.ordered[0]!r} before the experts' places are filled "
            "(batch-prioritised routing); the accelerator fills them in the order of the tokens, all first choices before the "
            "second ones (V-MoE with batch_priority=False) or token by token, or takes every token where no capacity is given"
        )
    raise LayoutError(
        f"the weights of the experts are not a top-{without_ties} gate: neither softmax over all {experts} experts "
        "or over the chosen ones nor sigmoids, plain or divided by their sum, give them on sampled logits, with or without "
        "groups that the largest logits choose, or the largest sums of two sigmoids, with or without a bias on them for the "
        "choice (experts outside of a group at -inf, as 0 is more than a negative one), a threshold (`Where(gate > t, gate, 0)`, "
        "also renormalised; what it "
        "leaves out takes no place) and a capacity that tokens fill in order, first choices first or token by token"
    )


def _matched(
    gate: Gate, match: tuple[list[int], list[float]], found: tuple[ExpertTerm, ...], weigh_inputs: bool
) -> MatchedExperts:
    """The experts in the order of their columns, with their constant factors."""
    columns, factors = match
    scaled = _scaled_inputs if weigh_inputs else _scaled
    terms = [scaled(found[place], factors[place]) for place in np.argsort(columns)]
    return MatchedExperts(gate, _arrays(terms), weigh_inputs, _lattices(terms))


def _arrays(terms: list[ExpertTerm]) -> dict[str, FloatArray]:
    """The weights and biases of all experts by the names that `Experts` has for them."""
    arrays = {
        "first_weight": np.stack([term.first for term in terms]),
        "first_bias": np.stack([term.first_bias for term in terms]),
        "second_weight": np.stack([term.second for term in terms]),
        "second_bias": np.stack([term.second_bias for term in terms]),
    }
    gated = [(term.up, term.up_bias) for term in terms if term.up is not None and term.up_bias is not None]
    if gated and len(gated) == len(terms):
        arrays["up_weight"] = np.stack([weight for weight, _ in gated])
        arrays["up_bias"] = np.stack([bias for _, bias in gated])
    elif gated:
        raise LayoutError("some experts are gated (as SwiGLU is) and some are not")
    return arrays


def _lattices(terms: list[ExpertTerm]) -> dict[str, Lattice]:
    """Those of the `hidden` layers and the `up` linears, where all experts have one."""
    grids = {"hidden": [term.grid for term in terms], "up": [term.up_grid for term in terms]}
    return {role: joint for role, each in grids.items() if (joint := _joint_lattice(each)) is not None}


def _joint_lattice(each: list[Lattice | None]) -> Lattice | None:
    """Those of all experts in one, where they have integers of one kind."""
    found = [lattice for lattice in each if lattice is not None]
    if len(found) < len(each) or len({(lattice.bits, lattice.signed) for lattice in found}) != 1:
        return None
    scale, zero = (np.concatenate([getattr(lattice, name) for lattice in found]) for name in ("scale", "zero"))
    return Lattice(scale, zero, found[0].bits, found[0].signed)


def _plain(used: int) -> list[Gate]:
    softmaxes = [Gate(used, order) for order in get_args(GateNormalisation) if order != "none"]
    return softmaxes + [Gate(used, order, score="sigmoid") for order in ("none", "chosen", "all")]


def _hypotheses(mixture: Mixture, logits: Array, coefficients: Array, used: int) -> Iterator[tuple[Gate, ...]]:
    """Gates that the coefficients may be, likely ones first; those of a group exclude each other."""
    experts = logits.shape[1]
    plain = _plain(used)
    for gate in plain:
        yield (gate,)
    thresholds = sorted({value for value in mixture.source.compared if 0 < value < 1})
    pruned = [
        replace(gate, k=k, threshold=threshold, renormalise=renormalise)
        for threshold, k, gate, renormalise in product(thresholds, range(used, experts + 1), plain, (False, True))
    ]
    for gate in pruned:
        yield (gate,)
    tokens = len(logits) // len(mixture.source.samples)
    capacity = int((coefficients != 0).reshape(-1, tokens, experts).sum(axis=1).max())
    if capacity < tokens:
        for gate in (*plain, *pruned):
            priorities: tuple[Priority, ...] = get_args(Priority) if gate.k > 1 else ("token",)
            yield tuple(replace(gate, capacity=capacity, priority=priority) for priority in priorities)
        for gate in plain:
            if gate.k == 2:
                yield (replace(gate, capacity=capacity, priority="choice", room=True),)
    biased = [
        replace(gate, selection=tuple(map(float, added)))
        for added in mixture.source.added
        for gate in plain
        if gate.score == "sigmoid"
    ]
    for gate in biased:
        yield (gate,)
    for size in (size for size in range(2, experts) if experts % size == 0):
        for kept in range(-(-used // size), experts // size):
            for gate in (*plain, *biased):
                yield (replace(gate, group=size, kept_groups=kept),)
            for gate in biased:
                yield (replace(gate, group=size, kept_groups=kept, pairs=True),)


def _match(gate: Gate, mixture: Mixture, logits: Array, coefficients: Array) -> tuple[list[int], list[float]] | None:
    """The columns and factors with which the terms have the weights of `gate`."""
    tokens = len(logits) // len(mixture.source.samples)
    expected = gate_weights(logits.reshape(-1, tokens, logits.shape[1]), gate).reshape(logits.shape)
    if gate.threshold > 0:  # a gate weight as near as this may fall on either side
        plain = gate_weights(logits, replace(gate, threshold=0.0, renormalise=False, capacity=0))
        clear = (np.abs(plain - gate.threshold) > _NEAR).all(axis=1)
        if gate.capacity:  # it decides over the places of later tokens
            clear = np.repeat(clear.reshape(-1, tokens).all(axis=1), tokens)
        expected, coefficients = expected[clear], coefficients[clear]
    return _columns(coefficients, expected) if _as_many(coefficients, expected) else None


def _as_many(coefficients: Array, expected: Array) -> bool:
    """Whether every row has as many experts, those aside whose weight is all but zero."""
    some, clearly = ((coefficients != 0).sum(axis=1), (np.abs(coefficients) > _SMALLEST).sum(axis=1))
    return not ((expected > _SMALLEST).sum(axis=1) > some).any() and not (clearly > (expected != 0).sum(axis=1)).any()


def _match_by_value(gate: Gate, kept: bool, logits: Array, coefficients: Array) -> tuple[list[int], list[float]] | None:
    """As `_match`, of experts that are compared with the k-th largest; the weights are those of the comparison at ties too."""
    order = -np.sort(-logits, axis=1)
    gap = order[:, gate.k - 1] - order[:, gate.k] if gate.k < logits.shape[1] else np.full(len(logits), np.inf)
    clear = (gap == 0) | (gap > _APART)  # the comparison may be of rounded probabilities
    expected, given = weights_by_value(logits[clear], gate, kept), coefficients[clear]
    return _columns(given, expected) if _as_many(given, expected) else None


def _scaled(term: ExpertTerm, factor: float) -> ExpertTerm:
    """A constant factor on the gate weight goes to the second layer."""
    if factor == 1:
        return term
    scale = np.float32(factor)
    return replace(term, second=term.second * scale, second_bias=term.second_bias * scale)


def _scaled_inputs(term: ExpertTerm, factor: float) -> ExpertTerm:
    """A constant factor on the gate weight of inputs goes to the matrices that read them."""
    if factor == 1:
        return term
    scale = np.float32(factor)
    return replace(term, first=term.first * scale, up=None if term.up is None else term.up * scale)


def _by_inputs(term: ExpertTerm) -> ExpertTerm:
    """The term with what multiplies its inputs as its coefficient.

    Raises:
        LayoutError: its output is weighed too, or is not zero where its input is.
    """
    if term.inputs is None:
        raise LayoutError("the inputs of some experts are weighed, of others the outputs")
    biases = [bias for bias in (term.first_bias, term.up_bias, term.second_bias) if bias is not None]
    kept = term.coefficient == 1
    of_zero = any(bias.any() for bias in biases) and bool((kept & (term.inputs == 0)).any())
    if of_zero or not (kept | (term.coefficient == 0)).all():
        raise LayoutError(
            "the inputs of an expert are weighed, and its outputs are not those of the chosen experts alone"
        )
    return replace(term, coefficient=term.inputs * kept)


def merged_terms(terms: tuple[ExpertTerm, ...]) -> tuple[ExpertTerm, ...]:
    """Terms with the same weights (the same expert in several slots) as one term with the sum of their coefficients."""
    known: dict[tuple[bytes, ...], ExpertTerm] = {}
    for term in terms:
        arrays = (term.first, term.first_bias, term.second, term.second_bias, term.up, term.up_bias)
        given = (np.ascontiguousarray(array) for array in arrays if array is not None)
        key = tuple(hashlib.blake2b(array.data, digest_size=16).digest() for array in given)
        same = known.get(key)
        known[key] = term if same is None else replace(same, coefficient=same.coefficient + term.coefficient)
    return tuple(known.values())


def _columns(coefficients: Array, expected: Array) -> tuple[list[int], list[float]] | None:
    """The expert whose gate weight each term has, times a constant factor; None unless they pair off one to one."""
    columns: list[int] = []
    factors: list[float] = []
    power = np.maximum((expected * expected).sum(axis=0), np.finfo(np.float64).tiny)
    for own in coefficients.astype(np.float64).T:
        factor = own @ expected / power
        factor[np.abs(factor - 1) <= TOLERANCE] = 1
        distance = np.abs(expected * factor - own[:, None]).max(axis=0) / np.maximum(np.abs(factor), _SMALLEST)
        nearest = int(distance.argmin())
        if not distance[nearest] <= TOLERANCE or abs(factor[nearest]) < _SMALLEST:
            return None
        columns.append(nearest)
        factors.append(float(factor[nearest]))
    return (columns, factors) if sorted(columns) == list(range(len(columns))) else None
