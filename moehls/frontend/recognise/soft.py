"""Soft MoE (Puigcerver et al., 2023): slots hold softmax mixtures of all tokens, tokens softmax mixtures of all slots' outputs.

Both are attention with one head: the slots' parameters are its queries when tokens are dispatched and its keys when outputs are
combined. Experts work on the slots as on tokens that a constant router gives them, and add to rows of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moehls.frontend.builder import Builder, Slots, network_layers
from moehls.frontend.context import UnsupportedError
from moehls.frontend.gates import TOLERANCE
from moehls.frontend.layout import Array, Layout
from moehls.frontend.maps import folded, full_features, rows, with_weight
from moehls.frontend.values import Affine, Base, FeedForward, RouteSource
from moehls.network.interpreter import softmax
from moehls.network.operations import Add, Constant, FloatArray, Route

_REMEDY = (
    "dispatch with the softmax over the tokens and combine with the softmax over all slots of products of the tokens with one "
    "parameter a slot, as soft MoE has it"
)


def soft_mixture(
    builder: Builder, experts: FeedForward, slots: Slots, source: RouteSource, combine: list[Array], layout: Layout
) -> Affine:
    """The operations of a soft mixture of experts.

    Args:
        builder: of the network.
        experts: `[experts, channels]`, read on the slots.
        slots: what the slots hold.
        source: the logits that the outputs are combined by.
        combine: `[tokens, slots]` of each sample of `source`.
        layout: of the result.

    Raises:
        UnsupportedError: dispatch or combine is another function of the logits.
    """
    taken, asked = (
        _parameters(slots.source, slots.dispatch, over_tokens=True),
        _parameters(source, combine, over_tokens=False),
    )
    if taken.bias.shape != asked.bias.shape or np.ptp(asked.bias) > 0:
        raise UnsupportedError("the logits of the slots have a bias, or more are combined than dispatched", _REMEDY)
    count, channels, number = len(taken.rows), slots.base.channels, experts.layout.dims[0][0].size
    if not taken.rows.shape[1] == asked.rows.shape[1] == channels or experts.layout.features != number * channels:
        raise UnsupportedError("slots and tokens have different numbers of channels", _REMEDY)

    def constant(values: FloatArray) -> Base:
        values = np.ascontiguousarray(values, np.float32)
        return Base(builder.emit(Constant, "slots", input=slots.base.name, rows=values), *values.shape)

    held = builder.attention(constant(taken.rows), taken.base, slots.base, 1, 1.0)
    each = [network_layers(_expert(experts, e)) for e in range(number)]
    own = np.eye(number, dtype=np.float32)
    seats = np.repeat(own, count // number, axis=0)
    weight = np.broadcast_to(own, (builder.tasks, number, number))
    bias = np.zeros(weight.shape[:2], np.float32)
    gate = {"weight": np.array(weight), "bias": bias, "k": 1, "normalisation": "chosen"}
    routing = builder.emit(Route, "route", input=constant(seats).name, **gate)
    empty = constant(np.zeros((count, channels), np.float32))
    arrays = {name: np.stack([layers[name] for layers in each]) for name in each[0]}
    outputs = builder.expert_layer(held, routing, arrays, experts.form, {})
    total = Base(builder.emit(Add, "add", left=empty.name, right=outputs.name), count, channels)
    mixed = builder.attention(asked.base, constant(asked.rows), total, 1, 1.0)
    return with_weight(rows(mixed, layout))


@dataclass(frozen=True, eq=False)
class _Parameters:
    """The tokens and the parameters whose products are logits."""

    base: Base
    rows: FloatArray
    """[slots, channels]"""
    bias: FloatArray
    """[slots]"""


def _parameters(source: RouteSource, given: list[Array] | tuple[Array, ...], *, over_tokens: bool) -> _Parameters:
    """The parameters of the slots, in their order; `given` `[tokens, slots]` is proved to be the softmax on every sample."""
    value = with_weight(folded(source.logits))
    assert value.weight is not None
    if value.selector is not None or value.weight.shape[-2] != 1 or value.bias.shape[-1] != 1:
        raise UnsupportedError("the slots differ from task to task", _REMEDY)
    order = _columns(value.layout, source.samples, given, over_tokens)
    weight, bias = full_features(value.layout, value.weight)[:, 0], full_features(value.layout, value.bias)[:, 0]
    return _Parameters(value.base, weight[order], bias[order])


def _columns(
    layout: Layout, samples: tuple[FloatArray, ...], given: list[Array] | tuple[Array, ...], over_tokens: bool
) -> npt.NDArray[np.int64]:
    """The logit of each slot: that whose softmax it is on every sample."""
    tokens = [number for number, dim in enumerate(layout.dims) if any(axis.token for axis in dim)]
    others = [number for number in range(len(layout.dims)) if number not in tokens]
    what = (
        "a slot holds another mixture of tokens than" if over_tokens else "a token takes another mixture of slots than"
    )
    refusal = UnsupportedError(f"{what} the softmax of its logits over all of them", _REMEDY)
    order: npt.NDArray[np.int64] | None = None
    for sample, found in zip(samples, given, strict=True):
        logits = sample.transpose(*tokens, *others).reshape(layout.tokens, -1)
        expected = softmax(logits.T).T if over_tokens else softmax(logits)
        if expected.shape != found.shape:
            raise refusal
        if order is None:
            order = np.array([int(np.abs(expected - column[:, None]).max(axis=0).argmin()) for column in found.T])
            if len(set(order.tolist())) < len(order):
                raise refusal
        if not np.allclose(expected[:, order], found, rtol=0, atol=TOLERANCE):
            raise refusal
    assert order is not None
    return order


def _expert(value: FeedForward, number: int) -> FeedForward:
    """One of the networks that `value` has side by side in its first dimension."""

    def own(array: Array) -> Array:
        return np.asarray(array[min(number, len(array) - 1)])

    return replace(
        value,
        layout=Layout(value.layout.dims[1:]),
        first=own(value.first),
        first_bias=own(value.first_bias),
        second=own(value.second),
        second_bias=own(value.second_bias),
        up=None if value.up is None else own(value.up),
        up_bias=None if value.up_bias is None else own(value.up_bias),
    )
