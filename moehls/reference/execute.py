"""Runs an integer network on one image; in go the image and the task, out comes every named value, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.integer.host import quantise_image
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntArray,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerOperation,
    IntegerPool,
    IntegerRoute,
)
from moehls.reference.attention import attention
from moehls.reference.embed import embed
from moehls.reference.experts import experts
from moehls.reference.linear import linear
from moehls.reference.norm import norm
from moehls.reference.pool import pool
from moehls.reference.route import Routing, route


@dataclass(frozen=True)
class Execution:
    """Every value of one run by name, in the order of computation; the first is the pixels, under the input's name.

    A residual value is kept as it was when written, although the machine updates the stream in place.
    """

    values: dict[str, IntArray | Routing]

    def array(self, name: str) -> IntArray:
        """The value `name`, which is not a routing: `[tokens, channels]`."""
        value = self.values[name]
        assert not isinstance(value, Routing)
        return value

    def routing(self, name: str) -> Routing:
        """The routing `name`."""
        value = self.values[name]
        assert isinstance(value, Routing)
        return value


def run(network: IntegerNetwork, image: npt.NDArray[Any], task: int = 0) -> Execution:
    """Compute one image `[channels, height, width]` (real pixels, as the ONNX model takes them) for `task`.

    Raises:
        MoehlsError: the image has another shape or the network no such task.
    """
    return run_pixels(network, quantise_image(network, image), task)


def run_pixels(network: IntegerNetwork, pixels: npt.NDArray[np.integer], task: int = 0) -> Execution:
    """The same from quantised pixels `[patches, pixels a patch]`."""
    if not 0 <= task < network.tasks:
        raise MoehlsError(f"task {task}: {network.name} has the tasks 0 to {network.tasks - 1}")
    execution = Execution({network.input.name: pixels.astype(np.int64)})
    for operation in network.operations:
        execution.values.update(execute(network, operation, execution, task))
    return execution


def execute(
    network: IntegerNetwork, operation: IntegerOperation, known: Execution, task: int
) -> dict[str, IntArray | Routing]:
    """The values one operation writes, from those already known."""
    precision, forms = network.precision, network.activations
    match operation:
        case IntegerEmbed():
            return {operation.output: embed(operation, known.array(operation.input), precision)}
        case IntegerConstant():
            return {operation.output: operation.rows}
        case IntegerNorm():
            fine, operand = norm(operation, known.array(operation.input), precision)
            return {operation.fine: fine, operation.operand: operand}
        case IntegerPool():
            return {operation.output: pool(operation, known.array(operation.input), precision)}
        case IntegerLinear(epilogue=epilogue):
            x, other = known.array(operation.input), None
            if isinstance(epilogue, AddResidual):
                other = known.array(epilogue.residual)
            elif isinstance(epilogue, GatedRequantise):
                other = known.array(epilogue.up)
            form = forms[epilogue.form if isinstance(epilogue, GeluRequantise | GatedRequantise) else 0]
            return {operation.output: linear(operation, x, other, precision, form)}
        case IntegerAttention():
            q, k, v = (known.array(name) for name in (operation.query, operation.key, operation.value))
            return {operation.output: attention(operation, q, k, v, precision)}
        case IntegerRoute():
            return {operation.output: route(operation, known.array(operation.input), task, precision)}
        case IntegerExperts():
            x, residual = known.array(operation.input), known.array(operation.residual)
            routing = known.routing(operation.routing)
            form = forms[operation.gelu.form]
            return {operation.output: experts(operation, x, routing, residual, precision, form)}
