"""Graphs that onnxruntime's static quantiser made: scales, zero points and int8 weights come out as the graph has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from moehls import api, reference
from moehls.errors import MoehlsError
from moehls.frontend import inspect_model, read_network
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.join import join
from moehls.integer.host import dequantise_output
from moehls.integer.operations import IntegerExperts, IntegerLinear, IntegerNetwork
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.integer.validate import check
from moehls.network.operations import Lattice, Network, of_experts
from moehls.network.split import split_hidden
from moehls.quantize import left_to_calibration, quantize
from moehls.quantize.given import centred_grid
from tests.frontend.support import edited, fixture, nodes

SYMMETRIC = [
    "qdq_plain-dynamo20", "qdq_plain-ts13", "qdq_products-dynamo20", "qdq_products-ts17", "qdq_timm_vit-ts17", "qdq_tokens-ts17",
    "qdq_experts-ts17", "qdq_experts-dynamo20", "qdq_gated-ts17", "qdq_gated-dynamo20", "qdq_gated_experts-ts17",
    "qdq_gated_experts-dynamo20",
]  # fmt: skip


def integer(network: Network, precision: Precision = W8A8) -> IntegerNetwork:
    images = np.random.default_rng(0).standard_normal((4, *network.input.shape)).astype(np.float32)
    found = quantize(network, images, precision)
    check(found)
    return found


def constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def quantiser_after(graph: onnx.GraphProto, op: str, number: int = 0) -> onnx.NodeProto:
    """The QuantizeLinear that reads the result of a node."""
    output = nodes(graph, op)[number].output[0]
    return next(node for node in nodes(graph, "QuantizeLinear") if node.input[0] == output)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_every_operand_has_the_graphs_scale(name: str) -> None:
    network = read_network(fixture(name), {})
    found = integer(network)
    left = left_to_calibration(network)
    assert all(each.startswith("the hidden layers of experts") for each in left)
    operands = {key: value for key, value in found.formats.items() if value.kind == "operand"}
    assert len(operands) > 5
    for key, own in operands.items():
        given = network.lattices[key]
        if own.signed and not key.startswith("gated"):
            np.testing.assert_array_equal(own.scale, given.scale)
            np.testing.assert_array_equal(own.offset, given.zero)
        else:  # an activation's or a product's scale has the bits of its second multiplier
            np.testing.assert_allclose(own.scale, given.scale, rtol=2**-8)
    scale = network.lattices[network.input.name].scale
    np.testing.assert_array_equal(found.input.scale, np.broadcast_to(scale, found.input.scale.shape))
    np.testing.assert_array_equal(found.input.offset, 128)


@pytest.mark.parametrize(
    "name",
    [
        "qdq_experts-ts17",
        "qdq_gated_experts-ts17",
        "qdq_gated_experts-dynamo20",
        "qdq_index_add-ts17",
        "qdq_index_add-dynamo20",
    ],
)
def test_the_hidden_layers_of_experts_have_the_graphs_scales(name: str) -> None:
    network = read_network(fixture(name), {})
    (experts,) = (o for o in integer(network).operations if isinstance(o, IntegerExperts))
    given = network.lattices[of_experts("experts0", "hidden")].scale
    scale = 2.0 ** (experts.gelu.shift - W8A8.delta_fraction) / experts.gelu.multiplier
    if experts.up_scaling is not None:
        up = network.lattices[of_experts("experts0", "up")].scale.reshape(scale.shape)
        scale = scale * up
    np.testing.assert_allclose(scale.reshape(-1), given, rtol=2**-7)
    assert left_to_calibration(network) == ()


def test_a_gated_product_with_a_zero_point_near_the_middle_keeps_its_scale(tmp_path: Path) -> None:
    scale = np.float32(read_network(fixture("qdq_gated-dynamo20"), {}).lattices["gated0"].scale[0])

    def edit(graph: onnx.GraphProto) -> None:
        known = constants(graph)
        quantiser = next(n for n in nodes(graph, "QuantizeLinear") if known[n.input[1]] == scale)
        graph.initializer.append(numpy_helper.from_array(np.array(5, np.int8), "moved"))
        for node in graph.node:
            if quantiser.output[0] in (*node.input, *node.output):
                node.input[2] = "moved"

    network = read_network(edited("qdq_gated-dynamo20", tmp_path, edit), {})
    own = integer(network).formats["gated0"]
    np.testing.assert_allclose(own.scale, scale, rtol=2.0**-7)  # five integers at one end saturate
    assert not own.offset.any()
    assert integer(network, W16A16)


def test_hidden_layers_in_parts_keep_their_scales() -> None:
    network = read_network(fixture("qdq_gated_experts-ts17"), {})
    parts = split_hidden(network, 3)
    assert left_to_calibration(parts) == ()
    whole = network.lattices[of_experts("experts0", "hidden")].scale.reshape(4, 12)
    own = [parts.lattices[of_experts(f"experts0.part{n}", "hidden")].scale.reshape(4, 4) for n in range(3)]
    np.testing.assert_array_equal(np.concatenate(own, axis=1), whole)
    assert integer(parts)


def test_tasks_keep_the_scales_that_they_share() -> None:
    network = read_network(fixture("qdq_experts-ts17"), {})
    joint = join([network, network], ["a", "b"])
    assert joint.lattices.keys() == network.lattices.keys()
    lattice = network.lattices["norm0"]
    other = replace(network, lattices={**network.lattices, "norm0": replace(lattice, scale=2 * lattice.scale)})
    with pytest.raises(MoehlsError, match="quantise norm0 with other scales"):
        join([network, other], ["a", "b"])


@pytest.mark.parametrize("name", ["qdq_plain-dynamo20", "qdq_timm_vit-ts17"])
def test_the_scales_are_those_of_the_nodes(name: str) -> None:
    graph = onnx.load(str(fixture(name))).graph
    known, network = constants(graph), read_network(fixture(name), {})
    for number in range(len(nodes(graph, "LayerNormalization"))):
        wanted = known[quantiser_after(graph, "LayerNormalization", number).input[1]]
        assert (network.lattices[f"norm{number}"].scale == np.float64(wanted)).all()
    first = next(node for node in nodes(graph, "QuantizeLinear") if node.input[0] == network.input.name)
    assert network.lattices[network.input.name].scale == np.float64(known[first.input[1]])


@pytest.mark.parametrize("name", ["qdq_plain-dynamo20", "qdq_products-ts17", "qdq_timm_vit-ts17"])
def test_integer_weights_are_the_graphs(name: str) -> None:
    """But for a common factor of a row, which the machine's integers leave out."""
    codes = [a for a in constants(onnx.load(str(fixture(name))).graph).values() if a.dtype == np.int8 and a.ndim == 2]
    linears = [o for o in integer(read_network(fixture(name), {})).operations if isinstance(o, IntegerLinear)]
    matched = 0
    for linear in linears:
        own = linear.weight.astype(np.int64)
        for table in (*codes, *(code.T for code in codes)):
            if table.shape != own.shape:
                continue
            table = table.astype(np.int64)
            factor = np.abs(table).max(axis=1) // np.maximum(np.abs(own).max(axis=1), 1)
            matched += int(np.array_equal(own * factor[:, None], table))
    fused = sum(o.name.startswith(("query", "key", "value")) for o in linears)
    assert matched == len(linears) - fused


@pytest.mark.parametrize("name", ["qdq_products-ts17", "qdq_products-dynamo20"])
def test_the_machine_computes_what_onnxruntime_does(name: str) -> None:
    """Where the graph quantises matrix products only, the machine rounds at the same places but for scores and probabilities."""
    network = read_network(fixture(name), {})
    found = integer(network)
    session = ort.InferenceSession(str(fixture(name)))
    images = np.random.default_rng(5).standard_normal((6, *network.input.shape)).astype(np.float32)
    error, power = 0.0, 0.0
    for image in images:
        (wanted,) = session.run(None, {network.input.name: image[None]})
        output = found.outputs[0]
        own = dequantise_output(found, output.name, reference.run(found, image, 0).array(output.value))
        error += float(((own - wanted) ** 2).sum())
        power += float((wanted**2).sum())
    assert 10 * np.log10(power / error) > 20


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["qdq_asymmetric-ts17", "qdq_asymmetric-dynamo20"])
def test_zero_points_are_kept_but_the_querys(name: str, precision: Precision) -> None:
    network = read_network(fixture(name), {})
    found = integer(network, precision)
    for key in ("norm0", "query0", "key0", "value0", "attention0"):
        given, own = network.lattices[key], found.formats[key]
        zero = given.zero - (0 if given.signed else 128)
        np.testing.assert_array_equal(own.scale, given.scale)
        np.testing.assert_array_equal(own.offset, 0 if key == "query0" else zero)
    assert network.lattices["key0"].zero[0] != 0


def test_a_zero_point_far_from_the_middle_widens_the_scale() -> None:
    ones = np.ones(3)
    kept, widened = (centred_grid(Lattice(ones * 0.5, ones * zero, 8, True), "q", W8A8) for zero in (-8.0, 40.0))
    np.testing.assert_array_equal(kept.scale, ones * 0.5)
    assert widened.scale[0] * 128 == (128 + 40) * 0.5
    assert not kept.offset.any() and not widened.offset.any()
    spare = centred_grid(Lattice(ones, ones * 40.0, 8, True), "q", W16A16)
    np.testing.assert_array_equal(spare.scale, ones)


def vector_scale(graph: onnx.GraphProto, quantiser: onnx.NodeProto, factors: np.ndarray, axis: int) -> None:
    """One scale a channel in place of one a tensor, for a QuantizeLinear and what reads it."""
    known = constants(graph)
    scale = known[quantiser.input[1]] * factors.astype(np.float32)
    zero = np.full(len(factors), known[quantiser.input[2]], known[quantiser.input[2]].dtype)
    graph.initializer.append(numpy_helper.from_array(scale, "scales"))
    graph.initializer.append(numpy_helper.from_array(zero, "zeros"))
    for node in graph.node:
        if node is quantiser or (node.op_type == "DequantizeLinear" and node.input[0] == quantiser.output[0]):
            node.input[1:] = ["scales", "zeros"]
            node.attribute.append(helper.make_attribute("axis", axis))


def test_one_scale_a_channel(tmp_path: Path) -> None:
    factors = np.linspace(0.5, 2, 8)

    def edit(graph: onnx.GraphProto) -> None:
        vector_scale(graph, quantiser_after(graph, "LayerNormalization"), factors, 2)

    network = read_network(edited("qdq_plain-dynamo20", tmp_path, edit), {})
    scale = integer(network).formats["norm0"].scale
    np.testing.assert_array_equal(scale, network.lattices["norm0"].scale)
    np.testing.assert_allclose(scale / scale[0], factors / factors[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "match"), [("Gelu", "multipliers of 8 bits"), ("MatMul", "different products within a head")]
)
def test_scales_a_channel_that_the_machine_cannot_hold(tmp_path: Path, op: str, match: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        if op == "Gelu":
            vector_scale(graph, quantiser_after(graph, op), np.geomspace(0.1, 10, 12), 2)
            return
        written = {n.output[0]: n for n in nodes(graph, "QuantizeLinear")}
        sources = {n.output[0]: written[n.input[0]] for n in nodes(graph, "DequantizeLinear") if n.input[0] in written}
        scores = next(n for n in nodes(graph, "MatMul") if all(name in sources for name in n.input))
        vector_scale(graph, sources[scores.input[0]], np.linspace(0.5, 2, 4), 3)

    network = read_network(edited("qdq_products-dynamo20", tmp_path, edit), {})
    with pytest.raises(MoehlsError, match=match):
        integer(network)


def set_scale(graph: onnx.GraphProto, name: str, value: float) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


def other_scale(graph: onnx.GraphProto) -> None:
    quantiser = quantiser_after(graph, "LayerNormalization")
    reader = next(n for n in nodes(graph, "DequantizeLinear") if n.input[0] == quantiser.output[0])
    set_scale(graph, "other", 0.5)
    reader.input[1] = "other"


def computed_scale(graph: onnx.GraphProto) -> None:
    quantiser = quantiser_after(graph, "LayerNormalization")
    quantiser.input[1] = graph.input[0].name


def negative_scale(graph: onnx.GraphProto) -> None:
    quantiser = quantiser_after(graph, "LayerNormalization")
    set_scale(graph, "negative", -0.5)
    for node in graph.node:
        if quantiser.output[0] in (*node.input, *node.output):
            node.input[1] = "negative"


@pytest.mark.parametrize(
    ("edit", "match"),
    [(other_scale, "another scale"), (computed_scale, "computed from the image"), (negative_scale, "not positive")],
)
def test_what_is_no_static_quantisation_is_refused(
    tmp_path: Path, edit: Callable[[onnx.GraphProto], None], match: str
) -> None:
    found = inspect_model(edited("qdq_plain-dynamo20", tmp_path, edit), {})
    assert any(match in refusal.reason and "constant scales" in refusal.remedy for refusal in found.unsupported)


def test_integers_may_be_moved_between_the_nodes(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        quantiser = quantiser_after(graph, "LayerNormalization")
        reader = next(n for n in nodes(graph, "DequantizeLinear") if n.input[0] == quantiser.output[0])
        for order in ("first", "second"):
            node = helper.make_node("Transpose", [reader.input[0]], [f"turned_{order}"], perm=[0, 2, 1])
            graph.node.insert(list(graph.node).index(reader), node)
            reader.input[0] = f"turned_{order}"

    network = read_network(edited("qdq_plain-dynamo20", tmp_path, edit), {})
    plain = read_network(fixture("qdq_plain-dynamo20"), {})
    np.testing.assert_array_equal(network.lattices["norm0"].scale, plain.lattices["norm0"].scale)


def test_values_without_a_scale_are_told(tmp_path: Path) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        quantiser = quantiser_after(graph, "LayerNormalization")
        for node in nodes(graph, "DequantizeLinear"):
            if node.input[0] == quantiser.output[0]:
                node.op_type = "Identity"
                node.input[:] = [quantiser.input[0]]

    path = edited("qdq_plain-dynamo20", tmp_path, edit)
    assert left_to_calibration(read_network(path, {})) == ("norm0",)
    assert left_to_calibration(read_network(fixture("plain-ts17"), {})) == ()
    done = api.compile(path, tmp_path / "project")
    assert any("no scale for norm0" in warning for warning in done.warnings)


def test_a_quantised_graph_goes_the_whole_way(tmp_path: Path) -> None:
    api.compile(fixture("qdq_timm_vit-ts17"), tmp_path / "project")
    assert api.verify(tmp_path / "project", ["reference", "csim"]).passed


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_constants_are_quantised_as_onnx_says(dtype: type) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32) * 40
    x[0, :2] = [0.5, 1.5]
    scale, zero = np.float32([1, 0.5, 2, 0.25, 1]), np.array([1, 0, 3, 2, 0], dtype)
    made = [helper.make_node(op, ["x", "s", "z"], ["y"], axis=1) for op in ("QuantizeLinear", "DequantizeLinear")]
    codes, back = (NodeEvaluator(ir.from_proto(node), 17) for node in made)
    limits = np.iinfo(dtype)
    (integers,) = codes([x, scale, zero])
    np.testing.assert_array_equal(integers, np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(dtype))
    (reals,) = back([integers, scale, zero])
    np.testing.assert_array_equal(reals, (integers.astype(np.float32) - zero) * scale)
