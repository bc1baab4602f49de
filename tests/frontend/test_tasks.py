"""Tasks as several outputs and as several files: one network with the backbone once, or the first difference named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from moehls import api
from moehls.errors import MoehlsError
from moehls.frontend import inspect_tasks, read_network, read_tasks
from moehls.frontend.join import DifferentBackbones, join, unrolled_tasks
from moehls.network.interpreter import outputs, run
from moehls.network.operations import Experts, LayerNorm, Linear, Network, Operation, Route
from moehls.project import open_project
from tests.frontend.support import edited, fixture

SEPARATE = [fixture("task_only0-ts17"), fixture("task_only1-dynamo20")]
"""One task each, by other exporters and with the experts in other styles."""


def of(network: Network, kind: type[Operation]) -> list[Operation]:
    return [operation for operation in network.operations if isinstance(operation, kind)]


def computed(network: Network, task: int) -> list[np.ndarray]:
    images = np.random.default_rng(3).standard_normal((2, *network.input.shape)).astype(np.float32)
    return list(outputs(network, run(network, images, task)).values())


@pytest.mark.parametrize("name", ["task_outputs-ts17", "task_outputs-dynamo20", "separate"])
def test_tasks_of_one_model_become_one_network(name: str) -> None:
    joint = read_tasks(SEPARATE if name == "separate" else [fixture(name)], {})
    assert (joint.tasks, joint.task_input) == (2, "task")
    assert len(of(joint, Experts)) == len(of(joint, Route)) == 1
    (route,) = of(joint, Route)
    assert isinstance(route, Route)
    assert route.weight.shape == (2, 4, 8)
    assert (route.weight[0] != route.weight[1]).all()
    for task, path in enumerate(SEPARATE):
        (alone,) = computed(read_network(path, {}), 0)
        np.testing.assert_array_equal(computed(joint, task)[task], alone)


def test_a_gate_of_all_tasks_beside_a_gate_a_task() -> None:
    for exporter in ("ts17", "dynamo20"):
        network = read_network(fixture(f"task_some-{exporter}"), {})
        first, second = of(network, Route)
        assert isinstance(first, Route) and isinstance(second, Route)
        assert first.weight.shape == second.weight.shape == (2, 4, 8)
        np.testing.assert_array_equal(first.weight[0], first.weight[1])
        assert (second.weight[0] != second.weight[1]).all()


def test_outputs_of_one_task_and_of_tapped_layers_are_no_tasks() -> None:
    assert read_network(fixture("heads_two-ts17"), {}).tasks == 1
    network = read_network(fixture("task_some-ts17"), {})
    early = replace(network.outputs[0], name="early", value=network.operations[0].output)
    tapped = replace(network, outputs=(early, *network.outputs), tasks=1, task_input=None)
    assert unrolled_tasks(tapped) is tapped


def test_tasks_with_a_task_input_are_counted_on() -> None:
    network = read_network(fixture("task_stacked-ts17"), {})
    joint = join([network, network, read_network(fixture("task_only0-ts17"), {})], ["a", "b", "c"])
    assert joint.tasks == 5
    (route,) = of(joint, Route)
    assert isinstance(route, Route)
    np.testing.assert_array_equal(route.weight[:2], route.weight[2:4])
    assert len(of(joint, Experts)) == 1


def test_outputs_of_one_name_get_the_name_of_their_file(tmp_path: Path) -> None:
    paths = []
    for number, source in enumerate(SEPARATE):
        model = onnx.load(str(source))
        old = model.graph.output[0].name
        for node in model.graph.node:
            node.output[:] = ["scores" if name == old else name for name in node.output]
        model.graph.output[0].name = "scores"
        paths.append(tmp_path / f"part{number}.onnx")
        onnx.save(model, str(paths[-1]))
    assert [o.name for o in read_tasks(paths, {}).outputs] == ["part0.scores", "part1.scores"]
    assert [o.name for o in read_tasks([paths[0], paths[0]], {}).outputs] == ["scores"]


@pytest.mark.parametrize("name", ["blocks.0.mlp.first.bias", "blocks.1.sparse.experts.w2", "embed.conv.weight"])
def test_the_first_weight_that_differs_is_named(tmp_path: Path, name: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[0] += np.float32(0.5)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    path = edited("task_only1-dynamo20", tmp_path, edit)
    with pytest.raises(MoehlsError, match="not tasks of one model") as error:
        read_tasks([SEPARATE[0], path], {})
    assert repr(name) in str(error.value)
    assert "the first to differ" in str(error.value)


def test_models_of_other_structure_are_no_tasks() -> None:
    plain, other = read_network(fixture("plain-ts17"), {}), read_network(SEPARATE[0], {})
    with pytest.raises(DifferentBackbones, match="not tasks"):
        join([plain, other], ["a", "b"])
    network = read_network(SEPARATE[1], {})
    wider = tuple(replace(o, k=1) if isinstance(o, Route) else o for o in network.operations)
    with pytest.raises(DifferentBackbones, match=r"k of Route .* is 2 and 1"):
        join([other, replace(network, operations=wider)], ["a", "b"])
    with pytest.raises(DifferentBackbones, match="takes images"):
        join([network, replace(network, input=replace(network.input, shape=(2, 4, 12)))], ["a", "b"])


def test_heads_and_last_norms_may_differ() -> None:
    network = read_network(SEPARATE[0], {})

    def changed(operation: Operation) -> Operation:
        if operation in network.operations[-3:] and isinstance(operation, (LayerNorm, Linear)):
            return replace(operation, weight=operation.weight * np.float32(2))
        return operation

    other = replace(network, operations=tuple(map(changed, network.operations)))
    joint = join([network, other], ["a", "b"])
    assert len(of(joint, LayerNorm)) == len(of(network, LayerNorm)) + 1
    np.testing.assert_array_equal(computed(joint, 1)[1], computed(other, 0)[0])


def test_nodes_that_are_not_read_are_listed_for_all_files(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "Softmax").op_type = "Hardmax"

    path = edited("task_only1-dynamo20", tmp_path, edit)
    found = inspect_tasks([SEPARATE[0], path, path], {})
    assert found.summary is None
    assert [refusal.op for refusal in found.unsupported] == ["Hardmax", "Hardmax"]


@pytest.mark.parametrize("files", [[fixture("task_outputs-dynamo20")], SEPARATE], ids=["outputs", "files"])
def test_joined_tasks_go_the_whole_way(tmp_path: Path, files: list[Path]) -> None:
    """Compile, verify in csim for both tasks, run, report."""
    api.compile(files, tmp_path / "project")
    verified = api.verify(tmp_path / "project", ["reference", "csim"])
    assert verified.passed
    project = open_project(tmp_path / "project")
    assert (project.manifest["tasks"], project.manifest["task_input"]) == (2, "task")
    images = np.random.default_rng(0).standard_normal((3, *project.network.input.shape)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{project.network.input.name: images, "task": np.array([0, 1, 1])})
    assert api.run(tmp_path / "project", tmp_path / "in.npz", tmp_path / "out.npz", level="csim") == 3
    with np.load(tmp_path / "out.npz") as found:
        assert sorted(array.shape for array in found.values()) == [(3, 3), (3, 5)]
    assert api.report(tmp_path / "project").is_file()
