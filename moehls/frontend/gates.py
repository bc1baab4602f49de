"""Proves which router and which experts a mixture is, from the coefficients its terms have on sampled logits.

The samples hold logits of many scales, equal logits, and rows in which all tokens agree, so that thresholds,
capacities and tie rules show. A term belongs to expert e where its coefficient is expert e's gate weight on every
row, perhaps times a constant, which then goes to the expert's second layer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import numpy.typing as npt

from moehls.frontend.layout import Array, LayoutError
from moehls.frontend.values import ExpertTerm, Mixture, RouteSource
from moehls.network.operations import FloatArray, GateNormalisation

TOLERANCE = 1e-5
_SMALLEST = 1e-3
"""Least factor a gate weight may be scaled by."""
ROWS = 1024
"""Least number of sampled rows."""
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


def gate_weights(logits: Array, k: int, normalisation: GateNormalisation) -> npt.NDArray[np.float64]:
    """`[rows, experts]`: the gate weight of each chosen expert, zero for the others; equal logits to the lower
    index."""
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    chosen = np.zeros_like(exponentials)
    np.put_along_axis(chosen, order, np.take_along_axis(exponentials, order, axis=-1), axis=-1)
    total = exponentials if normalisation == "all" else chosen
    return np.asarray(chosen / total.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class MatchedExperts:
    """A router and expert weights in the order of its columns, as `Route` and `Experts` hold them."""

    k: int
    normalisation: GateNormalisation
    arrays: dict[str, FloatArray]


def flat_logits(source: RouteSource) -> Array:
    """All sampled rows, `[samples · tokens, experts]`."""
    experts = source.samples[0].shape[-1]
    return np.concatenate([sample.reshape(-1, experts) for sample in source.samples])


def match_experts(mixture: Mixture) -> MatchedExperts:
    """Find k, the normalisation and which term is which expert.

    Raises:
        LayoutError: the coefficients are not those of a top-k gate, or an expert is missing.
    """
    logits = flat_logits(mixture.source)
    experts = logits.shape[1]
    found = mixture.terms if len(mixture.terms) <= experts else merged_terms(mixture.terms)
    coefficients = np.stack([term.coefficient for term in found], axis=1)
    used = int((coefficients != 0).sum(axis=1).max())
    if not 1 <= used <= experts:
        raise LayoutError(f"{used} expert outputs are added for a token, but the router has {experts} columns")
    if len(found) != experts:
        left_out = "; an `if` in Python on the routing leaves out what the example input did not choose: mask instead"
        raise LayoutError(
            f"{len(found)} experts meet a router of {experts} columns" + (left_out if len(found) < experts else "")
        )
    for normalisation in get_args(GateNormalisation):
        expected = gate_weights(logits, used, normalisation)
        matched = _columns(coefficients, expected)
        if matched is not None:
            columns, factors = matched
            terms = [_scaled(found[place], factors[place]) for place in np.argsort(columns)]
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
            return MatchedExperts(used, normalisation, arrays)
    raise LayoutError(
        f"the weights of the experts are not a top-{used} gate: neither softmax over all {experts} experts "
        "nor over the chosen ones gives them on sampled logits; a threshold on the gate, a capacity that drops tokens "
        "or groups of experts that exclude others show so"
    )


def _scaled(term: ExpertTerm, factor: float) -> ExpertTerm:
    """A constant factor on the gate weight goes to the second layer."""
    if factor == 1:
        return term
    scale = np.float32(factor)
    return replace(term, second=term.second * scale, second_bias=term.second_bias * scale)


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
