"""Whole networks: every value equals the scalar implementation, in order; tasks, and the spread of random values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.host import quantise_image
from moehls.integer.operations import (
    AddResidual,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerPool,
    IntegerRoute,
)
from moehls.integer.precision import PRECISIONS, W8A8, Precision
from moehls.network.operations import ActivationForm, GateNormalisation
from moehls.reference import Execution, Routing, run
from tests.reference import scalar
from tests.support.random_networks import Sizes, random_image, random_integer_network

Values = dict[str, scalar.Matrix | tuple[scalar.Matrix, ...]]
SMALL = Sizes(tokens=6, width=12, heads=2, mlp=11, experts=4, hidden=5, channels=2, patch=(2, 3))


def run_by_scalars(network: IntegerNetwork, pixels: scalar.Matrix, task: int) -> Values:
    known: Values = {network.input.name: pixels}
    p, (form,) = network.precision, network.activations

    def matrix(name: str) -> scalar.Matrix:
        value = known[name]
        assert isinstance(value, list)
        return value

    for op in network.operations:
        match op:
            case IntegerEmbed():
                known[op.output] = scalar.embed(op, matrix(op.input), p)
            case IntegerConstant():
                known[op.output] = op.rows.tolist()
            case IntegerNorm():
                known[op.fine], known[op.operand] = scalar.norm(op, matrix(op.input), p)
            case IntegerPool():
                known[op.output] = scalar.pool(op, matrix(op.input), p)
            case IntegerLinear():
                residual = matrix(op.epilogue.residual) if isinstance(op.epilogue, AddResidual) else None
                known[op.output] = scalar.linear(op, matrix(op.input), residual, p, form)
            case IntegerAttention():
                known[op.output] = scalar.attention(op, matrix(op.query), matrix(op.key), matrix(op.value), p)
            case IntegerRoute():
                known[op.output] = scalar.route(op, matrix(op.input), task, p)
            case IntegerExperts():
                routing = known[op.routing]
                assert isinstance(routing, tuple)
                x, residual = matrix(op.input), matrix(op.residual)
                known[op.output] = scalar.experts(op, x, routing[1], routing[2], residual, p, form)
    return known


def listed(execution: Execution) -> Values:
    return {
        name: (v.logits.tolist(), v.chosen.tolist(), v.gates.tolist()) if isinstance(v, Routing) else v.tolist()
        for name, v in execution.values.items()
    }


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize(
    ("seed", "sizes", "normalisation", "form"),
    [
        (0, SMALL, "all", "exact"),
        (1, replace(SMALL, prefix=2, head=0, k=1), "chosen", "tanh"),
        (2, replace(SMALL, prefix=0, tokens=5, tasks=1, experts=1, k=1), "all", "tanh"),
        (3, replace(SMALL, experts=0, tokens=2), "all", "exact"),
        (4, replace(SMALL, threshold=12000), "all", "exact"),
        (5, replace(SMALL, threshold=15000, renormalise=True, pooled=True), "chosen", "exact"),
        (6, replace(SMALL, capacity=2), "all", "exact"),
        (7, replace(SMALL, capacity=2, priority="choice"), "chosen", "exact"),
        (8, replace(SMALL, score="sigmoid", experts=6, group=2, kept_groups=2), "none", "exact"),
        (9, replace(SMALL, slots=7), "chosen", "exact"),
        (10, replace(SMALL, normalised=True), "all", "exact"),
        (11, replace(SMALL, capacity=2, priority="choice", room=True), "all", "exact"),
    ],
)
def test_every_value_in_order(
    precision: Precision, seed: int, sizes: Sizes, normalisation: GateNormalisation, form: ActivationForm
) -> None:
    network = random_integer_network(seed, precision, sizes, normalisation=normalisation, activation=form)
    image = random_image(network, seed)
    for task in range(network.tasks):
        found = listed(run(network, image, task))
        expected = run_by_scalars(network, quantise_image(network, image).tolist(), task)
        assert list(found) == list(expected)
        for name in expected:
            assert found[name] == expected[name], name


def test_residual_values_stay_as_written() -> None:
    """The machine updates the residual in place; a run keeps each value for comparison."""
    network = random_integer_network(0, W8A8, SMALL)
    image = random_image(network, 0)
    whole = run(network, image)
    stopped = run(replace(network, operations=network.operations[:1]), image)
    assert np.array_equal(whole.array("embed.tokens"), stopped.array("embed.tokens"))
    assert not np.array_equal(whole.array("embed.tokens"), whole.array("layer0.attended"))


def test_tasks_differ_only_from_the_first_routing_on() -> None:
    network = random_integer_network(5, W8A8, Sizes())
    zero, one = (listed(run(network, random_image(network, 0), task)) for task in (0, 1))
    differing = [name for name in zero if zero[name] != one[name]]
    assert differing[0] == "layer1.routing"
    assert "layer1.out" in differing


def test_unknown_task() -> None:
    network = random_integer_network(0, W8A8, SMALL)
    with pytest.raises(MoehlsError, match="tasks 0 to 1"):
        run(network, random_image(network, 0), 2)


def test_one_normed_token_gives_one_row_of_the_head() -> None:
    network = random_integer_network(0, W8A8, SMALL)
    execution = run(network, random_image(network, 0))
    assert execution.array("final.fine").shape == (1, SMALL.width)
    assert execution.array("head.logits").shape == (1, SMALL.head)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_random_networks_use_their_ranges(precision: Precision) -> None:
    """Other tests rely on it: values spread, some saturate, most do not, experts go unused and ties occur."""
    spread: dict[str, list[float]] = {}
    clipped: dict[str, list[float]] = {}
    empty, tied = 0, 0
    for seed in range(4):
        network = random_integer_network(seed, precision, Sizes())
        execution = run(network, random_image(network, seed), seed % 2)
        for name, value in execution.values.items():
            if isinstance(value, Routing):
                empty += len(set(range(5)) - set(value.chosen.ravel().tolist()))
                tied += int((value.gates[:, 0] == value.gates[:, 1]).sum())
            elif name in network.formats and network.formats[name].kind != "raw":
                meaning = network.formats[name]
                low = -(1 << (meaning.bits - 1)) if meaning.signed else 0
                high = low + (1 << meaning.bits) - 1
                spread.setdefault(meaning.kind, []).append(float(value.std()) / (high - low))
                clipped.setdefault(meaning.kind, []).append(float(np.isin(value, (low, high)).mean()))
    assert {kind: min(values) > 0.04 for kind, values in spread.items()} == dict.fromkeys(spread, True)
    assert all(0 < np.mean(values) < 0.25 for values in clipped.values())
    assert empty > 0
    assert tied > 0
