"""The calibration data on its way through both networks at once.

In go the float network, the images and, step by step, the integer operations as they are made; out come the real values
(float network) and the integers (integer network so far) of every calibration run, a run being one image for one task.
The float network follows the expert choices of the integer network, so that the two stay comparable after a near-tie.
"""

from __future__ import annotations

import sys

import numpy as np

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray, IntegerNetwork, IntegerOperation, RealArray
from moehls.network.operations import FloatArray, Network, Route
from moehls.quantize.structure import inputs
from moehls.reference import Execution, Routing
from moehls.reference.execute import execute

sys.path.insert(0, "/tmp/q")
from floatops import evaluate  # noqa: E402


class Trajectories:
    """Values of the float and of the integer network for every run; values nothing needs any more are forgotten."""

    def __init__(self, network: Network, images: FloatArray) -> None:
        self.network = network
        self.tasks = np.repeat(np.arange(network.tasks), len(images))
        """[runs]"""
        source = network.input.name
        self._real: list[dict[str, object]] = [
            {source: image.astype(np.float64)} for _ in range(network.tasks) for image in images
        ]
        self._integer = [Execution({}) for _ in self.tasks]
        self._next = 0
        self._last = {name: i for i, operation in enumerate(network.operations) for name in inputs(operation)}

    @property
    def runs(self) -> int:
        return len(self.tasks)

    def real(self, name: str) -> RealArray:
        """The value `name` of the float network, `[runs, tokens, channels]`; computes up to there."""
        self._advance(name)
        return np.stack([known[name] for known in self._real])

    def _advance(self, name: str) -> None:
        while name not in self._real[0]:
            operation = self.network.operations[self._next]
            self._next += 1
            for task, known, integer in zip(self.tasks, self._real, self._integer, strict=True):
                forced = integer.routing(operation.output).chosen if isinstance(operation, Route) else None
                known[operation.output] = evaluate(operation, known, int(task), forced)

    def integer(self, name: str) -> IntArray:
        """The value `name` of the integer network, `[runs, tokens, channels]`."""
        return np.stack([known.array(name) for known in self._integer])

    def routing(self, name: str) -> list[Routing]:
        return [known.routing(name) for known in self._integer]

    def pixels(self, name: str, pixels: list[IntArray]) -> None:
        """Give the integer network its input."""
        for known, value in zip(self._integer, pixels * self.network.tasks, strict=True):
            known.values[name] = value

    def execute(self, network: IntegerNetwork, operation: IntegerOperation) -> None:
        """Compute one operation of the integer network for every run."""
        for task, known in zip(self.tasks, self._integer, strict=True):
            known.values.update(execute(network, operation, known, int(task)))

    def forget(self, name: str) -> None:
        """Drop the values that no operation after the one that writes `name` reads."""
        self._advance(name)
        index = next(i for i, operation in enumerate(self.network.operations) if operation.output == name)
        for known in (*self._real, *(execution.values for execution in self._integer)):
            for value in [v for v in known if self._last.get(v.removesuffix(".fine"), index + 1) <= index]:
                del known[value]


def residual_range(network: Network, images: FloatArray, residuals: frozenset[str]) -> float:
    """Largest magnitude of the residual stream over all images and tasks, in the float network."""
    largest = 0.0
    for task in range(network.tasks):
        for image in images:
            known: dict[str, object] = {network.input.name: image.astype(np.float64)}
            last = {name: i for i, operation in enumerate(network.operations) for name in inputs(operation)}
            for i, operation in enumerate(network.operations):
                value = evaluate(operation, known, task, None)
                known[operation.output] = value
                if operation.output in residuals:
                    largest = max(largest, float(np.abs(value).max()))
                for name in {n for n in inputs(operation) if last[n] == i}:
                    del known[name]
    return largest


def checked(network: Network, images: FloatArray) -> FloatArray:
    """Calibration images `[samples, channels, height, width]`.

    Raises:
        MoehlsError: another shape, no sample or a value that is not finite.
    """
    if images.ndim != 4 or images.shape[1:] != network.input.shape or len(images) == 0:
        raise MoehlsError(
            f"calibration: found an array of shape {images.shape}; input {network.input.name!r} takes "
            f"[samples, {', '.join(map(str, network.input.shape))}] with at least one sample"
        )
    if not np.isfinite(images).all():
        raise MoehlsError("calibration: the images hold values that are not finite; remove those samples")
    return images.astype(np.float32)


def random_calibration(network: Network, seed: int) -> FloatArray:
    """Images to calibrate with where there are none: smooth noise of unit deviation, `[8, channels, height, width]`."""
    generator = np.random.default_rng(seed)
    channels, height, width = network.input.shape
    images = np.zeros((8, channels, height, width))
    for octave in range(4):
        cell = 1 << (2 * octave)
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = generator.standard_normal((8, channels, rows, columns))
        images += np.repeat(np.repeat(coarse, cell, axis=2), cell, axis=3)[:, :, :height, :width]
    return (images / 2).astype(np.float32)
