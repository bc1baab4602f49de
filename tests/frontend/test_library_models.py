"""Graphs of timm and transformers, and models of tokens: what is particular to each; that all are read is in `test_forms.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moehls import api
from moehls.errors import MoehlsError
from moehls.frontend import read_network
from moehls.network.operations import Add, Embed, Linear, MeanTokens, Network
from moehls.project import open_project
from moehls.samples import read_samples
from tests.frontend.support import edited, fixture, names
from tests.frontend.test_forms import assert_same, operations

LIBRARY = [name for name in names() if name.startswith(("timm", "transformers"))]


@pytest.mark.parametrize(
    ("name", "leading"),
    [
        ("timm_vit", 1),
        ("timm_deit_distilled", 2),
        ("timm_registers", 5),
        ("timm_no_class_token", 0),
        ("transformers_dinov2", 1),
        ("transformers_dinov2_registers", 5),
        ("transformers_deit_teacher", 2),
    ],
)
def test_leading_tokens(name: str, leading: int) -> None:
    embed = operations(read_network(fixture(f"{name}-dynamo20"), {}), Embed)[0]
    assert embed.prefix.shape == (leading, 16)
    assert embed.position.shape == (16 + leading, 16)


def test_register_tokens_stand_between_the_class_token_and_the_patches() -> None:
    """transformers slices the class token off after its position is added, and puts the registers between."""
    path = fixture("transformers_dinov2_registers-dynamo20")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
    embed = operations(read_network(path, {}), Embed)[0]
    (registers,) = (weight for weight in weights if weight.shape == (1, 4, 16))
    rows = embed.prefix + embed.position[:5]
    np.testing.assert_array_equal(rows[1:], registers.reshape(4, 16))


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_a_head_of_the_class_token_beside_the_mean_is_a_sum_of_two(exporter: str) -> None:
    """DINOv2's classifier: one matrix on the class token and the mean of the patches, side by side."""
    path = fixture(f"transformers_dinov2_classes-{exporter}")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer]
    (whole,) = (w if w.shape[0] == 5 else w.T for w in weights if set(w.shape) == {5, 32})
    network = read_network(path, {})
    *_, first, second, add = network.operations
    assert isinstance(first, Linear)
    assert isinstance(second, Linear)
    assert isinstance(add, Add)
    np.testing.assert_array_equal(np.concatenate([first.weight, second.weight], axis=1), whole)
    (mean,) = operations(network, MeanTokens)
    assert mean.stop - mean.start == 16
    assert (first.bias.any(), second.bias.any()) == (True, False)


def test_a_bias_behind_the_sum_goes_to_a_linear(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        gemm = next(node for node in graph.node if node.op_type == "Gemm")
        bias = gemm.input.pop()
        (output,) = gemm.output
        gemm.output[0] = "unbiased"
        graph.node.append(onnx.helper.make_node("Add", ["unbiased", bias], [output]))

    name = "transformers_dinov2_classes-dynamo20"
    assert_same(read_network(edited(name, tmp_path, edit), {}), read_network(fixture(name), {}))


def test_interpolated_positions_are_constants() -> None:
    """A grid of 6×6 patches gets positions resized from 4×4."""
    embed = operations(read_network(fixture("transformers_dinov2_interpolated-dynamo20"), {}), Embed)[0]
    assert embed.position.shape == (37, 16)
    assert len(np.unique(embed.position[1:, 0])) == 36


@pytest.mark.parametrize("name", ["timm_vit", "transformers_vit", "tokens"])
def test_a_named_batch_is_one(name: str) -> None:
    for exporter in ("ts17", "dynamo20"):
        dynamic = fixture(f"{name}_dynamic-{exporter}")
        assert_same(read_network(dynamic, {}), read_network(fixture(f"{name}-{exporter}"), {}))
        assert_same(read_network(dynamic, {"batch": "1"}), read_network(fixture(f"{name}-{exporter}"), {}))
        with pytest.raises(MoehlsError, match="batch"):
            read_network(dynamic, {"batch": "2"})


@pytest.mark.parametrize(
    "name",
    ["timm_unfused-ts11", "timm_unfused-ts13", "timm_vit-dynamo23", "ort2_timm_vit-ts17", "onnxscript_timm_vit-ts17"],
)
def test_other_graphs_of_a_model_are_the_same_network(name: str) -> None:
    assert_same(read_network(fixture(name), {}), read_network(fixture("timm_vit-ts17"), {}))


@pytest.mark.parametrize("name", ["ort0_transformers_vit-ts17", "onnxscript_transformers_vit-dynamo20"])
def test_optimised_graphs_of_transformers_are_the_same_network(name: str) -> None:
    assert_same(read_network(fixture(name), {}), read_network(fixture("transformers_vit-ts17"), {}))


def test_the_optimisers_left_their_operators_in_the_fixtures() -> None:
    for name in ("ort0_timm_vit-ts17", "ort2_timm_vit-ts17", "ort0_transformers_vit-ts17"):
        found = {node.op_type for node in onnx.load(str(fixture(name))).graph.node}
        assert {"SkipLayerNormalization", "BiasGelu"} <= found
    fused = {node.op_type for node in onnx.load(str(fixture("transformers_vit-dynamo23"))).graph.node}
    assert "Attention" in fused


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    model = onnx.load(str(fixture("timm_vit-dynamo20")))
    onnx.save(model, str(tmp_path / "vit.onnx"), save_as_external_data=True, location="vit.data", size_threshold=0)
    assert (tmp_path / "vit.data").stat().st_size > 10000
    assert_same(read_network(tmp_path / "vit.onnx", {}), read_network(fixture("timm_vit-dynamo20"), {}))


def embedding(network: Network) -> Embed:
    found = network.operations[0]
    assert isinstance(found, Embed)
    return found


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_tokens_are_embedded_as_they_are_or_by_their_projection(exporter: str) -> None:
    plain = read_network(fixture(f"tokens-{exporter}"), {})
    assert plain.input.shape == (1, 9, 16)
    np.testing.assert_array_equal(embedding(plain).weight.reshape(16, 16), np.eye(16))
    assert embedding(plain).prefix.shape == (0, 16)
    projected = read_network(fixture(f"tokens_projected-{exporter}"), {})
    assert embedding(projected).weight.shape == (12, 1, 1, 16)
    assert embedding(projected).prefix.shape == (1, 12)
    assert not [o for o in projected.operations if isinstance(o, Linear) and o.input == embedding(projected).output]


def test_a_model_of_tokens_goes_the_whole_way(tmp_path: Path) -> None:
    """Samples are `[samples, tokens, channels]`, as the graph's input [1, tokens, channels] says."""
    api.compile(fixture("tokens_projected-dynamo20"), tmp_path / "project")
    assert api.verify(tmp_path / "project", ["reference", "csim"]).passed
    tokens = np.random.default_rng(0).standard_normal((3, 9, 16)).astype(np.float32)
    np.savez(tmp_path / "in.npz", image=tokens)
    network = open_project(tmp_path / "project").network
    np.testing.assert_array_equal(read_samples(tmp_path / "in.npz", network).images[:, 0], tokens)
    assert api.run(tmp_path / "project", tmp_path / "in.npz", tmp_path / "out.npz") == 3


def test_more_than_one_row_of_tokens_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(MoehlsError, match="batch of 2"):
        read_network(edited("tokens-dynamo20", tmp_path, edit), {})
