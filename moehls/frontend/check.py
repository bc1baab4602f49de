"""Compares a recognised network, run in float, with onnxruntime on the file it came from; a difference refuses the
network.

For every task, random images run through both. The router logits of the graph are read out too: the network is run
with the choices onnxruntime's logits give, so that a near-tie rounded the other way is no difference, and its own
logits must agree with them, so that choices can differ at near-ties only. Sums of experts and of branches are compared on all
tokens, as a head may read one token only, and images are drawn until every expert has been chosen, if that is soon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import external_data_helper, numpy_helper

from moehls.errors import MoehlsError
from moehls.frontend.context import first_line
from moehls.frontend.layout import Array
from moehls.frontend.lower import Reading
from moehls.frontend.oracle import oracle_graph
from moehls.frontend.widen import load_widened
from moehls.heap import trim
from moehls.network.inputs import as_given, prepared
from moehls.network.inputs import expected as expected_pixels
from moehls.network.interpreter import Routing, choices, outputs, route_logits, run
from moehls.network.operations import FloatArray, Network, Route

BOUND = 3e-5
"""Largest relative error (root mean square, one output or one router's logits) of a correct recognition. Two float32
evaluations of a 12-block model differ by about 1e-6; the tanh form in place of the exact GELU makes 1e-4 and more."""
SAMPLES = 2
MOST_SAMPLES = 8
"""images of a task while some expert has not been chosen"""
_LARGE = 1 << 10
"""bytes of a weight that onnxruntime gets apart from the graph"""
_TYPES: dict[str, type] = {
    f"tensor({kind.__name__})": kind
    for kind in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
}
"""Integer types a task may have in onnxruntime."""


def relative_error(found: Array, expected: Array) -> float:
    """Root mean square error relative to the root mean square of what is expected; infinite for another shape."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    difference = np.linalg.norm((found - expected).astype(np.float64))
    return float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))


def check_network(network: Network, path: Path, reading: Reading, seed: int) -> float:
    """Compare for every task; returns the largest relative error.

    Raises:
        MoehlsError: onnxruntime cannot run the file, or an output or a router differs by more than `BOUND`.
    """
    session, names = _session(path, reading)
    rng = np.random.default_rng(seed)
    worst = 0.0
    for task in range(network.tasks):
        unseen = {(o.name, expert) for o in _routes(network) for expert in range(o.weight.shape[1])}
        for number in range(MOST_SAMPLES):
            if number >= SAMPLES and not unseen:
                break
            noise = rng.standard_normal((1, *network.input.shape))
            sample = as_given(network.input, expected_pixels(network.input, noise))
            image = prepared(network.input, sample)
            expected = _run_onnx(session, network, sample, task)
            errors, chosen = _errors(network, image, task, expected, names)
            unseen -= chosen
            for what, error in errors.items():
                if not error <= BOUND:
                    where = f"{what} of task {task}" if network.tasks > 1 else what
                    raise MoehlsError(
                        f"{network.name}: the recognised network does not compute what the file does: {where} "
                        f"differs by {error:.2g} relative to onnxruntime on random input (float32 rounding: below {BOUND:g}); "
                        "the graph has a form that is misread: export it in a form of docs/frontend.md and report it"
                    )
                worst = max(worst, error)
    return worst


@dataclass(frozen=True)
class _Names:
    """Names in the file, by those in the network."""

    logits: Mapping[str, str]
    """of routers"""
    values: Mapping[str, str]
    weights: Sequence[ort.OrtValue]
    """that the session reads, to be kept as long as it"""


def _routes(network: Network) -> list[Route]:
    return [operation for operation in network.operations if isinstance(operation, Route)]


def _session(path: Path, reading: Reading) -> tuple[ort.InferenceSession, _Names]:
    """A session that also returns router logits and other values of the network."""
    try:
        model = load_widened(path)
        known = {output for node in model.graph.node for output in node.output}
        logits = {name: source.onnx_name for name, source in reading.routers.items() if source.onnx_name in known}
        oracle_graph(model.graph)
        written = {output for node in model.graph.node for output in node.output}
        probes = {name: [own for own in tensors if own in written] for name, tensors in reading.probes.items()}
        values = {name: tensors[0] for name, tensors in probes.items() if tensors}
        shown = {output.name for output in model.graph.output}
        for name in sorted({*logits.values(), *values.values()} - shown):
            model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        large = _apart(model)
        options.add_external_initializers(list(large), list(large.values()))
        data = model.SerializeToString()
        del model
        trim()  # the weights in the model's own memory
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MoehlsError(
            f"{path}: onnxruntime cannot load the model ({first_line(error)}); export it again"
        ) from error
    return session, _Names(logits, values, tuple(large.values()))


def _apart(model: onnx.ModelProto) -> dict[str, ort.OrtValue]:
    """Takes the large weights out of a model, which is then read without copies of them: their values by name."""
    values = {}
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= _LARGE:
            array = numpy_helper.to_array(tensor).copy()
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(array)
            external_data_helper.set_external_data(tensor, "apart", length=array.nbytes)
            tensor.ClearField("raw_data")
    return values


def _task(kind: str, shape: list[int], task: int) -> Array:
    """The number of a task, or its one-hot vector, as a graph takes it."""
    if kind in _TYPES:
        return np.full(shape, task, _TYPES[kind])
    vector: Array = np.eye(shape[-1], dtype=np.float32)[task]
    return vector.reshape(shape)


def _run_onnx(session: ort.InferenceSession, network: Network, sample: Array, task: int) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for given in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        if given.name == network.input.name:
            feeds[given.name] = sample.reshape((*(1,) * (len(shape) - sample.ndim + 1), *sample.shape[1:]))
        elif given.name == network.task_input:
            feeds[given.name] = _task(given.type, shape, task)
        else:
            feeds[given.name] = np.zeros(shape, _TYPES.get(given.type, np.float32))  # a task input that nothing reads
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise MoehlsError(
            f"{network.name}: onnxruntime cannot run the model ({first_line(error)}); export it again"
        ) from error


def _errors(
    network: Network, image: FloatArray, task: int, expected: dict[str, Array], names: _Names
) -> tuple[dict[str, float], set[tuple[str, int]]]:
    """Relative error of every output, of every router's logits and of every other value; and which experts were chosen."""
    routes = {operation.name: operation for operation in _routes(network)}
    logits = {
        name: expected[onnx_name].reshape(1, -1, routes[name].weight.shape[1])
        for name, onnx_name in names.logits.items()
    }
    forced = {name: choices(routes[name], values, task) for name, values in logits.items()}
    with np.errstate(all="ignore"):  # an overflow shows as an infinite error
        values = run(network, image, task, routing=forced, keep=True)
    errors: dict[str, float] = {}
    for name, given in logits.items():
        tokens = values[routes[name].input]
        assert not isinstance(tokens, Routing)
        errors[f"the logits of router {name}"] = relative_error(route_logits(routes[name], tokens, task), given)
    shapes = {output.name: output.shape for output in network.outputs}
    for name, found in outputs(network, values).items():
        samples = expected[name] if shapes[name][:1] == (1,) else expected[name][None]
        errors[f"output {name!r}"] = relative_error(found, samples)
    for name, tensor in names.values.items():
        own, given = values[name], expected[tensor]
        if isinstance(own, np.ndarray):
            same = own.size == given.size
            errors[f"the value {name}"] = relative_error(own, given.reshape(own.shape) if same else given)
    routed = {name: value for name in routes if isinstance(value := values[name], Routing)}
    chosen = {(name, int(expert)) for name, value in routed.items() for expert in np.unique(value.indices)}
    return errors, chosen
