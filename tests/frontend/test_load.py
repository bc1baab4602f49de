"""Damaged files, missing weights and dimensions that are not fixed end in one clear message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend import inspect_model, read_network
from moehls.network.operations import Attention
from tests.frontend.support import edited, fixture


def assert_refused(path: Path, match: str, **sizes: str) -> None:
    with pytest.raises(MoehlsError, match=match):
        read_network(path, sizes)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert_refused(tmp_path / "none.onnx", "no such file")


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x00" * 64, bytes(range(256)) * 4])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage.onnx"
    path.write_bytes(content)
    assert_refused(path, "not a readable ONNX model|not a valid ONNX model|holds no ONNX graph")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.999))
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, part: float) -> None:
    content = fixture("experts_dense-ts17").read_bytes()
    path = tmp_path / "part.onnx"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(MoehlsError):
        inspect_model(path, {})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_network_or_a_clear_error(tmp_path: Path, place: float, value: int) -> None:
    content = bytearray(fixture("experts_loop-dynamo20").read_bytes())
    content[int(place * len(content))] = value
    path = tmp_path / "mutated.onnx"
    path.write_bytes(content)
    try:
        inspection = inspect_model(path, {})
        whole = (inspection.summary is None) == bool(inspection.unsupported)
    except MoehlsError as error:
        whole = bool(str(error).strip())
    assert whole


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    def spoil(graph: onnx.GraphProto) -> None:
        tensor = next(t for t in graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2)
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0] = bad
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    assert_refused(edited("plain-ts17", tmp_path, spoil), "NaN or infinity")


def test_a_mask_of_zeros_and_minus_infinity_is_no_damaged_weight(tmp_path: Path) -> None:
    def hide(graph: onnx.GraphProto) -> None:
        mask = np.zeros((7, 7), np.float32)
        mask[0, 1] = -np.inf
        graph.initializer.append(numpy_helper.from_array(mask, "mask"))
        softmax = next(node for node in graph.node if node.op_type == "Softmax")
        add = helper.make_node("Add", [softmax.input[0], "mask"], ["masked"], name="hides")
        graph.node.insert(list(graph.node).index(softmax), add)
        softmax.input[0] = "masked"

    network = read_network(edited("plain-ts17", tmp_path, hide), {})
    assert [o.bias is not None for o in network.operations if isinstance(o, Attention)] == [True]


def external(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(str(fixture("plain-ts17"))),
        str(path),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def test_external_data_is_read(tmp_path: Path) -> None:
    assert read_network(external(tmp_path), {}).operations


def test_missing_and_short_external_data(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(path, "too short")
    weights.unlink()
    assert_refused(path, "missing")


def test_external_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = external(folder)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    assert_refused(path, "outside the model's folder")


def named(graph: onnx.GraphProto, *places: int) -> None:
    for place in places:
        graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"axis{place}"


def test_named_dimensions_other_than_the_batch_must_be_set(tmp_path: Path) -> None:
    path = edited("plain-ts17", tmp_path, lambda graph: named(graph, 2, 3))
    assert_refused(path, "axis2, axis3 not fixed")
    assert read_network(path, {"axis2": "8", "axis3": "12"}).input.shape == (2, 8, 12)


def test_settings_that_name_nothing_or_no_number(tmp_path: Path) -> None:
    path = edited("plain-ts17", tmp_path, lambda graph: named(graph, 2))
    assert_refused(path, "named dimensions are: axis2", height="8")
    assert_refused(path, "whole number", axis2="-8")


def test_a_fixed_batch_above_one(tmp_path: Path) -> None:
    def widen(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8

    assert_refused(edited("plain-ts17", tmp_path, widen), "batch of 8")


def test_an_input_that_is_neither_image_nor_task(tmp_path: Path) -> None:
    def add(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [7, 7]))

    assert_refused(edited("plain-ts17", tmp_path, add), "'mask'.*neither")


def test_a_cycle(tmp_path: Path) -> None:
    def close(graph: onnx.GraphProto) -> None:
        graph.node[1].input[0] = graph.node[-1].output[0]

    with pytest.raises(MoehlsError):
        read_network(edited("plain-dynamo20", tmp_path, close), {})


def test_a_claim_of_a_huge_tensor(tmp_path: Path) -> None:
    def claim(graph: onnx.GraphProto) -> None:
        shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "huge")
        graph.initializer.append(shape)
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["wide"], name="claim"))
        graph.node.append(helper.make_node("Add", ["wide", graph.output[0].name], ["more"], name="use"))
        graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1 << 20, 1 << 20]))

    assert_refused(edited("plain-ts17", tmp_path, claim), "'claim'.*ordinary size")
