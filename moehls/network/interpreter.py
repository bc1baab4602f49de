"""Runs a float network with NumPy in float32, many samples at once.

Comes in: a `Network` and images `[samples, channels, height, width]`. Goes out: the output values, or every value, by
name. Values are `[samples, tokens, channels]` arrays; those of `Route` are `Routing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.network.operations import (
    Activation,
    ActivationForm,
    Add,
    Attention,
    Constant,
    Embed,
    Experts,
    FloatArray,
    LayerNorm,
    Linear,
    MeanTokens,
    Multiply,
    Network,
    Operation,
    Priority,
    Route,
    SelectTokens,
)
from moehls.network.processing import evaluate as evaluate_steps
from moehls.network.processing import rounded

IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Routing:
    """The experts each token chose, best first, `~expert` where a choice is left out, and their gate weights."""

    indices: IndexArray
    """[samples, tokens, k]"""
    gates: FloatArray
    """[samples, tokens, k]"""


Value = FloatArray | Routing
Values = dict[str, Value]


def run(
    network: Network,
    images: FloatArray,
    task: int = 0,
    routing: Mapping[str, IndexArray] | None = None,
    keep: bool = False,
) -> Values:
    """Run `images` for one task.

    Args:
        images: `[samples, channels, height, width]`.
        routing: forced expert choices `[samples, tokens, k]` by the name of the Route, `~expert` where a choice is left
            out; gates are computed from the logits of these experts.
        keep: return every value, else only those the outputs show.

    Raises:
        MoehlsError: images of another shape, or a task the network does not have.
    """
    if images.ndim != 4 or images.shape[1:] != network.input.shape:
        raise MoehlsError(
            f"images of shape {list(images.shape)}; the model takes [samples, {_text(network.input.shape)}]"
        )
    if not 0 <= task < network.tasks:
        raise MoehlsError(f"task {task}; the model has tasks 0 to {network.tasks - 1}")
    values: Values = {network.input.name: np.asarray(images, np.float32)}
    last_use = {} if keep else _last_use(network)
    for step, operation in enumerate(network.operations):
        forced = (routing or {}).get(operation.name)
        values[operation.output] = evaluate(operation, values, task, forced)
        for name in last_use.get(step, ()):
            del values[name]
    return values


def outputs(network: Network, values: Values) -> dict[str, npt.NDArray[Any]]:
    """The ONNX outputs by name: what the host makes of their values, in the graph's shape, the samples in the place of a
    leading 1, else before."""
    result: dict[str, npt.NDArray[Any]] = {}
    for output in network.outputs:
        value = values[output.value]
        assert isinstance(value, np.ndarray)
        inner = output.shape[1:] if output.shape[:1] == (1,) else output.shape
        found = np.stack([rounded(evaluate_steps(output.steps, sample)) for sample in value]) if output.steps else value
        result[output.name] = found.reshape(value.shape[0], *inner)
    return result


def route_logits(operation: Route, x: FloatArray, task: int) -> FloatArray:
    """Router logits `[samples, tokens, experts]`."""
    return _linear(x, operation.weight[task], operation.bias[task])


def top_k(logits: FloatArray, k: int) -> IndexArray:
    """Indices of the k largest, best first; equal values by the lower index."""
    return np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def activation(x: FloatArray, form: ActivationForm) -> FloatArray:
    """The activation `form` of every element."""
    if form == "relu":
        return np.maximum(x, np.float32(0))
    if form in ("silu", "quick"):
        slope = np.float32(1 if form == "silu" else 1.702)
        return np.asarray(x / (1 + np.exp(-slope * np.maximum(x, np.float32(-50)))))
    if form == "tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * (x * x * x))
        return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
    return np.asarray(np.float32(0.5) * x * (1 + erf(x * np.float32(math.sqrt(0.5)))))


def erf(x: FloatArray) -> FloatArray:
    """The error function to float32 accuracy, by the Chebyshev fit of erfc in Numerical Recipes (relative error
    1.2e-7)."""
    z = np.abs(x).astype(np.float64)
    t = 1 / (1 + 0.5 * z)
    exponent = np.full_like(t, _ERFC[-1])
    for coefficient in reversed(_ERFC[:-1]):
        exponent = coefficient + t * exponent
    tail = t * np.exp(exponent - z * z)
    return np.asarray(np.copysign(1 - tail, x), np.float32)


_ERFC = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806,
    0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277,
)  # fmt: skip


def choices(operation: Route, logits: FloatArray, task: int = 0) -> IndexArray:
    """What the router chooses for logits `[samples, tokens, experts]`: experts `[samples, tokens, k]`, `~expert` where the
    choice is left out."""
    ranks = logits if operation.selection is None else sigmoid(logits) + operation.selection[task]
    indices = top_k(eligible(ranks, operation.group, operation.kept_groups, operation.pairs), operation.k)
    taken = np.ones(indices.shape, bool)
    if operation.threshold > 0:
        taken = _gates(operation, logits, indices) > np.float32(operation.threshold)
    if operation.capacity:
        taken = within_capacity(indices, taken, logits.shape[-1], operation.capacity, operation.priority)
    return np.where(taken, indices, ~indices)


def eligible(ranks: FloatArray, group: int, kept: int, pairs: bool = False) -> FloatArray:
    """Ranks `[…, experts]` with -∞ in place of those outside the `kept` groups of `group` experts with the largest ranks, or
    with `pairs` the largest sums of two."""
    if not group:
        return ranks
    grouped = np.sort(ranks.reshape(*ranks.shape[:-1], -1, group), axis=-1)
    best = grouped[..., -1] + grouped[..., -2] if pairs else grouped[..., -1]
    inside = np.zeros(best.shape, bool)
    np.put_along_axis(inside, top_k(best, kept), True, axis=-1)
    return np.where(np.repeat(inside, group, axis=-1), ranks, -np.inf)


def within_capacity(
    indices: IndexArray, wanted: npt.NDArray[np.bool_], experts: int, capacity: int, priority: Priority
) -> npt.NDArray[np.bool_]:
    """Which of the `wanted` choices `[samples, tokens, k]` find room at their expert; the others take none."""
    queue = indices.swapaxes(1, 2) if priority == "choice" else indices
    asks = wanted.swapaxes(1, 2) if priority == "choice" else wanted
    flat = queue.reshape(len(indices), -1)
    chosen = (flat[:, :, None] == np.arange(experts)) & asks.reshape(flat.shape)[:, :, None]
    before = np.cumsum(chosen, axis=1)
    room = (np.take_along_axis(before, flat[:, :, None], axis=2)[:, :, 0] <= capacity).reshape(queue.shape) & asks
    return np.asarray(room.swapaxes(1, 2) if priority == "choice" else room)


def _gates(operation: Route, logits: FloatArray, experts: IndexArray) -> FloatArray:
    """Gate weights `[samples, tokens, k]` of these experts, before any is left out."""
    own = np.take_along_axis(logits, experts, axis=-1)
    if operation.score == "softmax":
        if operation.normalisation == "chosen":
            return softmax(own)
        return np.asarray(np.take_along_axis(softmax(logits), experts, axis=-1))
    scores = sigmoid(own)
    if operation.normalisation == "none":
        return scores
    total = (scores if operation.normalisation == "chosen" else sigmoid(logits)).sum(axis=-1, keepdims=True)
    return np.asarray(scores / np.maximum(total, np.finfo(np.float32).tiny))


def _last_use(network: Network) -> dict[int, list[str]]:
    """The values no later step reads, by step."""
    wanted = {output.value for output in network.outputs}
    last: dict[str, int] = {}
    for step, operation in enumerate(network.operations):
        for name in reads(operation):
            last[name] = step
    table: dict[int, list[str]] = {}
    for name, step in last.items():
        if name not in wanted:
            table.setdefault(step, []).append(name)
    return table


def reads(operation: Operation) -> tuple[str, ...]:
    """Names of the values an operation reads, in the order of its fields."""
    match operation:
        case Add() | Multiply():
            return operation.left, operation.right
        case Attention():
            return operation.query, operation.key, operation.value
        case Experts():
            return operation.input, operation.routing
        case _:
            return (operation.input,)


def evaluate(
    operation: Operation, values: Mapping[str, Value], task: int = 0, forced: IndexArray | None = None
) -> Value:
    """The value one operation writes, given those it reads; `forced` are the expert choices of a Route."""

    def tensor(name: str) -> FloatArray:
        value = values[name]
        assert isinstance(value, np.ndarray)
        return value

    match operation:
        case Embed():
            return _embed(operation, tensor(operation.input))
        case Constant():
            samples = len(tensor(operation.input))
            return np.broadcast_to(operation.rows, (samples, *operation.rows.shape)).astype(
                tensor(operation.input).dtype
            )
        case LayerNorm():
            return _layer_norm(operation, tensor(operation.input))
        case Linear():
            return _linear(tensor(operation.input), operation.weight, operation.bias)
        case Activation():
            return activation(tensor(operation.input), operation.form)
        case Add():
            return tensor(operation.left) + tensor(operation.right)
        case Multiply():
            return tensor(operation.left) * tensor(operation.right)
        case Attention():
            return _attention(operation, tensor(operation.query), tensor(operation.key), tensor(operation.value))
        case Route():
            return _route(operation, tensor(operation.input), task, forced)
        case Experts():
            routing = values[operation.routing]
            assert isinstance(routing, Routing)
            return _experts(operation, tensor(operation.input), routing)
        case SelectTokens():
            return tensor(operation.input)[:, operation.start : operation.stop]
        case MeanTokens():
            rows = tensor(operation.input)[:, operation.start : operation.stop]
            return np.asarray(rows.mean(axis=1, keepdims=True))


def _linear(x: FloatArray, weight: FloatArray, bias: FloatArray) -> FloatArray:
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ weight.T + bias).reshape(*x.shape[:-1], len(bias))


def _embed(operation: Embed, images: FloatArray) -> FloatArray:
    samples, channels, height, width = images.shape
    features, _, rows, columns = operation.weight.shape
    grid = images.reshape(samples, channels, height // rows, rows, width // columns, columns)
    patches = grid.transpose(0, 2, 4, 1, 3, 5).reshape(samples, -1, channels * rows * columns)
    tokens = _linear(patches, operation.weight.reshape(features, -1), operation.bias)
    prefix = np.broadcast_to(operation.prefix, (samples, *operation.prefix.shape))
    return np.concatenate([prefix, tokens], axis=1) + operation.position


def _layer_norm(operation: LayerNorm, x: FloatArray) -> FloatArray:
    if operation.heads > 1:
        parts = x.reshape(*x.shape[:-1], operation.heads, -1)
        return _layer_norm(replace(operation, heads=1), parts).reshape(x.shape)
    centred = x - x.mean(axis=-1, keepdims=True) if operation.centred else x
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    normalised = centred / np.sqrt(variance + np.float32(operation.epsilon))
    return np.asarray(normalised * operation.weight + operation.bias)


def softmax(x: FloatArray) -> FloatArray:
    """Softmax over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def sigmoid(x: FloatArray) -> FloatArray:
    """`1 / (1 + exp(-x))`."""
    return np.asarray(1 / (1 + np.exp(-np.maximum(x, np.float32(-80)))))


def _attention(operation: Attention, query: FloatArray, key: FloatArray, value: FloatArray) -> FloatArray:
    def heads(x: FloatArray) -> FloatArray:
        return x.reshape(*x.shape[:2], operation.heads, -1).transpose(0, 2, 1, 3)

    scores = heads(query) @ heads(key).transpose(0, 1, 3, 2) * np.float32(operation.scale)
    if operation.bias is not None:
        scores = scores + operation.bias
    context = softmax(scores) @ heads(value)
    return context.transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)


def _route(operation: Route, x: FloatArray, task: int, forced: IndexArray | None) -> Routing:
    logits = route_logits(operation, x, task)
    indices = choices(operation, logits, task) if forced is None else forced
    if indices.shape != (*logits.shape[:-1], operation.k):
        raise MoehlsError(
            f"forced routing of {operation.name}: shape {list(indices.shape)}, "
            f"needs {[*logits.shape[:-1], operation.k]}"
        )
    taken = indices >= 0
    gates = _gates(operation, logits, np.where(taken, indices, ~indices))
    if operation.renormalise:
        rest = (gates * (taken | (gates > np.float32(operation.threshold)))).sum(axis=-1, keepdims=True)
        gates = gates / np.maximum(rest, np.finfo(gates.dtype).tiny)
    if operation.room:
        gates = gates / np.maximum((gates * taken).sum(axis=-1, keepdims=True), np.finfo(gates.dtype).tiny)
    return Routing(indices, np.asarray(gates * taken))


def _experts(operation: Experts, x: FloatArray, routing: Routing) -> FloatArray:
    tokens = x.reshape(-1, x.shape[-1])
    indices = routing.indices.reshape(len(tokens), -1)
    gates = routing.gates.reshape(len(tokens), -1)
    output = np.zeros((len(tokens), operation.second_weight.shape[1]), np.float32)
    for expert in range(len(operation.first_weight)):
        token, slot = np.nonzero(indices == expert)
        if not len(token):
            continue
        own, gate = tokens[token], gates[token, slot, None]
        if operation.weigh_inputs:
            own, gate = own * gate, np.ones_like(gate)
        hidden = _linear(own, operation.first_weight[expert], operation.first_bias[expert])
        hidden = activation(hidden, operation.form)
        if operation.up_weight is not None and operation.up_bias is not None:
            hidden = hidden * _linear(own, operation.up_weight[expert], operation.up_bias[expert])
        result = _linear(hidden, operation.second_weight[expert], operation.second_bias[expert])
        output[token] += gate * result
    return output.reshape(*x.shape[:-1], -1)


def _text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
