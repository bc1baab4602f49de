"""Random integer networks whose values use their ranges: in goes a seed and the sizes, out comes a valid network.

The multipliers and shifts are fitted operation by operation to the values the NumPy reference computes on one random
image, so that most values lie inside their range, some saturate, and no stage is trivially zero. The operations cover
the whole contract: class token, LayerNorm of all tokens and of one, attention, dense and expert MLPs on alternate
layers, routing with both normalisations and several tasks (two experts share a gate, so ties occur), a raw head and
plain residual output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from moehls.integer.arithmetic import gelu, requantise, sat
from moehls.integer.operations import (
    HIDDEN,
    AddResidual,
    Format,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerInput,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerOutput,
    IntegerPool,
    IntegerRoute,
    Raw,
    Requantise,
    Scaling,
    ScoreBias,
    TensorKind,
    WeightArray,
    Widen,
)
from moehls.integer.precision import W8A8, Precision
from moehls.network.operations import ActivationForm, GateNormalisation, Priority, Score
from moehls.reference.execute import Execution, execute
from moehls.reference.linear import requantised
from moehls.reference.product import product
from moehls.reference.route import Routing
from tests.support.random_soft import soft_layer


@dataclass(frozen=True)
class Sizes:
    """Sizes of a random network; the defaults are multiples of nothing."""

    tokens: int = 11
    width: int = 30
    heads: int = 3
    layers: int = 2
    mlp: int = 52
    experts: int = 5
    hidden: int = 21
    k: int = 2
    tasks: int = 2
    prefix: int = 1
    channels: int = 3
    patch: tuple[int, int] = (3, 5)
    head: int = 7
    """outputs of the raw head on the first token; 0 for none"""
    pooled: bool = False
    """heads on means of tokens in place of the first token"""
    gated: bool = False
    """MLPs and experts multiply the activation with another linear, and layers with experts have a shared one"""
    centred: bool = True
    """LayerNorm, not RMSNorm"""
    threshold: int = 0
    """of the gates"""
    renormalise: bool = False
    capacity: int = 0
    """with a threshold, not of the first router"""
    priority: Priority = "token"
    score: Score = "softmax"
    """of the first router; a second one has softmax"""
    group: int = 0
    kept_groups: int = 0
    selects: bool = False
    """whether sigmoids rank experts with a bias, and groups by two of them"""
    weigh_inputs: bool = False
    """whether gates multiply what routed experts read"""
    normalised: bool = False
    """queries and keys of each head are normalised, those of odd layers over all channels"""
    biased: bool = False
    """scores have a bias, which hides some keys"""
    room: bool = False
    """whether gates are relative to the choices that find places"""
    slots: int = 0
    """of soft mixtures, which stand on the odd layers in the place of routed ones; 0 for none"""


def random_integer_network(
    seed: int,
    precision: Precision = W8A8,
    sizes: Sizes | None = None,
    *,
    normalisation: GateNormalisation = "all",
    activation: ActivationForm = "exact",
) -> IntegerNetwork:
    """A network of `sizes`; odd layers have experts (none if `experts` is 0), even ones an MLP.

    Outputs: `tokens`, the final residual, `features`, the fine values of the final norm of all tokens where there is no
    head, and `logits`, the raw head.
    """
    builder = Builder(np.random.default_rng(seed), precision, sizes or Sizes(), normalisation, activation)
    return builder.build()


def random_image(network: IntegerNetwork, seed: int) -> np.ndarray:
    """A float32 image that covers the pixel range of the network; a few pixels saturate."""
    top = (1 << network.precision.activation_bits) - 1
    levels = np.random.default_rng(seed).normal(top / 2, top / 4, network.input.shape)
    source = network.input
    return ((levels - source.offset[:, None, None]) * source.scale[:, None, None]).astype(np.float32)


@dataclass
class Builder:
    rng: np.random.Generator
    precision: Precision
    sizes: Sizes
    normalisation: GateNormalisation
    activation: ActivationForm
    operations: list[IntegerOperation] = field(default_factory=list)
    formats: dict[str, Format] = field(default_factory=dict)
    known: Execution = field(default_factory=lambda: Execution({}))

    def build(self) -> IntegerNetwork:
        s = self.sizes
        residual = self.embed()
        for layer in range(s.layers):
            residual = self.attention(f"layer{layer}", residual)
            if layer % 2 == 1 and s.slots:
                residual = soft_layer(self, f"layer{layer}", residual)
            else:
                residual = (self.experts if layer % 2 == 1 and s.experts else self.mlp)(f"layer{layer}", residual)
            if layer % 2 == 1 and s.experts and s.gated:
                residual = self.shared(f"layer{layer}.shared", residual)
        outputs = [IntegerOutput("tokens", residual, (1, s.tokens, s.width))]
        if s.pooled:
            return self.pooled_heads(residual, outputs)
        fine, operand = self.norm("final", residual, 0, 1 if s.head else s.tokens)
        if s.head:
            self.linear("head", operand, "head.logits", s.head, Raw())
            outputs.append(IntegerOutput("logits", "head.logits", (1, s.head)))
        else:
            outputs.append(IntegerOutput("features", fine, (1, s.tokens, s.width)))
        return self.network(tuple(outputs))

    def pooled_heads(self, residual: str, outputs: list[IntegerOutput]) -> IntegerNetwork:
        """A head on the mean of the final norm, another on the norm of the residual's mean."""
        s, p = self.sizes, self.precision
        fine, _ = self.norm("final", residual, 1, s.tokens)
        for name, source, of_fine, start in (("patches", fine, True, 0), ("mean", residual, False, 1)):
            stop = len(self.known.array(source)) - (1 if of_fine else 0)
            total = self.known.array(source)[start:stop].sum(axis=0)
            bits = p.activation_bits if of_fine else p.residual_bits
            spread = np.full((2, s.width), np.abs(total).max()) * [[1], [-1]]
            scaling = self.fit(spread, 2.0 ** (bits - 2), bias=of_fine)
            self.append(
                IntegerPool(name, source, name, of_fine, start, stop, scaling), "operand" if of_fine else "residual"
            )
            operand = name if of_fine else self.norm(f"{name}.norm", name, 0, 1)[1]
            self.linear(f"{name}.head", operand, f"{name}.logits", s.head, Raw())
            outputs.append(IntegerOutput(f"{name}.logits", f"{name}.logits", (1, s.head)))
        return self.network(tuple(outputs))

    def network(self, outputs: tuple[IntegerOutput, ...]) -> IntegerNetwork:
        s = self.sizes
        patches = s.tokens - s.prefix
        rows = max(d for d in range(1, math.isqrt(patches) + 1) if patches % d == 0)
        shape = (s.channels, rows * s.patch[0], patches // rows * s.patch[1])
        levels = 1 << self.precision.activation_bits
        scale = np.linspace(3.0, 5.0, s.channels) / levels
        offset = np.linspace(0.4, 0.6, s.channels) * levels
        return IntegerNetwork(
            name="random",
            precision=self.precision,
            input=IntegerInput("image", shape, s.patch, scale, offset),
            tokens=s.tokens,
            operations=tuple(self.operations),
            formats=dict(self.formats),
            outputs=outputs,
            tasks=s.tasks,
            task_input="task" if s.tasks > 1 else None,
            activations=(self.activation,),
        )

    def embed(self) -> str:
        s, ab = self.sizes, self.precision.activation_bits
        pixels = self.rng.integers(0, 1 << ab, (s.tokens - s.prefix, s.channels * s.patch[0] * s.patch[1]))
        self.known.values["image"] = pixels
        weight = self.weights(s.width, pixels.shape[1])
        scaling = self.fit(product(pixels, weight), self.branch)
        initial = sat(self.rng.normal(0, self.branch, (s.tokens, s.width)).round().astype(np.int64), 16)
        self.append(IntegerEmbed("embed", "image", "embed.tokens", weight, scaling, initial, s.prefix), "residual")
        return "embed.tokens"

    def attention(self, layer: str, residual: str) -> str:
        s, p = self.sizes, self.precision
        _, x = self.norm(f"{layer}.norm1", residual, 0, s.tokens)
        parts = Widen() if s.normalised else Requantise()
        q, k = (self.linear(f"{layer}.{n}", x, f"{layer}.{n}.out", s.width, parts) for n in ("q", "k"))
        if s.normalised:
            heads = 1 if layer.endswith("1") else s.heads
            q, k = (self.norm(f"{name}.norm", name, 0, s.tokens, heads)[1] for name in (q, k))
        v = self.linear(f"{layer}.v", x, f"{layer}.v.out", s.width, Requantise())
        d = s.width // s.heads
        queries, keys = (self.known.array(n).reshape(-1, s.heads, d).swapaxes(0, 1) for n in (q, k))
        scores = product(queries, keys).transpose(1, 2, 0).reshape(-1, s.heads)
        target = 2.0 ** (p.score_fraction + self.rng.uniform(-1, 4, s.heads))
        score = self.fit(scores, target, bias=False)
        context = IntegerAttention(
            f"{layer}.attention", q, k, v, f"{layer}.context", s.heads, score.multiplier, score.shift, _unit(s.width)
        )
        before = self.known.array(v) << p.context_fraction
        if s.biased:
            bias = random_score_bias(self.rng, (s.heads, s.tokens, s.tokens), np.abs(scores).max(axis=0), p)
            context = replace(context, bias=bias)
        self.append(
            IntegerAttention(**(vars(context) | {"scaling": self.fit(before, 2.0 ** (p.activation_bits - 2))})),
            "operand",
        )
        return self.linear(f"{layer}.projection", context.output, f"{layer}.attended", s.width, AddResidual(residual))

    def mlp(self, layer: str, residual: str) -> str:
        s = self.sizes
        _, x = self.norm(f"{layer}.norm2", residual, 0, s.tokens)
        hidden = self.gated(layer, x) if s.gated else self.linear(f"{layer}.first", x, f"{layer}.hidden", s.mlp, None)
        return self.linear(f"{layer}.second", hidden, f"{layer}.out", s.width, AddResidual(residual))

    def gated(self, layer: str, x: str) -> str:
        up = self.linear(f"{layer}.up", x, f"{layer}.other", self.sizes.mlp, Requantise())
        weight = self.weights(self.sizes.mlp, self.sizes.width)
        accumulator = product(self.known.array(x), weight)
        scaling = self.fit(accumulator, self.gelu_target(self.sizes.mlp))
        multiplier, shift = self.fit_gated(self.activate(accumulator, scaling) * self.known.array(up))
        epilogue = GatedRequantise(up, multiplier, shift)
        self.append(IntegerLinear(f"{layer}.first", x, f"{layer}.hidden", weight, scaling, epilogue), "operand")
        return f"{layer}.hidden"

    def shared(self, layer: str, residual: str) -> str:
        """An expert of all tokens: a router of two columns, the second zero and without expert."""
        p = self.precision
        fine, _ = self.norm(f"{layer}.norm2", residual, 0, self.sizes.tokens)
        weight = self.weights(self.sizes.tasks, 2, self.sizes.width)
        weight[:, 1] = 0
        scaling = self.fit(np.abs(product(self.known.array(fine), weight[0])), 2.0**p.logit_fraction, bias=False)
        columns = np.ones(self.sizes.tasks, np.int64)
        route = IntegerRoute(
            f"{layer}.route", fine, f"{layer}.routing", weight, np.zeros((self.sizes.tasks, 2), np.int64),
            scaling.multiplier[0] * columns, scaling.shift[0] * columns, 2, "all",
        )  # fmt: skip
        self.append(route, "routing")
        return self.chosen_experts(layer, f"{layer}.norm2.operand", f"{layer}.routing", residual, 1)

    def experts(self, layer: str, residual: str) -> str:
        fine, operand = self.norm(f"{layer}.norm2", residual, 0, self.sizes.tokens)
        return self.chosen_experts(layer, operand, self.route(layer, fine), residual, self.sizes.experts)

    def chosen_experts(self, layer: str, operand: str, routing: str, residual: str, count: int) -> str:
        s, p = replace(self.sizes, experts=count), self.precision
        x = self.known.array(operand)
        first_weight = self.weights(s.experts, s.hidden, s.width)
        accumulators = [product(x, w) for w in first_weight]
        first = [self.fit(a, self.gelu_target(s.hidden)) for a in accumulators]
        activated = [self.activate(a, f) for a, f in zip(accumulators, first, strict=True)]
        up_weight, up_scaling = None, None
        if s.gated:
            up_weight = self.weights(s.experts, s.hidden, s.width)
            others = [product(x, w) for w in up_weight]
            ups = [self.fit(a, 2.0 ** (p.activation_bits - 2)) for a in others]
            factors = [requantised(a, u, p) for a, u in zip(others, ups, strict=True)]
            multiplier, shift = self.fit_gated(np.stack(activated) * np.stack(factors))
            up_scaling, epilogues = _stack(ups), GeluRequantise(multiplier, shift, 0)
        else:
            epilogues = self.fit_gelu(np.stack(activated))
        second_weight = self.weights(s.experts, s.width, s.hidden)
        unsigned = self.rng.integers(0, 1 << p.activation_bits, (s.tokens, s.hidden))
        gate = 1 << p.expert_fraction
        second = [self.fit(product(unsigned, w), self.branch * gate) for w in second_weight]
        operation = IntegerExperts(
            f"{layer}.experts",
            operand,
            routing,
            residual,
            f"{layer}.out",
            first_weight,
            _stack(first),
            epilogues,
            second_weight,
            _stack(second),
            up_weight,
            up_scaling,
            s.weigh_inputs,
        )
        self.append(operation, "residual")
        return operation.output

    def selection(self) -> IntArray:
        """Biases of the choice about as large as the sigmoids."""
        return self.rng.normal(0, 20000, (self.sizes.tasks, self.sizes.experts)).round().astype(np.int64)

    def route(self, layer: str, fine: str) -> str:
        s, p = self.sizes, self.precision
        weight = self.weights(s.tasks, s.experts, s.width)
        weight[:, -1] = weight[:, 0]
        logits = [product(self.known.array(fine), w) for w in weight]
        noise = self.rng.normal(0, 0.2, (s.tasks, s.experts))
        bias = np.stack([np.rint(n * one.std() - one.mean(axis=0)) for n, one in zip(noise, logits, strict=True)])
        bias = bias.astype(np.int64)
        bias[:, -1] = bias[:, 0]
        spread = np.stack([one.ravel() for one in logits], axis=1)
        scaling = self.fit(spread, 2.0 ** (p.logit_fraction + 1), bias=False)
        output = f"{layer}.routing"
        score = s.score if layer == "layer1" else "softmax"
        limited = s.capacity > 0 and (layer != "layer1" or not s.threshold)
        self.append(
            IntegerRoute(
                f"{layer}.route",
                fine,
                output,
                weight,
                bias,
                scaling.multiplier,
                scaling.shift,
                s.k,
                self.normalisation if score == "sigmoid" or self.normalisation != "none" else "all",
                s.threshold,
                s.renormalise,
                s.capacity if limited else 0,
                s.priority,
                score,
                s.group,
                s.kept_groups,
                *((s.group > 0, self.selection()) if s.selects and score == "sigmoid" else (False, None)),
                s.room,
            ),
            "routing",
        )
        return output

    def norm(self, name: str, residual: str, start: int, stop: int, heads: int = 1) -> tuple[str, str]:
        p, width = self.precision, self.sizes.width // heads
        shift = self.rng.integers(10, 20, width)
        gain = 2.0 ** (p.fine_bits - 3 - p.norm_fraction + shift) * self.rng.uniform(0.3, 1.5, width)
        sign = self.rng.choice([-1, 1], width)
        multiplier = sign * np.minimum(gain, 32767).astype(np.int64)
        bias = self.rng.normal(0, 2.0 ** (p.fine_bits - 4), width) * 2.0**shift
        limit = (1 << (p.accumulator_bits - 1)) - 1
        scaling = Scaling(np.clip(bias, -limit, limit).astype(np.int64), multiplier, shift.astype(np.int64))
        epsilon = int(self.rng.integers(0, 1 << 12))
        operation = IntegerNorm(
            name,
            residual,
            f"{name}.fine",
            f"{name}.operand",
            start,
            stop,
            scaling,
            epsilon,
            self.sizes.centred,
            heads=heads,
        )
        self.append(operation, "fine", width)
        return operation.fine, operation.operand

    def linear(
        self, name: str, x: str, output: str, out: int, epilogue: Requantise | AddResidual | Widen | Raw | None
    ) -> str:
        """`None` stands for the GELU epilogue, which is fitted here."""
        p = self.precision
        inputs = self.known.array(x)
        weight = self.weights(out, inputs.shape[1])
        accumulator = product(inputs, weight)
        fitted: Requantise | AddResidual | Widen | Raw | GeluRequantise
        kind: TensorKind = "operand"
        match epilogue:
            case Raw():
                scaling, fitted, kind = _unit(out), epilogue, "raw"
                scaling = Scaling(self.fit(accumulator, 1.0).bias, scaling.multiplier, scaling.shift)
            case AddResidual() | Widen():
                scaling, fitted, kind = self.fit(accumulator, self.branch), epilogue, "residual"
            case Requantise():
                scaling, fitted = self.fit(accumulator, 2.0 ** (p.activation_bits - 2)), epilogue
            case None:
                scaling = self.fit(accumulator, self.gelu_target(out))
                fitted = self.fit_gelu(self.activate(accumulator, scaling))
        self.append(IntegerLinear(name, x, output, weight, scaling, fitted), kind)
        return output

    def append(self, operation: IntegerOperation, kind: TensorKind, width: int = 0) -> None:
        """Add an operation, compute what it writes and note the formats."""
        self.operations.append(operation)
        written = execute(self.network(()), operation, self.known, 0)
        self.known.values.update(written)
        p = self.precision
        bits = {
            "residual": p.residual_bits,
            "fine": p.fine_bits,
            "operand": p.activation_bits,
            "raw": p.accumulator_bits,
            "routing": p.gate_fraction + 1,
        }
        for name, value in written.items():
            own: TensorKind = "operand" if isinstance(operation, IntegerNorm) and name == operation.operand else kind
            unsigned = own == "routing" or isinstance(getattr(operation, "epilogue", None), GeluRequantise)
            columns = 1 if isinstance(value, Routing) else value.shape[1]
            scale, offset = self.rng.uniform(1e-4, 1e-2, columns), np.zeros(columns)
            self.formats[name] = Format(own, bits[own], not unsigned, scale, offset)

    def weights(self, *shape: int) -> WeightArray:
        """Normal weights over the whole range; a few rows (output channels) are small."""
        limit = (1 << (self.precision.weight_bits - 1)) - 1
        spread = limit * self.rng.choice([0.4, 0.05], (*shape[:-1], 1), p=[0.9, 0.1])
        values = np.clip(np.rint(self.rng.normal(0, 1, shape) * spread), -limit, limit)
        result: WeightArray = values.astype(np.int8 if self.precision.weight_bits == 8 else np.int16)
        return result

    def fit(self, accumulator: IntArray, target: np.ndarray | float, *, bias: bool = True) -> Scaling:
        """Parameters that give `[rows, out]` accumulators about `target` deviation, a channel; some far off."""
        out = accumulator.shape[1]
        spread = np.maximum(accumulator.std(axis=0), 0.3 * accumulator.std() + 1.0)
        wanted = np.asarray(target) * self.rng.choice([1.0, 0.25, 3.0], out, p=[0.8, 0.1, 0.1])
        mean = accumulator.mean(axis=0) if bias else 0.0
        shifted = (
            np.rint(self.rng.normal(0, 0.3, out) * spread - mean).astype(np.int64) if bias else np.zeros(out, np.int64)
        )
        multiplier, shift = encode(wanted / spread, self.precision.multiplier_bits)
        return Scaling(shifted, multiplier, shift)

    @property
    def branch(self) -> float:
        """Deviation of what one update adds to the residual: the sum of all stays mostly, not always, in 16 bits."""
        return 2.0**13 / math.sqrt(2 * self.sizes.layers + 1)

    def gelu_target(self, channels: int) -> np.ndarray:
        return 2.0**self.precision.gelu_fraction * self.rng.uniform(0.3, 4.0, channels)

    def activate(self, accumulator: IntArray, scaling: Scaling) -> IntArray:
        p = self.precision
        g = requantise(accumulator, scaling.bias, scaling.multiplier, scaling.shift, p)
        return gelu(sat(g, p.gelu_bits), p, self.activation)

    def fit_gelu(self, activated: IntArray) -> GeluRequantise:
        """Second multipliers over the last axis (and experts) that fill the unsigned range with some saturation."""
        p = self.precision
        offset = int(0.17 * (1 << p.delta_fraction))
        largest = (activated + offset).max(axis=-2) * self.rng.uniform(
            0.7, 1.5, activated.shape[:-2] + activated.shape[-1:]
        )
        ratio = (1 << p.activation_bits) / largest
        shift = math.floor(math.log2(255 / np.quantile(ratio, 0.9)))
        return GeluRequantise(np.clip(np.rint(ratio * 2.0**shift), 0, 255).astype(np.int64), max(shift, 0), offset)

    def fit_gated(self, products: IntArray) -> tuple[IntArray, int]:
        """Second multipliers over the last axis (and experts) that fill the signed range with some saturation."""
        largest = np.maximum(np.abs(products).max(axis=-2), 1) * self.rng.uniform(
            0.7, 1.5, products.shape[:-2] + products.shape[-1:]
        )
        ratio = (1 << (self.precision.activation_bits - 1)) / largest
        shift = math.floor(math.log2(255 / np.quantile(ratio, 0.9)))
        return np.clip(np.rint(ratio * 2.0**shift), 0, 255).astype(np.int64), max(shift, 0)


def random_score_bias(
    rng: np.random.Generator, shape: tuple[int, int, int], sums: np.ndarray, precision: Precision
) -> ScoreBias:
    """Entries about as large as the sums of a head, `sums`; some far larger, some hide keys: all, none or the first ones."""
    heads, queries, keys = shape
    shift = np.clip(np.ceil(np.log2(np.maximum(sums, 1.0) * rng.uniform(0.1, 8, heads))) - 13, 0, 31).astype(np.int64)
    if precision.accumulator_bits == 32:
        shift = np.minimum(shift, 14)
    spread = sums / 2.0**shift * rng.choice([0.2, 1.0], heads)
    entries = rng.normal(0, 1, shape) * np.maximum(spread, 1.0)[:, None, None]
    entries[:, rng.random(queries) < 0.1] *= 30
    entries = np.clip(np.rint(entries), HIDDEN + 1, -HIDDEN - 1)
    entries[rng.random(shape) < 0.15] = HIDDEN
    entries[:, ::4, : (keys + 1) // 2] = HIDDEN  # whole groups of keys, the first ones
    entries[0, queries // 2] = HIDDEN
    entries[:, queries // 3, : keys - 1] = HIDDEN
    return ScoreBias(entries.astype(np.int16), shift)


def encode(ratio: np.ndarray, bits: int) -> tuple[IntArray, IntArray]:
    """`ratio ≈ multiplier · 2^-shift` with the largest multiplier of `bits` bits and a shift of 0 to 63."""
    shift = np.clip(bits - 1 - np.floor(np.log2(ratio)), 0, 63).astype(np.int64)
    return np.clip(np.rint(ratio * 2.0**shift), 0, (1 << bits) - 1).astype(np.int64), shift


def _unit(channels: int) -> Scaling:
    return Scaling(np.zeros(channels, np.int64), np.ones(channels, np.int64), np.zeros(channels, np.int64))


def _stack(parts: list[Scaling]) -> Scaling:
    return Scaling(*(np.stack([getattr(part, name) for part in parts]) for name in ("bias", "multiplier", "shift")))
