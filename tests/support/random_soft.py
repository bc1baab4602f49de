"""A soft mixture of experts in a random integer network: constants, norms that attentions read, a router of constants.

In go the builder of the network, the layer's name and the residual before it, out comes the residual after it. Unlike a real soft
mixture the slots go to random experts, so that the queues of the experts are of many lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moehls.integer.operations import AddResidual, IntegerAttention, IntegerConstant, IntegerNorm, Scaling
from moehls.reference.product import product

if TYPE_CHECKING:
    from tests.support.random_networks import Builder


def soft_layer(builder: Builder, layer: str, residual: str) -> str:
    """Slots from the tokens, experts on the slots, tokens from the slots."""
    width, slots = builder.sizes.width, builder.sizes.slots
    parameters = builder.rng.integers(-20000, 20000, (slots, width))
    taken = operand(builder, f"{layer}.dispatch.query", constant(builder, f"{layer}.dispatch", parameters))
    keys, values = (
        builder.norm(f"{layer}.dispatch.{role}", residual, 0, builder.sizes.tokens)[1] for role in ("key", "value")
    )
    held = attention(builder, f"{layer}.dispatch", taken, keys, values)
    seats = constant(builder, f"{layer}.seats", builder.rng.integers(-9000, 9000, (slots, width)))
    fine = operand(builder, f"{layer}.seats.norm", seats).replace("operand", "fine")
    empty = constant(builder, f"{layer}.empty", builder.rng.integers(-50, 50, (slots, width)))
    total = builder.chosen_experts(layer, held, builder.route(layer, fine), empty, builder.sizes.experts)
    asked = builder.norm(f"{layer}.combine.query", residual, 0, builder.sizes.tokens)[1]
    places = operand(builder, f"{layer}.combine.key", constant(builder, f"{layer}.combine", parameters))
    given = operand(builder, f"{layer}.combine.value", total)
    mixed = attention(builder, f"{layer}.combine", asked, places, given)
    return builder.linear(f"{layer}.mix", mixed, f"{layer}.mixed", width, AddResidual(residual))


def constant(builder: Builder, name: str, rows: np.ndarray) -> str:
    operation = IntegerConstant(f"{name}.rows", f"{name}.rows", rows.astype(np.int64))
    builder.append(operation, "residual")
    return operation.output


def operand(builder: Builder, name: str, residual: str) -> str:
    """A norm that only scales, with another shift a channel."""
    p, rows = builder.precision, builder.known.array(residual)
    width = rows.shape[1]
    shift = builder.rng.integers(2, 10, width)
    ratio = 2.0 ** (p.fine_bits - 2) / max(float(np.abs(rows).max()), 1.0) * builder.rng.uniform(0.3, 1.3, width)
    gain = np.clip(ratio * 2.0**shift, 1, 32767).astype(np.int64) * builder.rng.choice([-1, 1], width)
    bias = (builder.rng.normal(0, 2.0 ** (p.fine_bits - 5), width) * 2.0**shift).astype(np.int64)
    operation = IntegerNorm(
        name, residual, f"{name}.fine", f"{name}.operand", 0, len(rows), Scaling(bias, gain, shift), 0, plain=True
    )
    builder.append(operation, "fine", width)
    return operation.operand


def attention(builder: Builder, name: str, query: str, key: str, value: str) -> str:
    """Attention of one head."""
    p = builder.precision
    scores = product(builder.known.array(query), builder.known.array(key)).reshape(-1, 1)
    score = builder.fit(scores, np.array([2.0 ** (p.score_fraction + 2)]), bias=False)
    scaling = builder.fit(builder.known.array(value) << p.context_fraction, 2.0 ** (p.activation_bits - 2))
    operation = IntegerAttention(
        f"{name}.attention", query, key, value, f"{name}.context", 1, score.multiplier, score.shift, scaling
    )
    builder.append(operation, "operand")
    return operation.output
