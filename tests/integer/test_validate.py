"""A valid network passes `check`; each broken invariant is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntegerAttention,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerRoute,
    Scaling,
    ScoreBias,
)
from moehls.integer.precision import PRECISIONS, W8A8
from moehls.integer.validate import check
from tests.support.random_networks import Sizes, random_integer_network

NETWORK = random_integer_network(3, W8A8, Sizes(tokens=5, width=12, heads=2, mlp=9, hidden=7))


def changed(
    kind: type[IntegerOperation], where: Callable[[Any], bool] = lambda _: True, **fields: Any
) -> IntegerNetwork:
    """NETWORK with fields of the first operation of `kind` replaced; a callable field maps the old value."""
    operations = list(NETWORK.operations)
    index = next(i for i, o in enumerate(operations) if isinstance(o, kind) and where(o))
    old = operations[index]
    new = {name: value(getattr(old, name)) if callable(value) else value for name, value in fields.items()}
    operations[index] = replace(old, **new)
    return replace(NETWORK, operations=tuple(operations))


def first_set_to(value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        copy = array.copy()
        copy.flat[0] = value
        return copy

    return change


def scaling(**fields: Callable[[np.ndarray], np.ndarray]) -> Callable[[Scaling], Scaling]:
    return lambda old: replace(old, **{name: change(getattr(old, name)) for name, change in fields.items()})


def score_bias(**fields: Callable[[Any], Any]) -> ScoreBias:
    """Of two heads and 5 tokens, one key hidden."""
    entries = np.full((2, 5, 5), 32767, np.int16)
    entries[1, 2, 3] = -32768
    old = ScoreBias(entries, np.zeros(2, np.int64))
    return replace(old, **{name: change(getattr(old, name)) for name, change in fields.items()})


def is_gelu(operation: IntegerLinear) -> bool:
    return isinstance(operation.epilogue, GeluRequantise)


def is_add(operation: IntegerLinear) -> bool:
    return isinstance(operation.epilogue, AddResidual)


def format_of(name: str, **fields: Any) -> IntegerNetwork:
    return replace(NETWORK, formats=NETWORK.formats | {name: replace(NETWORK.formats[name], **fields)})


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(head=0, tasks=1, prefix=0), Sizes(experts=0), Sizes(prefix=2)])
def test_valid_networks_pass(precision: Any, sizes: Sizes) -> None:
    check(random_integer_network(0, precision, sizes))


BROKEN: dict[str, tuple[Callable[[], IntegerNetwork], str]] = {
    "weight dtype": (lambda: changed(IntegerLinear, weight=lambda w: w.astype(np.int16)), "weight is int16"),
    "weight -128": (lambda: changed(IntegerLinear, weight=first_set_to(-128)), "below the symmetric range"),
    "weight shape": (lambda: changed(IntegerLinear, weight=lambda w: w[:, 1:]), "weight is int8"),
    "bias dtype": (
        lambda: changed(IntegerLinear, scaling=scaling(bias=lambda b: b.astype(np.int32))),
        "bias is int32",
    ),
    "bias overflow": (
        lambda: changed(IntegerLinear, scaling=scaling(bias=first_set_to(2**31 - 1))),
        "the accumulator can reach",
    ),
    "multiplier": (lambda: changed(IntegerLinear, scaling=scaling(multiplier=first_set_to(2**16))), "multiplier spans"),
    "negative multiplier": (
        lambda: changed(IntegerLinear, scaling=scaling(multiplier=first_set_to(-1))),
        "multiplier spans",
    ),
    "gain": (lambda: changed(IntegerNorm, scaling=scaling(multiplier=first_set_to(2**15))), "multiplier spans"),
    "shift": (lambda: changed(IntegerLinear, scaling=scaling(shift=first_set_to(64))), "shift spans"),
    "epsilon": (lambda: changed(IntegerNorm, epsilon=-1), "epsilon -1"),
    "token range": (lambda: changed(IntegerNorm, stop=6), "tokens 0 to 6 of 5"),
    "initial": (lambda: changed(IntegerEmbed, initial=first_set_to(2**15)), "initial spans"),
    "prefix": (lambda: changed(IntegerEmbed, prefix=2), "leading tokens"),
    "second multiplier": (
        lambda: changed(
            IntegerLinear, is_gelu, epilogue=lambda e: replace(e, multiplier=first_set_to(256)(e.multiplier))
        ),
        "second multiplier spans",
    ),
    "second shift": (lambda: changed(IntegerLinear, is_gelu, epilogue=lambda e: replace(e, shift=64)), "second shift"),
    "offset": (lambda: changed(IntegerLinear, is_gelu, epilogue=lambda e: replace(e, offset=-1)), "GELU offset"),
    "heads": (lambda: changed(IntegerAttention, heads=5), "5 heads do not divide"),
    "score multiplier": (lambda: changed(IntegerAttention, score_multiplier=first_set_to(-1)), "score_multiplier"),
    "score bias": (
        lambda: changed(IntegerAttention, bias=score_bias(entries=lambda e: e[:, :, 1:])),
        "bias is int16[2, 5, 4], must be int16[2, 5, 5]",
    ),
    "score bias type": (lambda: changed(IntegerAttention, bias=score_bias(entries=np.int64)), "bias is int64"),
    "score bias shift": (lambda: changed(IntegerAttention, bias=score_bias(shift=lambda s: s + 32)), "bias shift"),
    "scores with bias": (
        lambda: changed(IntegerAttention, bias=score_bias(shift=lambda s: s + 16)),
        "scores with bias can reach 2147516416",
    ),
    "context bias": (
        lambda: changed(IntegerAttention, scaling=scaling(bias=first_set_to(2**31 - 1))),
        "context with bias",
    ),
    "k": (lambda: changed(IntegerRoute, k=6), "k = 6 of 5"),
    "tasks": (lambda: changed(IntegerRoute, weight=lambda w: w[:1]), "weight is int8"),
    "router bias": (lambda: changed(IntegerRoute, bias=first_set_to(2**31 - 1)), "the accumulator can reach"),
    "router reads operand": (
        lambda: changed(IntegerRoute, input="layer1.norm2.operand"),
        "reads the operand value",
    ),
    "expert hidden": (lambda: changed(IntegerExperts, first_weight=lambda w: w[:, 1:]), "int64"),
    "unknown value": (lambda: changed(IntegerLinear, input="nowhere"), "no earlier operation writes"),
    "written twice": (lambda: changed(IntegerLinear, output="embed.tokens"), "a second time"),
    "stale residual": (
        lambda: changed(IntegerNorm, lambda o: o.input == "layer0.attended", input="embed.tokens"),
        "has replaced in place",
    ),
    "residual twice": (
        lambda: changed(IntegerLinear, lambda o: o.name == "layer0.second", epilogue=AddResidual("embed.tokens")),
        "has replaced in place",
    ),
    "no format": (lambda: replace(NETWORK, formats={}), "has no format"),
    "format kind": (lambda: format_of("embed.tokens", kind="fine"), "the value is residual"),
    "format sign": (lambda: format_of("layer0.hidden", signed=True), "(bits, signed)"),
    "format scale": (lambda: format_of("embed.tokens", scale=np.zeros(12)), "positive"),
    "format channels": (lambda: format_of("embed.tokens", offset=np.zeros(3)), "offset is float64[3]"),
    "gelu form": (lambda: replace(NETWORK, activations=("fast",)), "activations"),  # type: ignore[arg-type]
    "task input": (lambda: replace(NETWORK, task_input=None), "2 tasks"),
    "patch": (lambda: replace(NETWORK, input=replace(NETWORK.input, patch=(4, 5))), "whole number of patches"),
    "output shape": (
        lambda: replace(NETWORK, outputs=(replace(NETWORK.outputs[0], shape=(1, 2)),)),
        "shape (1, 2) of a value",
    ),
    "output kind": (
        lambda: replace(NETWORK, outputs=(replace(NETWORK.outputs[0], value="layer0.hidden"),)),
        "shows the operand value",
    ),
    "no output": (lambda: replace(NETWORK, outputs=()), "outputs"),
    "no embedding": (lambda: replace(NETWORK, operations=NETWORK.operations[1:]), "must be the patch embedding"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_invariant_is_named(name: str) -> None:
    make, message = BROKEN[name]
    with pytest.raises(MoehlsError) as caught:
        check(make())
    assert message in str(caught.value)


GATED = random_integer_network(1, W8A8, Sizes(tokens=5, gated=True, centred=False))


def gated(kind: type, **fields: Any) -> IntegerNetwork:
    """GATED with fields of its operations of a kind changed, of linears the gated ones."""

    def change(o: Any) -> Any:
        wanted = isinstance(o, kind) and (kind is not IntegerLinear or isinstance(o.epilogue, GatedRequantise))
        return replace(o, **{k: f(getattr(o, k)) for k, f in fields.items()}) if wanted else o

    return replace(GATED, operations=tuple(map(change, GATED.operations)))


BROKEN_GATES: dict[str, tuple[Callable[[], IntegerNetwork], str]] = {
    "multiplies an unsigned operand": (
        lambda: gated(IntegerLinear, epilogue=lambda e: replace(e, up="layer0.norm2.operand")),
        "must be signed and of one shape",
    ),
    "multiplies what is not there": (
        lambda: gated(IntegerLinear, epilogue=lambda e: replace(e, up="nothing")),
        "no earlier operation writes",
    ),
    "offset": (lambda: gated(IntegerExperts, gelu=lambda g: replace(g, offset=1)), "offset 0"),
    "no scaling": (lambda: gated(IntegerExperts, up_scaling=lambda s: None), "need an up_scaling"),
    "up overflow": (
        lambda: gated(IntegerExperts, up_scaling=lambda s: replace(s, bias=s.bias * 0 + 2**31 - 1)),
        "the accumulator can reach",
    ),
    "up shape": (lambda: gated(IntegerExperts, up_weight=lambda w: w[:, 1:]), "weight is int8"),
    "more experts than columns": (lambda: gated(IntegerRoute, weight=lambda w: w[:, :1], k=lambda k: 1), "int64"),
}


@pytest.mark.parametrize("name", BROKEN_GATES)
def test_broken_invariant_of_gated_layers_is_named(name: str) -> None:
    check(GATED)
    make, message = BROKEN_GATES[name]
    with pytest.raises(MoehlsError) as caught:
        check(make())
    assert message in str(caught.value)


@pytest.mark.parametrize(("bits", "message"), [(17, "scores can reach 98304"), (18, "context can reach 163200")])
def test_attention_that_could_overflow(bits: int, message: str) -> None:
    """6 channels a head and 5 tokens: products of 8-bit values summed, with all else zero."""

    def silent(operation: Any) -> Any:
        zeros = {"scaling": scaling(bias=np.zeros_like)(operation.scaling)}
        return replace(operation, **zeros, **({"weight": operation.weight * 0} if hasattr(operation, "weight") else {}))

    until = next(i for i, o in enumerate(NETWORK.operations) if isinstance(o, IntegerAttention))
    operations = (*map(silent, NETWORK.operations[:until]), *NETWORK.operations[until:])
    with pytest.raises(MoehlsError, match=message):
        check(replace(NETWORK, operations=operations, precision=replace(W8A8, accumulator_bits=bits)))
