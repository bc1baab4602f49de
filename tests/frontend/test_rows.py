"""Experts that write their rows one after the other: every row once, and every row by the right expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moehls.errors import MoehlsError
from moehls.frontend import read_network
from moehls.network.operations import Experts, Route
from tests.frontend.support import edited, fixture, nodes, refusals


def scatters(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return nodes(graph, "ScatterND")


@pytest.mark.parametrize("name", ["experts_repeat-dynamo20", "gate_one_assign-dynamo20"])
def test_rows_that_an_expert_writes_over_anothers_are_refused(name: str, tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        first, second = scatters(graph)[:2]
        second.input[1], second.input[2] = first.input[1], first.input[2]

    assert refusals(name, tmp_path, edit)


def test_rows_that_no_expert_writes_are_refused(tmp_path: Path) -> None:
    """The tensor before them holds whatever lay in memory."""

    def edit(graph: onnx.GraphProto) -> None:
        last = scatters(graph)[-1]
        for node in graph.node:
            node.input[:] = [last.input[0] if name == last.output[0] else name for name in node.input]

    found = refusals("experts_repeat-dynamo20", tmp_path, edit)
    assert any("outputs of experts at some tokens" in refusal.reason for refusal in found)


@pytest.mark.parametrize("name", ["experts_repeat-dynamo20", "gate_one_assign-dynamo20"])
def test_rows_of_experts_exchanged_are_refused(name: str, tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        first, second = scatters(graph)[:2]
        first.input[2], second.input[2] = second.input[2], first.input[2]

    with pytest.raises(MoehlsError, match="other tokens than it got"):
        read_network(edited(name, tmp_path, edit), {})


def test_the_only_expert_is_weighed_by_its_probability() -> None:
    network = read_network(fixture("gate_one_assign-dynamo20"), {})
    (route,) = (o for o in network.operations if isinstance(o, Route))
    assert (route.k, route.normalisation, route.score) == (1, "all", "softmax")


@pytest.mark.parametrize("name", ["weighed_inputs_loop-ts17", "weighed_inputs_gather-ts17"])
@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_every_style_of_weighed_inputs_is_the_same_network(name: str, exporter: str) -> None:
    plain, found = (
        next(o for o in read_network(fixture(n), {}).operations if isinstance(o, Experts))
        for n in ("weighed_inputs_index_add-dynamo20", name.replace("ts17", exporter))
    )
    assert found.weigh_inputs
    np.testing.assert_array_equal(found.first_weight, plain.first_weight)
    np.testing.assert_array_equal(found.second_weight, plain.second_weight)


def test_a_number_of_rows_that_the_export_baked_in_is_refused(tmp_path: Path) -> None:
    """TorchScript writes the example's number of rows into a Reshape before the scatter."""

    def edit(graph: onnx.GraphProto) -> None:
        flat = next(node for node in graph.node if node.output[0] == scatters(graph)[0].input[2])
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([16], np.int64), "sixteen"))
        flat.input[1] = "sixteen"

    refusal = refusals("gate_one_assign-dynamo20", tmp_path, edit)[0]
    assert "of the example input" in refusal.reason
    assert "dynamo" in refusal.remedy
