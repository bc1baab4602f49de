"""Checks an integer network against the invariants of `docs/numbers.md`: a network comes in, nothing or an error out.

Everything the machine relies on without testing it is tested here: names, shapes and number formats, the range of every
parameter, and that no accumulator can overflow whatever the image is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn, get_args

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    HIDDEN,
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerPool,
    IntegerRoute,
    Raw,
    Requantise,
    Scaling,
    ScoreBias,
    TensorKind,
    Widen,
)
from moehls.integer.precision import Precision
from moehls.network.operations import ActivationForm
from moehls.network.processing import evaluate

SELECTION_BITS = 23
"""of a selection bias, signed"""
_MAXIMUM_SHIFT = 63
_MAXIMUM_BIAS_SHIFT = 31
_EPSILON_BITS = 48
_MAXIMUM_WIDTH = 1 << 15


def check(network: IntegerNetwork) -> None:
    """Prove the invariants of `network`.

    Raises:
        MoehlsError: one is violated; the message names the operation, the array and what was found.
    """
    walk = _Walk(network)
    walk.check_input()
    for index, operation in enumerate(network.operations):
        if isinstance(operation, IntegerEmbed) != (index == 0):
            walk.fail(operation.name, "the first operation, and no other, must be the patch embedding")
        walk.check_operation(operation)
    walk.check_outputs()


@dataclass(frozen=True)
class _Value:
    kind: TensorKind
    rows: int
    columns: int
    signed: bool = True


@dataclass
class _Walk:
    """The values known so far and which residual values were overwritten."""

    network: IntegerNetwork
    values: dict[str, _Value] = field(default_factory=dict)
    overwritten: dict[str, str] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        return self.network.precision

    def fail(self, where: str, what: str) -> NoReturn:
        raise MoehlsError(f"integer network {self.network.name!r}: {where}: {what}")

    def check_input(self) -> None:
        """Image shape, patches, tasks."""
        network, source = self.network, self.network.input
        if any(size < 1 for size in (*source.shape, *source.patch)):
            self.fail(source.name, f"shape {source.shape} and patch {source.patch} must be positive")
        if source.shape[1] % source.patch[0] or source.shape[2] % source.patch[1]:
            self.fail(source.name, f"the image {source.shape[1:]} is not a whole number of patches {source.patch}")
        self.check_real(source.name, source.scale, source.offset, source.shape[0])
        if network.tasks < 1 or (network.task_input is None) != (network.tasks == 1):
            self.fail("tasks", f"{network.tasks} tasks with task input {network.task_input!r}")
        forms = network.activations
        if not forms or len(set(forms)) < len(forms) or not set(forms) <= set(get_args(ActivationForm)):
            self.fail("activations", f"found {forms!r}; defined, each once: {', '.join(get_args(ActivationForm))}")

    def check_operation(self, operation: IntegerOperation) -> None:
        match operation:
            case IntegerEmbed():
                self.check_embed(operation)
            case IntegerConstant():
                self.check_constant(operation)
            case IntegerNorm():
                self.check_norm(operation)
            case IntegerPool():
                self.check_pool(operation)
            case IntegerLinear():
                self.check_linear(operation)
            case IntegerAttention():
                self.check_attention(operation)
            case IntegerRoute():
                self.check_route(operation)
            case IntegerExperts():
                self.check_experts(operation)

    def check_embed(self, operation: IntegerEmbed) -> None:
        name, source, p = operation.name, self.network.input, self.precision
        pixels = source.shape[0] * source.patch[0] * source.patch[1]
        patches = (source.shape[1] // source.patch[0]) * (source.shape[2] // source.patch[1])
        if operation.input != source.name:
            self.fail(name, f"reads {operation.input!r}; the image is {source.name!r}")
        if operation.prefix < 0 or operation.prefix + patches != self.network.tokens:
            self.fail(name, f"{operation.prefix} leading tokens and {patches} patches, {self.network.tokens} tokens")
        channels = operation.weight.shape[0]
        self.check_weight(name, operation.weight, (channels, pixels))
        self.check_scaling(name, operation.scaling, (channels,))
        self.check_accumulator(name, operation.weight, operation.scaling.bias, (1 << p.activation_bits) - 1)
        limit = 1 << (p.residual_bits - 1)
        self.check_integers(name, "initial", operation.initial, (self.network.tokens, channels), -limit, limit - 1)
        self.define(name, operation.output, _Value("residual", self.network.tokens, channels))

    def check_constant(self, operation: IntegerConstant) -> None:
        limit = 1 << (self.precision.residual_bits - 1)
        if operation.rows.ndim != 2 or operation.rows.size == 0:
            self.fail(operation.name, f"rows have shape {operation.rows.shape}, not [rows, channels]")
        self.check_integers(operation.name, "rows", operation.rows, operation.rows.shape, -limit, limit - 1)
        self.define(operation.name, operation.output, _Value("residual", *operation.rows.shape))

    def check_norm(self, operation: IntegerNorm) -> None:
        name, p = operation.name, self.precision
        x = self.read(name, operation.input, "residual")
        if not 0 <= operation.start < operation.stop <= x.rows:
            self.fail(name, f"tokens {operation.start} to {operation.stop} of {x.rows}")
        if x.columns > _MAXIMUM_WIDTH:
            self.fail(name, f"{x.columns} channels; the exact variance takes at most {_MAXIMUM_WIDTH}")
        if not 0 <= operation.epsilon < 1 << _EPSILON_BITS:
            self.fail(name, f"epsilon {operation.epsilon} is not in 0 … 2^{_EPSILON_BITS} - 1")
        gain = (1 << (p.multiplier_bits - 1)) - 1
        if operation.heads < 1 or x.columns % operation.heads:
            self.fail(name, f"{operation.heads} heads do not divide {x.columns} channels")
        self.check_scaling(name, operation.scaling, (x.columns // operation.heads,), -gain - 1, gain)
        rows = operation.stop - operation.start
        self.define(name, operation.fine, _Value("fine", rows, x.columns))
        self.define(name, operation.operand, _Value("operand", rows, x.columns))

    def check_pool(self, operation: IntegerPool) -> None:
        name, p = operation.name, self.precision
        kind: TensorKind = "fine" if operation.of_fine else "residual"
        x = self.read(name, operation.input, kind)
        if not 0 <= operation.start < operation.stop <= x.rows:
            self.fail(name, f"tokens {operation.start} to {operation.stop} of {x.rows}")
        self.check_scaling(name, operation.scaling, (x.columns,))
        bits = p.residual_bits if kind == "residual" else p.fine_bits
        rows, bias = operation.stop - operation.start, int(np.abs(operation.scaling.bias).max())
        self.check_bound(name, "sum of the tokens", (rows << (bits - 1)) + bias)
        self.define(name, operation.output, _Value("residual" if kind == "residual" else "operand", 1, x.columns))

    def check_linear(self, operation: IntegerLinear) -> None:
        name, epilogue = operation.name, operation.epilogue
        of_fine = isinstance(epilogue, Widen | AddResidual) and self.value(name, operation.input).kind == "fine"
        x = self.read(name, operation.input, "fine" if of_fine else "operand")
        out = operation.weight.shape[0]
        self.check_weight(name, operation.weight, (out, x.columns))
        self.check_scaling(name, operation.scaling, (out,))
        largest = 1 << (self.precision.fine_bits - 1) if of_fine else self.largest(x)
        self.check_accumulator(name, operation.weight, operation.scaling.bias, largest)
        match epilogue:
            case Raw():
                value = _Value("raw", x.rows, out)
            case Requantise():
                value = _Value("operand", x.rows, out)
            case GeluRequantise():
                self.check_gelu(name, epilogue, (out,))
                value = _Value("operand", x.rows, out, signed=False)
            case GatedRequantise():
                up = self.read(name, epilogue.up, "operand")
                if up != _Value("operand", x.rows, out):
                    self.fail(
                        name, f"multiplies {up} with its own [{x.rows}, {out}], which must be signed and of one shape"
                    )
                self.check_gelu(name, GeluRequantise(epilogue.multiplier, epilogue.shift, 0, epilogue.form), (out,))
                value = _Value("operand", x.rows, out)
            case Widen():
                value = _Value("residual", x.rows, out)
            case AddResidual():
                self.overwrite(name, epilogue.residual, operation.output, x.rows, out)
                value = _Value("residual", x.rows, out)
        self.define(name, operation.output, value)

    def check_attention(self, operation: IntegerAttention) -> None:
        name, p = operation.name, self.precision
        q, k, v = (self.read(name, n, "operand") for n in (operation.query, operation.key, operation.value))
        if k != v or q.columns != k.columns or not (q.signed and k.signed):
            self.fail(name, f"query, key and value must be signed, key and value of one shape, found {q}, {k}, {v}")
        if operation.heads < 1 or q.columns % operation.heads:
            self.fail(name, f"{operation.heads} heads do not divide {q.columns} channels")
        maximum = (1 << p.multiplier_bits) - 1
        heads = (operation.heads,)
        self.check_integers(name, "score_multiplier", operation.score_multiplier, heads, 0, maximum)
        self.check_integers(name, "score_shift", operation.score_shift, heads, 0, _MAXIMUM_SHIFT)
        self.check_scaling(name, operation.scaling, (q.columns,))
        signed, unsigned = 1 << (p.activation_bits - 1), (1 << p.activation_bits) - 1
        product = q.columns // operation.heads * signed * signed
        self.check_bound(name, "scores", product)
        if operation.bias is not None:
            self.check_score_bias(name, operation.bias, (operation.heads, q.rows, k.rows), product)
        self.check_bound(name, "context", k.rows * unsigned * signed)
        bias = int(np.abs(operation.scaling.bias).max())
        self.check_bound(name, "context with bias", (1 << (p.requantised_bits - 1)) + bias)
        self.define(name, operation.output, _Value("operand", q.rows, q.columns))

    def check_score_bias(self, name: str, bias: ScoreBias, shape: tuple[int, int, int], product: int) -> None:
        if bias.entries.dtype != np.int16 or bias.entries.shape != shape:
            self.fail(name, f"bias is {bias.entries.dtype}{list(bias.entries.shape)}, must be int16{list(shape)}")
        self.check_integers(name, "bias shift", bias.shift, (shape[0],), 0, _MAXIMUM_BIAS_SHIFT)
        entries = bias.entries.astype(np.int64)
        largest = np.abs(np.where(entries == HIDDEN, 0, entries)).max(axis=(1, 2)) << bias.shift
        self.check_bound(name, "scores with bias", product + int(largest.max()))

    def check_route(self, operation: IntegerRoute) -> None:
        name, p, tasks = operation.name, self.precision, self.network.tasks
        x = self.read(name, operation.input, "fine")
        if operation.weight.ndim != 3:
            self.fail(name, f"weight has shape {operation.weight.shape}, not [tasks, experts, channels]")
        experts = operation.weight.shape[1]
        self.check_weight(name, operation.weight, (tasks, experts, x.columns))
        limit = (1 << (p.accumulator_bits - 1)) - 1
        self.check_integers(name, "bias", operation.bias, (tasks, experts), -limit - 1, limit)
        self.check_integers(name, "multiplier", operation.multiplier, (tasks,), 0, (1 << p.multiplier_bits) - 1)
        self.check_integers(name, "shift", operation.shift, (tasks,), 0, _MAXIMUM_SHIFT)
        self.check_accumulator(name, operation.weight, operation.bias, 1 << (p.fine_bits - 1))
        if not 1 <= operation.k <= experts:
            self.fail(name, f"k = {operation.k} of {experts} experts")
        known: dict[str, tuple[str, ...]] = {"softmax": ("all", "chosen"), "sigmoid": ("all", "chosen", "none")}
        if operation.normalisation not in known.get(operation.score, ()):
            self.fail(name, f"score {operation.score!r}, normalisation {operation.normalisation!r}; defined: {known}")
        size, kept = operation.group, operation.kept_groups
        if (size or kept) and (size < 1 or experts % size or not operation.k <= kept * size <= experts):
            self.fail(name, f"{operation.k} of {experts} experts from {kept} groups of {size}")
        if operation.selection is not None:
            if operation.score != "sigmoid":
                self.fail(name, "a selection bias is added to sigmoids only")
            limit = (1 << SELECTION_BITS - 1) - 1
            self.check_integers(name, "selection", operation.selection, (tasks, experts), -limit, limit)
        if operation.pairs and (size < 2 or operation.selection is None):
            self.fail(
                name, "pairs of ranks count only in groups of two or more, ranked by sigmoids with a selection bias"
            )
        if not 0 <= operation.threshold < 1 << p.gate_fraction:
            self.fail(name, f"threshold {operation.threshold} is not in 0 … 2^{p.gate_fraction} - 1")
        if operation.capacity < 0:
            self.fail(name, f"capacity {operation.capacity} is negative")
        if operation.renormalise and not operation.threshold:
            self.fail(name, "gates are renormalised that no threshold leaves out")
        if operation.priority not in ("token", "choice"):
            self.fail(name, f"priority {operation.priority!r}; token and choice are defined")
        ordered = operation.capacity and operation.priority == "choice" and not operation.threshold
        if operation.room and not (ordered and operation.k == 2):
            self.fail(name, "gates relative to the choices with room: two choices, first ones first, and no threshold")
        self.define(name, operation.output, _Value("routing", x.rows, experts))

    def check_experts(self, operation: IntegerExperts) -> None:
        name = operation.name
        x = self.read(name, operation.input, "operand")
        routing = self.read(name, operation.routing, "routing")
        if operation.first_weight.ndim != 3:
            self.fail(name, f"first_weight has shape {operation.first_weight.shape}, not [experts, hidden, channels]")
        experts, hidden, _ = operation.first_weight.shape
        if routing.rows != x.rows or routing.columns < experts:
            self.fail(
                name, f"routing of {routing.rows} tokens to {routing.columns} experts, {x.rows} to {experts} here"
            )
        out = self.value(name, operation.residual).columns
        self.check_weight(name, operation.first_weight, (experts, hidden, x.columns))
        self.check_scaling(name, operation.first_scaling, (experts, hidden))
        self.check_accumulator(name, operation.first_weight, operation.first_scaling.bias, self.largest(x))
        self.check_gelu(name, operation.gelu, (experts, hidden))
        gated = operation.up_weight is not None
        if operation.up_weight is not None:
            if operation.up_scaling is None or operation.gelu.offset:
                self.fail(name, "gated experts need an up_scaling and the offset 0")
            self.check_weight(name, operation.up_weight, (experts, hidden, x.columns))
            self.check_scaling(name, operation.up_scaling, (experts, hidden))
            self.check_accumulator(name, operation.up_weight, operation.up_scaling.bias, self.largest(x))
        self.check_weight(name, operation.second_weight, (experts, out, hidden))
        self.check_scaling(name, operation.second_scaling, (experts, out))
        largest = self.largest(_Value("operand", x.rows, hidden, signed=gated))
        self.check_accumulator(name, operation.second_weight, operation.second_scaling.bias, largest)
        self.overwrite(name, operation.residual, operation.output, x.rows, out)
        self.define(name, operation.output, _Value("residual", x.rows, out))

    def check_outputs(self) -> None:
        """The outputs show residual, fine or raw values, and the host's steps give as many elements as they have."""
        names = [output.name for output in self.network.outputs]
        if not names or len(set(names)) != len(names):
            self.fail("outputs", f"found {names}; names must be distinct and there must be one")
        whole = {output.name: output for output in self.network.outputs if not output.part_of}
        for output in self.network.outputs:
            value = self.value(output.name, output.value)
            if output.part_of and (output.part_of not in whole or whole[output.part_of].shape != output.shape):
                self.fail(output.name, f"is a part of {output.part_of!r}, which is no output of shape {output.shape}")
            if value.kind not in ("residual", "fine", "raw"):
                self.fail(output.name, f"shows the {value.kind} value {output.value!r}")
            steps = whole[output.part_of or output.name].steps
            try:
                found = evaluate(steps, np.zeros((value.rows, value.columns))).size
            except (ValueError, IndexError, KeyError, TypeError) as error:
                self.fail(output.name, f"the host's steps do not fit [{value.rows}, {value.columns}] ({error})")
            if int(np.prod(output.shape)) != found:
                self.fail(output.name, f"shape {output.shape} of a value [{value.rows}, {value.columns}]")

    # Values

    def value(self, where: str, name: str) -> _Value:
        if name not in self.values:
            self.fail(where, f"reads {name!r}, which no earlier operation writes")
        return self.values[name]

    def read(self, where: str, name: str, kind: TensorKind) -> _Value:
        value = self.value(where, name)
        if value.kind != kind:
            self.fail(where, f"reads the {value.kind} value {name!r} as {kind}")
        if name in self.overwritten:
            self.fail(where, f"reads residual {name!r}, which {self.overwritten[name]!r} has replaced in place")
        return value

    def overwrite(self, where: str, name: str, output: str, rows: int, columns: int) -> None:
        residual = self.read(where, name, "residual")
        if (residual.rows, residual.columns) != (rows, columns):
            self.fail(where, f"adds [{rows}, {columns}] to the residual [{residual.rows}, {residual.columns}]")
        self.overwritten[name] = output

    def define(self, where: str, name: str, value: _Value) -> None:
        if name in self.values or name == self.network.input.name:
            self.fail(where, f"writes {name!r} a second time")
        self.values[name] = value
        meaning = self.network.formats.get(name)
        if meaning is None:
            self.fail(where, f"value {name!r} has no format")
        if meaning.kind != value.kind:
            self.fail(where, f"format of {name!r} is {meaning.kind}, the value is {value.kind}")
        if value.kind == "routing":
            return
        p = self.precision
        bits = {"residual": p.residual_bits, "fine": p.fine_bits, "raw": p.accumulator_bits}
        expected = (bits.get(value.kind, p.activation_bits), value.signed)
        if (meaning.bits, meaning.signed) != expected:
            self.fail(where, f"format of {name!r}: (bits, signed) {(meaning.bits, meaning.signed)}, value {expected}")
        self.check_real(name, meaning.scale, meaning.offset, value.columns)

    def largest(self, operand: _Value) -> int:
        """Largest magnitude of an operand."""
        bits = self.precision.activation_bits
        return 1 << (bits - 1) if operand.signed else (1 << bits) - 1

    # Arrays

    def check_integers(
        self, where: str, what: str, array: npt.NDArray[Any], shape: tuple[int, ...], low: int, high: int
    ) -> None:
        if array.dtype != np.int64 or array.shape != shape:
            self.fail(where, f"{what} is {array.dtype}{list(array.shape)}, must be int64{list(shape)}")
        if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
            self.fail(where, f"{what} spans {array.min()} … {array.max()}, must be in {low} … {high}")

    def check_real(self, where: str, scale: npt.NDArray[Any], offset: npt.NDArray[Any], channels: int) -> None:
        for what, array in (("scale", scale), ("offset", offset)):
            if array.dtype != np.float64 or array.shape != (channels,) or not np.isfinite(array).all():
                self.fail(where, f"{what} is {array.dtype}{list(array.shape)}, must be finite float64[{channels}]")
        if not (scale > 0).all():
            self.fail(where, "scales must be positive")

    def check_weight(self, where: str, weight: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
        bits = self.precision.weight_bits
        dtype = np.dtype(np.int8 if bits <= 8 else np.int16)
        if weight.dtype != dtype or weight.shape != shape or weight.size == 0:
            self.fail(where, f"weight is {weight.dtype}{list(weight.shape)}, must be {dtype}{list(shape)}")
        limit = (1 << (bits - 1)) - 1
        if int(weight.min()) < -limit:
            self.fail(where, f"weight {weight.min()} is below the symmetric range -{limit} … {limit}")

    def check_scaling(
        self, where: str, scaling: Scaling, shape: tuple[int, ...], low: int = 0, high: int | None = None
    ) -> None:
        p = self.precision
        limit = (1 << (p.accumulator_bits - 1)) - 1
        self.check_integers(where, "bias", scaling.bias, shape, -limit - 1, limit)
        maximum = (1 << p.multiplier_bits) - 1 if high is None else high
        self.check_integers(where, "multiplier", scaling.multiplier, shape, low, maximum)
        self.check_integers(where, "shift", scaling.shift, shape, 0, _MAXIMUM_SHIFT)

    def check_gelu(self, where: str, epilogue: GeluRequantise, shape: tuple[int, ...]) -> None:
        p = self.precision
        maximum = (1 << p.second_multiplier_bits) - 1
        self.check_integers(where, "second multiplier", epilogue.multiplier, shape, 0, maximum)
        if not 0 <= epilogue.shift <= _MAXIMUM_SHIFT:
            self.fail(where, f"second shift {epilogue.shift} is not in 0 … {_MAXIMUM_SHIFT}")
        if not 0 <= epilogue.offset < 1 << p.delta_fraction:
            self.fail(where, f"GELU offset {epilogue.offset} is not in 0 … 2^{p.delta_fraction} - 1")
        if not 0 <= epilogue.form < len(self.network.activations):
            self.fail(where, f"activation {epilogue.form} of {len(self.network.activations)}")

    def check_accumulator(
        self, where: str, weight: npt.NDArray[Any], bias: npt.NDArray[np.int64], largest: int
    ) -> None:
        """`Σ|w| · largest + |bias|` bounds every partial sum of a channel."""
        total = np.abs(weight.astype(np.int32)).sum(axis=-1, dtype=np.int64)
        self.check_bound(where, "accumulator", int((total * largest + np.abs(bias)).max()))

    def check_bound(self, where: str, what: str, magnitude: int) -> None:
        bits = self.precision.accumulator_bits
        if magnitude >= 1 << (bits - 1):
            self.fail(where, f"the {what} can reach {magnitude}, which {bits} bits do not hold; scale the weights down")
