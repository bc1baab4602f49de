"""What cannot be mapped is refused by name, with what is supported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest

from moehls.errors import MoehlsError
from moehls.network.operations import (
    Activation,
    Add,
    Attention,
    Embed,
    Experts,
    LayerNorm,
    Linear,
    Network,
    NetworkOutput,
    Operation,
    Route,
    SelectTokens,
)
from moehls.quantize.steps import (
    ExpertsStep,
    GeluStep,
    NormStep,
    OutputStep,
    ResidualStep,
    RowsStep,
)
from moehls.quantize.structure import structure, unmapped
from tests.quantize.support import Draw, float_network

Change = Callable[[Operation], list[Operation]]


def changed(name: str, change: Change, outputs: tuple[NetworkOutput, ...] | None = None) -> Network:
    """The small network with the operation `name` replaced."""
    network = float_network()
    operations = tuple(new for o in network.operations for new in (change(o) if o.name == name else [o]))
    return dataclasses.replace(network, operations=operations, outputs=outputs or network.outputs)


def test_steps_join_activations_and_adds_to_the_operation_before() -> None:
    found = structure(float_network())
    kinds = [type(step).__name__ for step in found.steps]
    assert kinds[:5] == ["Embed", "NormStep", *["AttentionInputStep"] * 3]
    assert [kinds.count(k) for k in ("GeluStep", "ResidualStep", "ExpertsStep", "Route", "OutputStep")] == [
        1,
        3,
        1,
        1,
        1,
    ]
    outputs = [s.output for s in found.steps if isinstance(s, ResidualStep | ExpertsStep)]
    assert outputs == ["l0.x1", "l0.x2", "l1.x1", "l1.x2"]
    assert found.residuals == {"x", *outputs}
    assert [s.gelu.name for s in found.steps if isinstance(s, GeluStep)] == ["l0.gelu"]
    assert [s.linear.name for s in found.steps if isinstance(s, OutputStep)] == ["head"]


def test_a_selection_after_the_norm_narrows_the_norm() -> None:
    last = [s for s in structure(float_network()).steps if isinstance(s, NormStep)][-1]
    assert (last.source, last.start, last.stop, last.output) == ("l1.x2", 0, 1, "first")


def test_a_selection_before_the_norm_narrows_the_norm() -> None:
    network = float_network()
    tail: tuple[Operation, ...] = (
        SelectTokens("some", "l1.x2", "some", 1, 5),
        SelectTokens("class", "some", "one", 2, 3),
        Draw(0).norm("norm", "one", "first"),
        network.operations[-1],
    )
    found = structure(dataclasses.replace(network, operations=network.operations[:-3] + tail))
    last = [s for s in found.steps if isinstance(s, NormStep)][-1]
    assert (last.source, last.start, last.stop, last.output) == ("l1.x2", 3, 4, "first")


def test_both_the_whole_norm_and_a_selection() -> None:
    """A norm that is an output as well is computed for all tokens and again for the head's."""
    shown = NetworkOutput("all", "normed", (1, 25, 32))
    network = float_network()
    found = structure(dataclasses.replace(network, outputs=(*network.outputs, shown)))
    norms = [s for s in found.steps if isinstance(s, NormStep)][-2:]
    assert [(s.start, s.stop, s.output) for s in norms] == [(0, None, "normed"), (0, 1, "first")]


def test_a_selection_that_a_head_reads_is_a_step() -> None:
    network = float_network()
    tail = (SelectTokens("class", "l1.x2", "one", 2, 3), edited(network.operations[-1], input="one"))
    *_, rows, head = structure(
        dataclasses.replace(network, operations=network.operations[:-3] + tail, outputs=network.outputs[:1])
    ).steps
    assert isinstance(rows, RowsStep)
    assert rows.selection.name == "class"
    assert isinstance(head, OutputStep)


def test_heads_that_are_added_are_outputs_with_the_sum_of_them() -> None:
    """Two heads averaged, and one of them an output of its own."""
    network = float_network()
    head = network.operations[-1]
    tail = (edited(head, name="other", output="other"), Add("sum", head.output, "other", "sum"))
    shown = (
        dataclasses.replace(network.outputs[0], value="sum"),
        NetworkOutput("one", "other", network.outputs[0].shape),
    )
    found = structure(dataclasses.replace(network, operations=network.operations + tail, outputs=shown))
    assert found.sums == {"sum": (head.output, "other")}
    assert [step.linear.name for step in found.steps if isinstance(step, OutputStep)] == ["head", "other"]


def test_all_that_cannot_be_mapped_is_listed_at_once() -> None:
    assert unmapped(float_network()) == ()
    network = changed("l0.fc1", twice)
    operations = network.operations
    attention = next(o for o in operations if isinstance(o, Attention))
    operations = tuple(shared(o)[0] if o is attention else o for o in operations)
    found = unmapped(dataclasses.replace(network, operations=operations))
    assert [text.split()[0] for text in found] == ["l0.q", "l0.k", "l0.fc1"]


def test_activations_are_numbered_in_the_order_of_their_definition() -> None:
    assert structure(changed("l0.gelu", lambda o: [edited(o, form="tanh")])).activations == ("exact", "tanh")
    assert structure(changed("l1.experts", lambda o: [edited(o, form="relu")])).activations == ("exact", "relu")


def edited(operation: Operation, **changes: Any) -> Operation:
    return cast(Operation, dataclasses.replace(cast(Any, operation), **changes))


def with_input(name: str) -> Change:
    return lambda o: [edited(o, input=name)]


def twice(o: Operation) -> list[Operation]:
    assert isinstance(o, Linear)
    return [o, Activation("again", o.output, "again", "exact")]


def squared(o: Operation) -> list[Operation]:
    assert isinstance(o, Activation)
    return [Activation("first", o.input, "once", "exact"), Activation("second", "once", o.output, "exact")]


def shared(o: Operation) -> list[Operation]:
    assert isinstance(o, Attention)
    return [dataclasses.replace(o, key=o.query)]


REFUSED: dict[str, tuple[str, Change, str]] = {
    "a linear on the stream": ("l0.fc1", with_input("l0.x1"), r"l0\.fc1 \(Linear\).*reads 'l0\.x1', the result of Add"),
    "a norm of an attention": ("l0.norm2", with_input("l0.c"), r"l0\.norm2 \(LayerNorm\).*Swin V2"),
    "two readers of a linear": ("l0.fc1", twice, r"l0\.fc1 \(Linear\).*2 operations read its output"),
    "a GELU of a GELU": ("l0.gelu", squared, r"(first|second) \(Activation\)"),
    "query and key from one linear": (
        "l0.attention",
        shared,
        r"l0\.q \(Linear\).*more than one of query, key and value",
    ),
    "a router on an attention": ("l1.gate", with_input("l1.c"), r"l1\.gate \(Route\).*nor the residual stream"),
    "a selection of keys": (
        "l0.attention",
        lambda o: [SelectTokens("part", "l0.k", "part", 0, 4), edited(o, key="part")],
        r"l0\.k \(Linear\).*goes to part \(SelectTokens\)",
    ),
    "a sum of two branches": (
        "l0.add1",
        lambda o: [Add("sum", "l0.p", "l0.p", "sum"), edited(o, right="sum")],
        r"sum|l0\.projection",
    ),
}


@pytest.mark.parametrize(("name", "change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(name: str, change: Change, words: str) -> None:
    with pytest.raises(MoehlsError, match=words) as caught:
        structure(changed(name, change))
    assert "supported:" in str(caught.value)


def test_an_output_in_the_middle_is_refused() -> None:
    shown = (*float_network().outputs, NetworkOutput("context", "l0.c", (1, 25, 32)))
    with pytest.raises(MoehlsError, match=r"output 'context' shows the result of Attention.*supported"):
        structure(changed("", lambda o: [o], shown))


def test_every_operation_has_a_place() -> None:
    """The small network holds every operation there is, so the tests above speak of all."""
    kinds = {type(o) for o in float_network().operations}
    assert kinds == {Embed, LayerNorm, Linear, Activation, Add, Attention, Route, Experts, SelectTokens}
