"""Files made to harm: each ends in one clear error, within limits of time and memory, and nothing outside the folder is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moehls import api
from moehls.errors import MoehlsError
from moehls.frontend import read_network
from moehls.project import MANIFEST
from tests.frontend.support import edited, fixture, nodes

Edit = Callable[[onnx.GraphProto], None]


def assert_refused(name: str, folder: Path, edit: Edit, match: str) -> None:
    with pytest.raises(MoehlsError, match=match):
        read_network(edited(name, folder, edit), {})


def test_fuzzed_fixtures_are_read_correctly_or_refused() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.frontend.fuzz", "--cases", "200", "--seed", "7"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "200 cases" in run.stdout
    assert "0 crashed" in run.stdout
    assert " 0 read" not in run.stdout


def outside(tensor: TensorProto, place: str) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=place)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "link.bin", "loop.bin", "none.bin", "", "."])
@pytest.mark.parametrize("where", ["weight", "attribute", "branch"])
def test_external_data_never_leaves_the_folder(tmp_path: Path, place: str, where: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "loop.bin").symlink_to("loop.bin")
    name = "experts_condition-dynamo20" if where == "branch" else "plain-ts17"

    def edit(graph: onnx.GraphProto) -> None:
        if where == "weight":
            outside(next(t for t in graph.initializer if len(t.dims) == 2), place)
        elif where == "attribute":
            constant = next(n for n in nodes(graph, "Constant") if n.attribute[0].t.data_type == TensorProto.FLOAT)
            outside(constant.attribute[0].t, place)
        else:
            branch = nodes(graph, "If")[0].attribute[1].g
            branch.initializer[0].dims[:] = [7, 8]
            outside(branch.initializer[0], place)

    assert_refused(name, folder, edit, "outside|missing|too short|not a valid|cannot be read|not a readable|not a file")


@pytest.mark.parametrize("dims", [[1 << 15, 1 << 14], [1 << 40, 1 << 40], [-1, 8], [0, 8], [1 << 62, 4]])
def test_a_weight_that_claims_another_size_than_its_data(tmp_path: Path, dims: list[int]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        next(t for t in graph.initializer if len(t.dims) == 2).dims[:] = dims

    assert_refused("plain-ts17", tmp_path, edit, "weight|not a valid|not a readable|do not fit|cannot")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["plain-ts17", "experts_dense-dynamo20", "tokens-dynamo20"])
def test_a_weight_without_elements(tmp_path: Path, name: str, axis: int) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        weight = next(t for t in graph.initializer if len(t.dims) == 2)
        dims = [0 if i == axis else size for i, size in enumerate(weight.dims)]
        weight.CopyFrom(numpy_helper.from_array(np.zeros(dims, np.float32), weight.name))

    assert_refused(name, tmp_path, edit, "shapes do not fit|cannot be read|at least 1|has no elements|zero")


@pytest.mark.parametrize("shape", [[1, 2, 0, 12], [1, 2, -4, 12], [1, 2, 1 << 40, 1 << 40], [1, 1 << 31, 8, 12]])
def test_an_image_of_an_impossible_size(tmp_path: Path, shape: list[int]) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        for dim, size in zip(graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size

    assert_refused("plain-ts17", tmp_path, edit, "at least 1|ordinary size|not fixed|not a valid|has shape|larger than")


@pytest.mark.parametrize("k", [5, 1 << 40, 0, -1])
def test_more_or_fewer_experts_chosen_than_there_are(tmp_path: Path, k: int) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        name = nodes(graph, "TopK")[0].input[1]
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.array([k], np.int64), name))

    assert_refused("experts_dense-dynamo20", tmp_path, edit, "TopK|gate|expert|nodes? cannot be read")


@pytest.mark.parametrize("to", [-1, 99, 1 << 40])
def test_a_cast_to_a_type_that_there_is_not(tmp_path: Path, to: int) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        nodes(graph, "Cast")[0].attribute[0].i = to

    assert_refused("experts_mask_assign-dynamo20", tmp_path, edit, "not a valid|cannot be read")


@pytest.mark.parametrize("size", [1 << 20, 1 << 40])
def test_a_one_hot_vector_of_a_million_tasks(tmp_path: Path, size: int) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.input[1].type.tensor_type.shape.dim[1].dim_value = size

    assert_refused("task_vector-ts17", tmp_path, edit, "no ordinary size")


def test_two_values_of_one_name(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.node[4].output[0] = graph.node[2].output[0]

    assert_refused("plain-dynamo20", tmp_path, edit, "not a valid|not a readable|inconsistent")


def test_functions_that_call_each_other(tmp_path: Path) -> None:
    path = edited("plain-dynamo20", tmp_path, lambda graph: None)
    model = onnx.load(str(path))
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for name, other in (("First", "Second"), ("Second", "First")):
        body = [helper.make_node(other, ["x"], ["y"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["x"], ["y"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    norm = nodes(model.graph, "LayerNormalization")[0]
    norm.CopyFrom(helper.make_node("First", norm.input[:1], norm.output, domain="own"))
    onnx.save(model, str(path))
    with pytest.raises(MoehlsError):
        read_network(path, {})


@pytest.mark.parametrize(
    "name", ['a"b', "a\nb", "../../etc/passwd", "int main(){}", "\u202e", "a" * 10000, "%s%n", "<b>"]
)
def test_hostile_names_reach_no_name_of_the_network(tmp_path: Path, name: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        old = graph.input[0].name
        graph.input[0].name = name
        for number, node in enumerate(graph.node):
            node.input[:] = [name if each == old else each for each in node.input]
            node.name = f"{name}{number}"

    network = read_network(edited("experts_loop-dynamo20", tmp_path, edit), {})
    assert network.input.name == name
    assert all(operation.name.isidentifier() for operation in network.operations)


def test_hostile_names_go_the_whole_way_and_reach_no_source(tmp_path: Path) -> None:
    """Names of the input, of outputs and of nodes stay in JSON, in samples and, escaped, on the page."""
    evil = '<script>x</script>"; system("rm");\n../../${HOME}`id`\\'

    def edit(graph: onnx.GraphProto) -> None:
        names = {graph.input[0].name: evil, graph.output[0].name: evil + "out"}
        graph.input[0].name, graph.output[0].name = evil, evil + "out"
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
            node.name = evil + node.name

    settings = {"token_parallel": "2", "block": "8"}
    paths = {"evil": edited("plain-ts17", tmp_path, edit), "plain": fixture("plain-ts17")}
    folders = {name: api.compile(path, tmp_path / name, settings=settings).project for name, path in paths.items()}
    files = {name: {str(f.relative_to(at)) for f in at.rglob("*") if f.is_file()} for name, at in folders.items()}
    assert files["evil"] == files["plain"]
    for file in sorted(files["plain"]):
        content = (folders["evil"] / file).read_bytes()
        if file.startswith(("src/", "include/", "scripts/", "host/", "csim/")) or file == "Makefile":
            assert content == (folders["plain"] / file).read_bytes(), file
        elif file.endswith(".html"):
            assert b"<script>x" not in content
    manifest = json.loads((folders["evil"] / MANIFEST).read_text())
    assert manifest["outputs"][0]["name"] == evil + "out"
    assert api.verify(folders["evil"], ["reference"]).passed
    assert b"<script>x" not in api.report(folders["evil"]).read_bytes()
