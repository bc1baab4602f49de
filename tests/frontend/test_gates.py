"""Gates and activations are told by their values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from moehls.frontend.activations import gelu_exact, gelu_tanh, match_activation
from moehls.frontend.context import UnsupportedError
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.gates import Gate, flat_logits, gate_weights, match_experts, sample_logits
from moehls.frontend.layout import LayoutError, matrix_layout
from moehls.frontend.values import Affine, Base, ExpertTerm, Mixture, RouteSource
from moehls.network.operations import GateNormalisation

Array = npt.NDArray[np.float64]
EXPERTS, TOKENS = 6, 9


def mixture(change: Callable[[Array], Array], order: list[int], k: int, normalisation: GateNormalisation) -> Mixture:
    """Experts whose weights are their number; term i is expert `order[i]`, its coefficients changed by `change`."""
    layout = matrix_layout((TOKENS, EXPERTS), 0)
    zeros = np.zeros((1, 1), np.float32)
    base = Base("x", TOKENS, 3)
    logits = Affine(layout, base, None, np.zeros((1, EXPERTS), np.int64), np.zeros((1, 1, 1), np.float32))
    source = RouteSource(logits, "logits", sample_logits((TOKENS, EXPERTS), 0))
    gates = change(gate_weights(flat_logits(source), Gate(k, normalisation)))
    terms = tuple(ExpertTerm(zeros + e, zeros[0], zeros, zeros[0] + 1, gates[:, e]) for e in order)
    return Mixture(matrix_layout((TOKENS, 3), 0), base, "exact", terms, source)


@pytest.mark.parametrize("normalisation", ["all", "chosen"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_k_normalisation_and_the_order_of_the_experts_are_found(k: int, normalisation: GateNormalisation) -> None:
    order = [3, 0, 5, 1, 4, 2]
    found = match_experts(mixture(lambda gates: gates, order, k, normalisation))
    assert found.gate.k == k
    assert found.gate.normalisation == normalisation
    assert found.arrays["first_weight"].reshape(-1).tolist() == list(range(EXPERTS))


@pytest.mark.parametrize(
    "change",
    [
        lambda gates: np.where(gates > 0.05, gates, 0),
        lambda gates: gates + 0.001 * (gates > 0),
        lambda gates: gates**1.001,
        lambda gates: gates * (np.cumsum(gates > 0, axis=0) % TOKENS < TOKENS - 1),
        lambda gates: np.roll(gates, 1, axis=0),
    ],
    ids=["threshold", "shifted", "bent", "capacity", "another token's"],
)
def test_what_is_not_exactly_a_gate_is_refused(change: Callable[[Array], Array]) -> None:
    with pytest.raises(LayoutError, match="not a top-2 gate"):
        match_experts(mixture(change, list(range(EXPERTS)), 2, "all"))


@pytest.mark.parametrize(
    "gate",
    [
        Gate(2, "none", score="sigmoid"),
        Gate(3, "chosen", score="sigmoid", group=2, kept_groups=2),
        Gate(2, "all", group=3, kept_groups=1),
        Gate(3, "chosen", threshold=0.25, renormalise=True, capacity=4, priority="choice"),
        Gate(1, "all", score="sigmoid", threshold=0.3, capacity=3),
    ],
    ids=["sigmoid", "grouped sigmoids", "groups", "threshold and capacity", "one sigmoid, threshold and capacity"],
)
def test_every_order_of_a_gate_is_found(gate: Gate) -> None:
    whole = mixture(lambda gates: gates, list(range(EXPERTS)), 1, "all")
    rows = flat_logits(whole.source).reshape(-1, TOKENS, EXPERTS)
    gates = gate_weights(rows, gate).reshape(-1, EXPERTS)
    whole.source.compared.append(gate.threshold)
    terms = tuple(replace(term, coefficient=gates[:, e]) for e, term in enumerate(whole.terms))
    assert match_experts(replace(whole, terms=terms)).gate == gate


@pytest.mark.parametrize("factor", [1.001, 2.5, -0.5])
def test_constant_factors_go_to_the_second_layer(factor: float) -> None:
    factors = factor ** np.arange(1, EXPERTS + 1)
    found = match_experts(mixture(lambda gates: gates * factors, [3, 0, 5, 1, 4, 2], 2, "chosen"))
    assert found.arrays["first_weight"].reshape(-1).tolist() == list(range(EXPERTS))
    np.testing.assert_allclose(found.arrays["second_bias"].reshape(-1), factors, rtol=1e-5)


def test_a_missing_expert_and_an_expert_twice_are_refused() -> None:
    with pytest.raises(LayoutError, match="5 experts meet a router of 6"):
        match_experts(mixture(lambda gates: gates, [0, 1, 2, 3, 4], 2, "all"))
    with pytest.raises(LayoutError, match="not a top-3 gate"):
        match_experts(mixture(lambda gates: gates, [0, 1, 2, 3, 4, 4], 2, "all"))


def test_gates_of_inputs_are_found_where_only_chosen_experts_count() -> None:
    """The terms have a second bias, which experts that get zeros must not add."""
    whole = mixture(lambda gates: gates, list(range(EXPERTS)), 2, "chosen")
    zero = np.zeros_like(whole.terms[0].coefficient)
    chosen = tuple(replace(t, inputs=t.coefficient, coefficient=(t.coefficient != 0) + zero) for t in whole.terms)
    found = match_experts(replace(whole, terms=chosen))
    assert (found.weigh_inputs, found.gate) == (True, Gate(2, "chosen"))
    every = tuple(replace(term, coefficient=zero + 1) for term in chosen)
    with pytest.raises(LayoutError, match="not those of the chosen experts alone"):
        match_experts(replace(whole, terms=every))
    with pytest.raises(LayoutError, match="of others the outputs"):
        match_experts(replace(whole, terms=(*chosen[1:], whole.terms[0])))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_bias_for_the_choice_is_found(pairs: bool) -> None:
    gate = Gate(
        2,
        "chosen",
        score="sigmoid",
        selection=(0.5, 0.0, 0.25, 0.125, 0.0, 0.75),
        group=3 * pairs,
        kept_groups=1 * pairs,
    )
    gate = replace(gate, pairs=pairs)
    whole = mixture(lambda gates: gates, list(range(EXPERTS)), 1, "all")
    weights = gate_weights(flat_logits(whole.source), gate)
    terms = tuple(replace(term, coefficient=weights[:, e]) for e, term in enumerate(whole.terms))
    assert gate.selection is not None
    whole.source.added.append(np.array(gate.selection, np.float32))
    assert match_experts(replace(whole, terms=terms)).gate == gate


def test_slots_of_one_expert_are_added() -> None:
    whole = mixture(lambda gates: gates, list(range(EXPERTS)), 2, "all")
    first = tuple(
        ExpertTerm(t.first, t.first_bias, t.second, t.second_bias, t.coefficient * part)
        for part in (
            np.arange(len(whole.terms[0].coefficient)) % 2,
            np.arange(len(whole.terms[0].coefficient)) % 2 == 0,
        )
        for t in whole.terms
    )
    found = match_experts(Mixture(whole.layout, whole.base, whole.form, first, whole.source))
    assert found.gate.k == 2


def test_samples_hold_ties_and_rows_that_agree() -> None:
    samples = sample_logits((TOKENS, EXPERTS), 0)
    assert sum(sample.shape[0] for sample in samples) >= 500
    ties = [row for sample in samples for row in sample if len(set(row.tolist())) < EXPERTS]
    assert len(ties) > 50
    assert any(len(set(sample.argmax(axis=1).tolist())) == 1 for sample in samples)


def test_equal_logits_go_to_the_lower_index() -> None:
    gates = gate_weights(np.zeros((1, 4), np.float32), Gate(2, "chosen"))
    assert gates.tolist() == [[0.5, 0.5, 0, 0]]


def test_activations_are_told_apart() -> None:
    assert match_activation(gelu_exact) == "exact"
    assert match_activation(gelu_tanh) == "tanh"
    assert match_activation(lambda x: x / (1 + np.exp(-1.702 * x))) == "quick"
    assert match_activation(lambda x: x / (1 + np.exp(-x))) == "silu"
    assert match_activation(lambda x: np.maximum(x, 0)) == "relu"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / (1 + np.exp(-1.7 * x)),
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: np.clip(x, 0, 6),
        lambda x: 1.0001 * gelu_exact(x),
        lambda x: gelu_exact(x + 1e-4),
        lambda x: np.full_like(x, np.nan),
    ],
    ids=["another slope", "sigmoid", "relu6", "scaled", "shifted", "nan"],
)
def test_other_functions_are_no_activation(function: Callable[[Array], Array]) -> None:
    assert match_activation(function) is None


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("experts", [6, 70])
def test_gates_gathered_from_any_number_of_scores(axis: int, experts: int) -> None:
    """ONNX's reference evaluator refuses a negative axis, and more than 32 columns."""
    rng = np.random.default_rng(0)
    scores, index = rng.standard_normal((5, experts)).astype(np.float32), rng.integers(-experts, experts, (5, 3))
    node = ir.node("GatherElements", [ir.Value(name="scores"), ir.Value(name="index")], {"axis": axis})
    (found,) = NodeEvaluator(node, 17)([scores, index])
    np.testing.assert_array_equal(found, [[row[i] for i in own] for row, own in zip(scores, index, strict=True)])
    with pytest.raises(UnsupportedError, match="do not fit"):
        NodeEvaluator(node, 17)([scores, index + experts])
