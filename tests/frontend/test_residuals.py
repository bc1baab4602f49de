"""Sums of branches become chains of residual adds, in the order of the branches."""

from __future__ import annotations

import numpy as np

from moehls.frontend.residuals import chained, norms_behind_linears
from moehls.network.operations import Add, LayerNorm, Linear, Operation


def linear(name: str, source: str) -> Linear:
    return Linear(name, source, name, np.eye(2, dtype=np.float32), np.zeros(2, np.float32))


def text(operations: tuple[Operation, ...]) -> list[str]:
    return [f"{o.output} = {o.left} + {o.right}" if isinstance(o, Add) else o.output for o in operations]


def test_a_sum_of_branches_is_added_branch_by_branch() -> None:
    """x + (a + b): the first add stands where its branch is complete, before the next branch."""
    operations = [
        linear("x", "image"), linear("a", "x"), linear("b", "x"), Add("ab", "a", "b", "ab"), Add("y", "x", "ab", "y"),
    ]  # fmt: skip
    assert text(chained(operations, {"y"})) == ["x", "a", "y.0 = x + a", "b", "y = y.0 + b"]


def test_adds_that_others_read_stay() -> None:
    operations = [
        linear("x", "image"), linear("a", "x"), Add("u", "x", "a", "u"), linear("b", "u"), Add("y", "u", "b", "y"),
    ]  # fmt: skip
    assert text(chained(operations, {"y"})) == ["x", "a", "u = x + a", "b", "y = u + b"]


def test_an_add_that_is_shown_stays() -> None:
    operations = [
        linear("x", "image"), linear("a", "x"), linear("b", "x"), Add("ab", "a", "b", "ab"), Add("y", "x", "ab", "y"),
    ]  # fmt: skip
    assert text(chained(operations, {"y", "ab"})) == ["x", "a", "b", "ab = a + b", "y = x + ab"]


def test_norms_of_linears_come_behind_them() -> None:
    """Queries and keys of qk-norm are each complete before the next linear."""
    ones = np.ones(2, np.float32)
    norms = [LayerNorm(f"{name}.norm", name, f"{name}.norm", ones, 0 * ones, 1e-6) for name in ("q", "k", "x")]
    operations = [linear("q", "x.norm"), linear("k", "x.norm"), *norms[:2], linear("v", "x.norm"), norms[2]]
    assert text(norms_behind_linears(operations)) == ["q", "q.norm", "k", "k.norm", "v", "x.norm"]
