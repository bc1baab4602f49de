"""Images as decoders and cameras give them: bytes, channels last, normalised in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moehls.frontend import read_network
from moehls.frontend.join import DifferentBackbones, join
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.network.operations import Embed
from moehls.quantize import quantize, random_calibration
from moehls.samples import read_calibration, read_samples
from tests.frontend.support import edited, fixture, nodes, refusals


def embed(name: str) -> Embed:
    return next(o for o in read_network(fixture(name), {}).operations if isinstance(o, Embed))


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_a_normalisation_in_the_graph_goes_to_the_patch_embedding(exporter: str) -> None:
    plain, found = embed("plain-ts17"), embed(f"embed_normalised-{exporter}")
    deviation, mean = np.array([0.229, 0.224]), np.array([0.485, 0.456])
    np.testing.assert_allclose(found.weight, plain.weight / deviation[:, None, None], rtol=1e-6)
    moved = plain.bias - (plain.weight / deviation[:, None, None]).sum((2, 3)) @ mean
    np.testing.assert_allclose(found.bias, moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exporter", ["ts17", "dynamo20"])
def test_colours_in_another_order_and_bytes(exporter: str) -> None:
    plain = embed("plain-ts17")
    np.testing.assert_array_equal(embed(f"embed_reversed-{exporter}").weight, plain.weight[:, ::-1])
    whole = embed(f"embed_normalised-{exporter}").weight / 255
    np.testing.assert_allclose(embed(f"embed_bytes-{exporter}").weight, whole, rtol=1e-5)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
def test_bytes_are_the_machines_pixels(precision: Precision) -> None:
    network = read_network(fixture("embed_bytes-ts17"), {})
    assert (network.input.shape, network.input.type, network.input.channels_last) == ((2, 8, 12), "uint8", True)
    images = random_calibration(network, 0)
    assert np.array_equal(images, np.clip(np.rint(images), 0, 255))
    source = quantize(network, images[:2], precision).input
    assert (source.scale == 1).all()
    assert not source.offset.any()


def test_samples_have_their_channels_where_the_graph_has_them(tmp_path: Path) -> None:
    network = read_network(fixture("embed_bytes-dynamo20"), {})
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 2)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", image=pixels)
    found = read_samples(tmp_path / "images.npz", network)
    np.testing.assert_array_equal(found.images, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found.arrays(network)["image"], pixels)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder/one.npy", pixels[0])
    assert read_calibration(tmp_path / "folder", network).shape == (1, 8, 12, 2)


def test_an_image_rounded_in_the_graph_is_refused(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        graph.node.insert(0, helper.make_node("Cast", ["image"], ["whole"], name="whole", to=onnx.TensorProto.INT32))
        graph.node.insert(1, helper.make_node("Cast", ["whole"], ["back"], name="back", to=onnx.TensorProto.FLOAT))
        nodes(graph, "Conv")[0].input[0] = "back"

    refusal = refusals("plain-ts17", tmp_path, edit)[0]
    assert refusal.name == "whole"
    assert "rounded to integers" in refusal.reason


def test_an_image_normalised_from_place_to_place_is_refused(tmp_path: Path) -> None:
    """A brightness that falls off towards the edges is no normalisation a channel."""

    def edit(graph: onnx.GraphProto) -> None:
        falling = np.linspace(0.5, 1, 12, dtype=np.float32)
        graph.initializer.append(numpy_helper.from_array(falling, "falling"))
        graph.node.insert(0, helper.make_node("Mul", ["image", "falling"], ["darker"], name="darker"))
        nodes(graph, "Conv")[0].input[0] = "darker"

    refusal = refusals("plain-ts17", tmp_path, edit)[0]
    assert refusal.op == "Conv"
    assert "differently from patch to patch" in refusal.reason


def test_tasks_of_one_model_take_the_same_images() -> None:
    networks = [read_network(fixture(name), {}) for name in ("plain-ts17", "embed_bytes-ts17")]
    with pytest.raises(DifferentBackbones, match="images in another layout or type"):
        join(networks, ["a", "b"])


def test_features_of_every_block_are_read_before_the_stream_goes_on(tmp_path: Path) -> None:
    """The export has the norms of all features behind the last block."""
    network = read_network(edited("timm_features-ts17", tmp_path, lambda graph: None), {})
    assert len(network.outputs) == 2
    quantize(network, random_calibration(network, 0)[:1], W8A8)
