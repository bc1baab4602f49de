"""Recognisers, one file a pattern. To add a form, write a file with `RULES` and name it here.

For each operator the rules are tried in this order; the first that returns a value has read the node.
"""

from __future__ import annotations

from collections import defaultdict

from moehls.frontend.context import Rule
from moehls.frontend.recognise import (
    activation,
    assign,
    attention,
    beside,
    beyond,
    condition,
    contrib,
    dispatch,
    experts,
    feed_forward,
    layer_norm,
    linear,
    moe,
    patch_embedding,
    pointwise,
    pool,
    quantised,
    residual,
    routing,
    shared,
    slots,
    sort,
    stream,
    structure,
    tokens,
)

_MODULES = (
    quantised,
    patch_embedding,
    pointwise,
    attention,
    pool,
    stream,
    layer_norm,
    condition,
    assign,
    sort,
    dispatch,
    routing,
    shared,
    slots,
    experts,
    feed_forward,
    tokens,
    beside,
    structure,
    linear,
    activation,
    residual,
    contrib,
    moe,
    beyond,
)


def rules_by_operator() -> dict[str, tuple[Rule, ...]]:
    """All rules of each ONNX operator, in the order they are tried."""
    table: dict[str, list[Rule]] = defaultdict(list)
    for module in _MODULES:
        for operators, rule in module.RULES:
            for operator in operators.split():
                table[operator].append(rule)
    return {operator: tuple(rules) for operator, rules in table.items()}
