"""Compares a recognised network, run in float, with onnxruntime on the file it came from; a difference refuses the
network.

For every task, random images run through both. The router logits of the graph are read out too: the network is run
with the choices onnxruntime's logits give, so that a near-tie rounded the other way is no difference, and its own
logits must agree with them, so that choices can differ at near-ties only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from moehls.errors import MoehlsError
from moehls.frontend.context import first_line
from moehls.frontend.layout import Array
from moehls.frontend.oracle import oracle_graph
from moehls.frontend.values import RouteSource
from moehls.frontend.widen import load_widened
from moehls.network.interpreter import Routing, choices, outputs, route_logits, run
from moehls.network.operations import FloatArray, Network, NetworkInput, Route

BOUND = 3e-5
"""Largest relative error (root mean square, one output or one router's logits) of a correct recognition. Two float32
evaluations of a 12-block model differ by about 1e-6; the tanh form in place of the exact GELU makes 1e-4 and more."""
SAMPLES = 2
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


def check_network(network: Network, path: Path, routers: Mapping[str, RouteSource], seed: int) -> float:
    """Compare for every task; returns the largest relative error.

    Raises:
        MoehlsError: onnxruntime cannot run the file, or an output or a router differs by more than `BOUND`.
    """
    session, logits_names = _session(path, routers)
    rng = np.random.default_rng(seed)
    worst = 0.0
    for task in range(network.tasks):
        for _ in range(SAMPLES):
            image = _image(network.input, rng)
            expected = _run_onnx(session, network, image, task)
            for what, error in _errors(network, image, task, expected, logits_names).items():
                if not error <= BOUND:
                    where = f"{what} of task {task}" if network.tasks > 1 else what
                    raise MoehlsError(
                        f"{network.name}: the recognised network does not compute what the file does: {where} "
                        f"differs by {error:.2g} relative to onnxruntime on random input (float32 rounding: below {BOUND:g}); "
                        "the graph has a form that is misread: export it in a form of docs/frontend.md and report it"
                    )
                worst = max(worst, error)
    return worst


def _image(source: NetworkInput, rng: np.random.Generator) -> FloatArray:
    """A random image `[1, channels, height, width]`."""
    shape = (1, *source.shape)
    return (rng.integers(0, 256, shape) if source.bytes else rng.standard_normal(shape)).astype(np.float32)


def _session(path: Path, routers: Mapping[str, RouteSource]) -> tuple[ort.InferenceSession, dict[str, str]]:
    """A session that also returns router logits, and the name of each router's logits in the file."""
    try:
        model = load_widened(path)
        known = {output for node in model.graph.node for output in node.output}
        names = {name: source.onnx_name for name, source in routers.items() if source.onnx_name in known}
        oracle_graph(model.graph)
        shown = {output.name for output in model.graph.output}
        for name in sorted(set(names.values()) - shown):
            model.graph.output.append(onnx.ValueInfoProto(name=name))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise MoehlsError(
            f"{path}: onnxruntime cannot load the model ({first_line(error)}); export it again"
        ) from error
    return session, names


def _task(kind: str, shape: list[int], task: int) -> Array:
    """The number of a task, or its one-hot vector, as a graph takes it."""
    if kind in _TYPES:
        return np.full(shape, task, _TYPES[kind])
    vector: Array = np.eye(shape[-1], dtype=np.float32)[task]
    return vector.reshape(shape)


def _run_onnx(session: ort.InferenceSession, network: Network, image: FloatArray, task: int) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for given in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        if given.name == network.input.name:
            own = np.moveaxis(image, 1, -1) if network.input.channels_last else image
            own = own.reshape((*(1,) * (len(shape) - 3), *own.shape[1:]))
            feeds[given.name] = own.astype(np.uint8) if network.input.bytes else own
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
    network: Network, image: FloatArray, task: int, expected: dict[str, Array], logits_names: dict[str, str]
) -> dict[str, float]:
    """Relative error of every output and of every router's logits."""
    routes = {operation.name: operation for operation in network.operations if isinstance(operation, Route)}
    logits = {
        name: expected[onnx_name].reshape(1, -1, routes[name].weight.shape[1])
        for name, onnx_name in logits_names.items()
    }
    forced = {name: choices(routes[name], values, task) for name, values in logits.items()}
    with np.errstate(all="ignore"):  # an overflow shows as an infinite error
        values = run(network, image, task, routing=forced, keep=True)
    errors: dict[str, float] = {}
    for name, given in logits.items():
        tokens = values[routes[name].input]
        assert not isinstance(tokens, Routing)
        errors[f"the logits of router {name}"] = relative_error(route_logits(routes[name], tokens, task), given)
    for name, found in outputs(network, values).items():
        errors[f"output {name!r}"] = relative_error(found, expected[name])
    return errors
