"""Emits operations of the network from lazy values.

`materialise` turns any token value into plain rows of a network value, whose channels lie in the order of the
tensor's feature elements. An operation that would repeat an earlier one (same inputs, same arrays) is not emitted
twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moehls.frontend.activations import match_activation
from moehls.frontend.gates import Gate, match_experts
from moehls.frontend.layout import Array, Layout, LayoutError
from moehls.frontend.maps import folded, full_features, is_rows, rows, with_weight
from moehls.frontend.values import (
    Affine,
    Base,
    FeedForward,
    Grid,
    Hidden,
    Mixture,
    Normalised,
    Patches,
    Pixels,
    Pointwise,
    RouteSource,
    Shared,
    Sum,
    Tokens,
)
from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    Embed,
    Experts,
    FloatArray,
    Lattice,
    LayerNorm,
    Linear,
    MeanTokens,
    Multiply,
    Operation,
    Route,
    SelectTokens,
    of_experts,
)


class RoutingError(LayoutError):
    """The experts of a `mixture` are weighed otherwise than by a router's gate."""

    def __init__(self, reason: str, mixture: Mixture) -> None:
        super().__init__(reason)
        self.mixture = mixture


@dataclass(frozen=True, eq=False)
class Slots:
    """What the slots of experts hold: `dispatch[s, slot] · rows of base`, on every sample of the routing."""

    base: Base
    source: RouteSource
    dispatch: tuple[Array, ...]
    """[tokens, slots]"""


@dataclass(frozen=True, eq=False)
class Start:
    """A stream that begins behind a norm: `weight · norm(embedded) + rows`."""

    norm: LayerNorm
    """its offset is part of the rows"""
    embedded: Base
    weight: FloatArray
    """[channels, channels of the norm]"""
    rows: FloatArray
    """[tokens, channels]"""


@dataclass(frozen=True)
class ImageNorm:
    """How a graph normalises its image."""

    mean: tuple[float, ...] = ()
    """[channels], what it subtracts"""
    deviation: tuple[float, ...] = ()
    """[channels], what it divides by"""
    patch_norm: float | None = None
    """epsilon, where it normalises each patch"""
    patch: tuple[int, ...] = ()
    """height and width of such a patch"""


class Builder:
    """The operations emitted so far."""

    def __init__(self, image: str, tasks: int = 1) -> None:
        self.image, self.tasks = image, tasks
        self.operations: list[Operation] = []
        self.routers: dict[str, RouteSource] = {}
        self.lattices: dict[str, Lattice] = {}
        """of values that the graph quantises"""
        self.image_norm = ImageNorm()
        self.starts: dict[str, Start] = {}
        """by the name of the stream's first value"""
        self._names: Counter[str] = Counter()
        self._known: dict[tuple[Any, ...], str] = {}
        self._slots: dict[str, Slots] = {}
        self._materialised: dict[int, tuple[Tokens, Affine]] = {}

    def note_image(self, pixels: Pixels, patch: tuple[int, int, int]) -> None:
        """How the graph normalises the image whose patches are the rows of `pixels`.

        Raises:
            LayoutError: its patches are embedded twice, normalised in different ways.
        """
        if pixels.patch_norm is not None:
            epsilon, scale, offset = pixels.patch_norm
            mean, deviation = (-offset / scale,) * patch[0], (1 / scale,) * patch[0]
            plain = (scale, offset) == (1.0, 0.0)
            found = ImageNorm(() if plain else mean, () if plain else deviation, epsilon, patch[1:])
        else:
            order = np.argsort(pixels.index[0], kind="stable").reshape(patch[0], -1)[:, 0]
            factor, shift = pixels.scale[0, order], pixels.offset[0, order]
            given = bool(shift.any() or (factor != 1).any()) and bool(factor.all())
            divisor = np.where(factor == 0, 1, factor)
            means, deviations = (tuple((each / divisor).tolist()) for each in (-shift, np.sign(divisor)))
            found = ImageNorm(means, deviations) if given else ImageNorm()
        if self.image_norm not in (ImageNorm(), found):
            raise LayoutError("the image is embedded twice, normalised in different ways")
        self.image_norm = found

    def name(self, role: str) -> str:
        """A fresh name; names come from roles, never from the graph."""
        number = self._names[role]
        self._names[role] += 1
        return f"{role}{number}"

    def emit(self, kind: type[Any], role: str, **fields: Any) -> str:
        """Append the operation `kind(name, output, **fields)` and return its output value."""
        if any(isinstance(value, str) and value in self._slots for value in fields.values()):
            raise LayoutError("slots of tokens are used otherwise than by experts whose outputs are combined")
        key = (kind, *((name, _fingerprint(value)) for name, value in fields.items()))
        if key not in self._known:
            name = self.name(role)
            self.operations.append(kind(name=name, output=name, **fields))
            self._known[key] = name
        return self._known[key]

    def put_before(self, output: str, other: str) -> None:
        """Move the operation that writes `output` right before the one that writes `other`."""
        names = [operation.output for operation in self.operations]
        place = names.index(other)
        if names.index(output) > place:
            self.operations.insert(place, self.operations.pop(names.index(output)))

    def slots(self, slots: Slots, channels: int) -> Base:
        """A matrix that stands for slots; no operation can read it."""
        name = self.name("slots")
        self._slots[name] = slots
        return Base(name, 1, channels)

    def slots_of(self, base: Base) -> Slots | None:
        return self._slots.get(base.name)

    def select(self, base: Base, start: int, stop: int) -> Base:
        """Tokens `start … stop-1` of `base`."""
        if (start, stop) == (0, base.tokens):
            return base
        name = self.emit(SelectTokens, "select", input=base.name, start=start, stop=stop)
        return Base(name, stop - start, base.channels)

    def hidden(self, value: Hidden) -> Base:
        """The activation, and its product with the other branch of a gated MLP."""
        up = None if value.up is None else self.linear(value.up)
        base = self.linear(value.pre)
        name = self.emit(Activation, "gelu", input=base.name, form=value.form)
        if up is not None:
            name = self.emit(Multiply, "gated", left=name, right=up.name)
        return Base(name, base.tokens, base.channels)

    def mean(self, base: Base) -> Base:
        """The mean of all tokens of `base`; of a selection, the mean of those rows of what it selects from."""
        source, start, stop = base.name, 0, base.tokens
        maker = next((o for o in self.operations if o.output == source), None)
        if isinstance(maker, SelectTokens):
            source, start, stop = maker.input, maker.start, maker.stop
        name = self.emit(MeanTokens, "mean", input=source, start=start, stop=stop)
        return Base(name, 1, base.channels)

    def attention(
        self, query: Base, key: Base, value: Base, heads: int, scale: float, bias: FloatArray | None = None
    ) -> Base:
        """Emit attention; `bias` is `[heads, queries, keys]` or `[1, queries, keys]`."""
        names = {"query": query.name, "key": key.name, "value": value.name}
        output = self.emit(Attention, "attention", **names, heads=heads, scale=scale, bias=bias)
        return Base(output, query.tokens, value.channels)

    def route(self, logits: Affine, gate: Gate) -> str:
        """Emit the router with these logits; the weight has one gate a task, the same for all where the graph says so."""
        _unweighed(logits)
        dense = with_weight(folded(logits))
        assert dense.weight is not None
        weight = full_features(logits.layout, dense.weight).transpose(1, 0, 2)
        bias = full_features(logits.layout, dense.bias).transpose(1, 0)
        tasks, experts = np.broadcast_shapes(bias.shape, weight.shape[:2], (self.tasks, 1))
        bias = np.broadcast_to(bias, (tasks, experts))
        weight = np.broadcast_to(weight, (tasks, experts, weight.shape[2]))
        arrays = {"weight": _own(weight), "bias": _own(bias)}
        selection = None if gate.selection is None else _own(np.broadcast_to(gate.selection, (tasks, experts)))
        fields = vars(gate) | {"selection": selection}
        return self.emit(Route, "route", input=logits.base.name, **arrays, **fields)

    def expert_layer(
        self,
        base: Base,
        routing: str,
        arrays: dict[str, FloatArray],
        form: str,
        lattices: dict[str, Lattice],
        weigh_inputs: bool = False,
    ) -> Base:
        """Experts; `lattices` are those of their `hidden` layers and `up` linears."""
        owned = {name: _own(array) for name, array in arrays.items()}
        fields = {"form": form, "weigh_inputs": weigh_inputs}
        output = self.emit(Experts, "experts", input=base.name, routing=routing, **owned, **fields)
        self.lattices |= {of_experts(output, role): own for role, own in lattices.items()}
        return Base(output, base.tokens, arrays["second_weight"].shape[1])

    def linear(self, value: Affine, role: str = "linear") -> Base:
        """Emit an affine map, with its factor folded in, as a Linear; plain rows need none."""
        _unweighed(value)
        if is_rows(value):
            return value.base
        dense = with_weight(folded(value))
        if (
            dense.selector is not None
            or dense.weight is None
            or dense.weight.shape[-2] != 1
            or dense.bias.shape[-1] != 1
        ):
            raise LayoutError("a weight chosen by task or by expert is used outside a router or an expert layer")
        weight = full_features(dense.layout, dense.weight)[:, 0]
        bias = full_features(dense.layout, dense.bias)[:, 0]
        output = self.emit(Linear, role, input=dense.base.name, weight=_own(weight), bias=_own(bias))
        self.quantise(output, dense.layout, value.grid)
        return Base(output, dense.base.tokens, dense.layout.features)

    def quantise(self, name: str, layout: Layout, grid: Grid | None) -> None:
        """Note that the graph quantises the value `name`, all of whose channels `layout` holds in tensor order."""
        if grid is not None:
            scale, zero = (full_features(layout, array).astype(np.float64) for array in (grid.scale, grid.zero))
            self.lattices[name] = Lattice(scale, zero, grid.bits, grid.signed)

    def embed(self, value: Patches) -> Base:
        layout = value.layout
        order = (*layout.token_positions, *layout.feature_positions)
        tokens, channels, leading = layout.tokens, layout.features, value.leading

        def matrix(array: Array) -> FloatArray:
            full = np.broadcast_to(array, [axis.size for axis in layout.axes])
            return _own(full.transpose(order).reshape(tokens, channels))

        weight = full_features(layout, value.weight).reshape(channels, *value.patch)
        output = self.emit(
            Embed,
            "embed",
            input=self.image,
            weight=_own(weight),
            bias=_own(full_features(layout, value.bias)),
            prefix=matrix(value.prefix)[:leading],
            position=matrix(value.position),
        )
        return Base(output, tokens, channels)

    def layer_norm(self, value: Normalised) -> Base:
        base = value.base
        if any(
            isinstance(o, LayerNorm) and o.output == base.name for o in self.operations
        ):  # it reads wide values only
            identity = np.eye(base.channels, dtype=np.float32)
            zero = np.zeros(base.channels, np.float32)
            base = replace(base, name=self.emit(Linear, "linear", input=base.name, weight=identity, bias=zero))
        arrays = {"weight": _own(value.weight), "bias": _own(value.bias)}
        heads = base.channels // len(value.weight)
        fields = {"epsilon": value.epsilon, "centred": value.centred, "heads": heads}
        name = self.emit(LayerNorm, "norm", input=base.name, **arrays, **fields)
        if value.grid is not None:
            self.lattices[name] = value.grid
        return Base(name, value.base.tokens, value.base.channels)

    def feed_forward(self, value: FeedForward) -> Base:
        """A plain two-layer network: Linear, Activation, Linear; a gated one has a second Linear and a Multiply."""
        layers = network_layers(value)

        def linear(role: str, source: str) -> str:
            arrays = {"weight": layers[f"{role}_weight"], "bias": layers[f"{role}_bias"]}
            return self.emit(Linear, "linear", input=source, **arrays)

        up = linear("up", value.base.name) if "up_weight" in layers else None
        middle = self.emit(Activation, "gelu", input=linear("first", value.base.name), form=value.form)
        if up is not None:
            middle = self.emit(Multiply, "gated", left=middle, right=up)
            self.lattices |= {} if value.up_grid is None else {up: value.up_grid}
        self.lattices |= {} if value.grid is None else {middle: value.grid}
        return Base(linear("second", middle), value.base.tokens, value.layout.features)

    def shared(self, value: Shared) -> Base:
        """An expert that all tokens choose; a sigmoid is the softmax of the logit and a zero, a column without expert."""
        dense = with_weight(folded(value.gate))
        if dense.selector is not None or dense.weight is None:
            raise LayoutError("the gate of a shared expert depends on the task or on another router")
        weight = np.zeros((self.tasks, 2, dense.base.channels), np.float32)
        bias = np.zeros((self.tasks, 2), np.float32)
        weight[:, 0], bias[:, 0] = dense.weight.reshape(-1), dense.bias.reshape(-1)
        gate = {"weight": weight, "bias": bias, "k": 2, "normalisation": "all"}
        routing = self.emit(Route, "route", input=dense.base.name, **gate)
        network = value.network
        arrays = {name: array[None] for name, array in network_layers(network).items()}
        grids = {"hidden": network.grid, "up": network.up_grid}
        lattices = {role: grid for role, grid in grids.items() if grid is not None}
        return self.expert_layer(network.base, routing, arrays, network.form, lattices)

    def _base(self, value: Tokens) -> Base:
        if isinstance(value, Affine):
            return self.linear(value)
        if isinstance(value, Patches):
            return self.embed(value)
        if isinstance(value, Normalised):
            return self.layer_norm(value)
        if isinstance(value, FeedForward):
            return self.feed_forward(value)
        if isinstance(value, Hidden):
            activated = self.hidden(value)
            self.quantise(activated.name, value.layout, value.grid)
            return activated
        if isinstance(value, Sum):
            left, right = self.materialise(value.left).base, self.materialise(value.right).base
            order = {operation.output: place for place, operation in enumerate(self.operations)}
            first, second = sorted((left.name, right.name), key=lambda name: order.get(name, -1))
            return Base(self.emit(Add, "add", left=first, right=second), left.tokens, left.channels)
        if isinstance(value, Pointwise):
            return self._base(self.activation(value))
        if isinstance(value, Shared):
            return self.shared(value)
        try:
            matched = match_experts(value)
        except LayoutError as error:
            raise RoutingError(f"{error} (the router's logits are {value.source.onnx_name!r})", value) from error
        routing = self.route(value.source.logits, matched.gate)
        self.routers[routing] = value.source
        arrays, lattices = matched.arrays, matched.lattices
        return self.expert_layer(value.base, routing, arrays, value.form, lattices, matched.weigh_inputs)

    def activation(self, value: Pointwise) -> Hidden:
        """The activation a pointwise function is."""
        form = match_activation(value.function)
        if form is None:
            raise LayoutError("the activation is none of GELU (exact, tanh or x·sigmoid(1.702 x)), SiLU and ReLU")
        return Hidden(value.operand, form)

    def materialise(self, value: Tokens) -> Affine:
        """The value as plain rows of a network value, in the same layout.

        Raises:
            LayoutError: the value is not a token matrix the network can hold.
        """
        known = self._materialised.get(id(value))
        if known is None:
            known = (value, rows(self._base(value), value.layout))
            self._materialised[id(value)] = known
        return known[1]

    def known(self, value: Tokens) -> Affine | None:
        """What a value was materialised to."""
        known = self._materialised.get(id(value))
        return None if known is None else known[1]


def network_layers(value: FeedForward) -> dict[str, FloatArray]:
    """Weights and biases of a network that no router weighs, by the names that `Experts` has for them."""
    if value.coefficient is not None or value.selector is not None or value.weighing is not None:
        raise LayoutError("the outputs of experts are used before they are summed over the chosen experts")
    free = len(value.layout.axes)
    given = {"first": (value.first, value.first_bias), "up": (value.up, value.up_bias)}
    layers: dict[str, FloatArray] = {}
    for role, (weight, bias) in given.items():
        if weight is None or bias is None:
            continue
        if any(part.shape[: free + 1] != (1,) * (free + 1) for part in (weight, bias)):
            raise LayoutError("several networks run side by side without a router that weighs them")
        layers |= {f"{role}_weight": _own(weight.reshape(weight.shape[-2:])), f"{role}_bias": _own(bias.reshape(-1))}
    layers["second_weight"] = _own(full_features(value.layout, value.second)[:, 0])
    layers["second_bias"] = _own(full_features(value.layout, value.second_bias)[:, 0])
    return layers


def _unweighed(value: Affine) -> None:
    if value.weighing is not None:
        raise LayoutError("tokens times gate weights are read by something else than experts whose outputs are summed")


def _own(array: Array) -> FloatArray:
    return np.array(array, np.float32, order="C")


def _fingerprint(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).digest()
    return value
