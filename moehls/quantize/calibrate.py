"""The calibration data on its way through both networks at once.

In go the float network, the images and, step by step, the integer operations as they are made; out come the real values
(float network) and the integers (integer network so far) of every calibration run, a run being one image for one task.
The float network follows the expert choices of the integer network, so that the two stay comparable after a near-tie.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray, IntegerNetwork, IntegerOperation, RealArray
from moehls.network import interpreter
from moehls.network.inputs import as_given, expected, prepared
from moehls.network.interpreter import Value, Values, evaluate, reads
from moehls.network.operations import ActivationForm, FloatArray, Network, Route, SelectTokens
from moehls.reference import Execution, Routing
from moehls.reference.execute import execute


class Trajectories:
    """Values of the float and of the integer network for every run; values nothing needs any more are forgotten.

    A run is one image for one task, task-major. The float network runs in double precision: its sums then change by so
    little with the order in which a BLAS adds that no rounding decision depends on it.
    """

    def __init__(self, network: Network, images: FloatArray) -> None:
        self.network = network
        self.images = len(images)
        self.tasks = np.repeat(np.arange(network.tasks), self.images)
        """[runs]"""
        self._real: list[Values] = [{network.input.name: _double(images)} for _ in range(network.tasks)]
        self._integer = [Execution({}) for _ in self.tasks]
        self._next = 0
        self._last = _last_reader(network)

    def real(self, name: str) -> RealArray:
        """The value `name` of the float network, `[runs, tokens, channels]`; computes up to there."""
        self._advance(name)
        return np.concatenate([_array(known[name]) for known in self._real])

    def integer(self, name: str) -> IntArray:
        """The value `name` of the integer network, `[runs, tokens, channels]`."""
        return np.stack([known.array(name) for known in self._integer])

    def routing(self, name: str) -> list[Routing]:
        """The routing `name` of the integer network, one a run."""
        return [known.routing(name) for known in self._integer]

    def start(self, name: str, pixels: list[IntArray]) -> None:
        """Give the integer network the pixels of each image as its input `name`."""
        for known, value in zip(self._integer, pixels * self.network.tasks, strict=True):
            known.values[name] = value

    def execute(self, network: IntegerNetwork, operation: IntegerOperation) -> None:
        """Compute one operation of the integer network for every run."""
        for task, known in zip(self.tasks, self._integer, strict=True):
            known.values.update(execute(network, operation, known, int(task)))

    def keep(self, name: str, reader: str) -> None:
        """Keep the integers of `name` until the operation that writes `reader` is done."""
        index = next(i for i, operation in enumerate(self.network.operations) if operation.output == reader)
        self._last[name] = max(self._last.get(name, 0), index)

    def forget(self, name: str) -> None:
        """Drop the values that no operation after the one that writes `name` reads."""
        self._advance(name)
        index = next(i for i, operation in enumerate(self.network.operations) if operation.output == name)
        for known in self._real:
            for value in self._finished(known, index):
                del known[value]
        for execution in self._integer:
            for value in self._finished(execution.values, index):
                del execution.values[value]

    def _finished(self, known: Iterable[str], index: int) -> list[str]:
        """The values that no operation after the one of this index reads."""
        return [name for name in known if self._last.get(name.removesuffix(FINE), index + 1) <= index]

    def _advance(self, name: str) -> None:
        while name not in self._real[0]:
            operation = self.network.operations[self._next]
            self._next += 1
            for task, known in enumerate(self._real):
                forced = self._chosen(operation.output, task) if isinstance(operation, Route) else None
                known[operation.output] = evaluate(operation, known, task, forced)

    def _chosen(self, name: str, task: int) -> IntArray:
        own = self._integer[task * self.images : (task + 1) * self.images]
        return np.stack([known.routing(name).chosen for known in own])


FINE = ".fine"
"""suffix of the fine value beside an operand"""


def residual_range(network: Network, images: FloatArray, residuals: frozenset[str]) -> float:
    """Largest magnitude of the residual stream over all images and tasks, in the float network."""
    largest = 0.0
    last = _last_reader(network)
    for task in range(network.tasks):
        known: Values = {network.input.name: _double(images)}
        for index, operation in enumerate(network.operations):
            known[operation.output] = evaluate(operation, known, task)
            if operation.output in residuals:
                largest = max(largest, float(np.abs(_array(known[operation.output])).max()))
            for name in {n for n in reads(operation) if last[n] == index}:
                del known[name]
    return largest


def _last_reader(network: Network) -> dict[str, int]:
    """Index of the last operation that reads a value, or a selection of its rows, which is part of the reader's step."""
    last = {name: index for index, operation in enumerate(network.operations) for name in reads(operation)}
    for operation in reversed(network.operations):
        if isinstance(operation, SelectTokens):
            last[operation.input] = max(last[operation.input], last.get(operation.output, 0))
    return last


def activation(x: RealArray, form: ActivationForm) -> RealArray:
    """The activation `form` in double precision."""
    return cast(RealArray, interpreter.activation(cast(FloatArray, x), form))


def _double(images: FloatArray) -> FloatArray:
    """The images in double precision; the interpreter computes in the precision of its input."""
    return cast(FloatArray, images.astype(np.float64))


def _array(value: Value) -> RealArray:
    assert isinstance(value, np.ndarray)
    return cast(RealArray, value)


_ROWS = 8192
"""tokens, over all runs, that a calibration holds at most: more cost memory and tell little more"""


def checked(network: Network, images: FloatArray, tokens: int) -> FloatArray:
    """Calibration images `[samples, channels, height, width]`, evenly spaced among them where they are too many.

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
    count = min(len(images), max(_ROWS // (tokens * network.tasks), 1))
    return images[np.arange(count) * len(images) // count].astype(np.float32)


def random_calibration(network: Network, seed: int) -> FloatArray:
    """Images to calibrate with where there are none: those of `random_given`, `[8, channels, height, width]`."""
    return prepared(network.input, random_given(network, seed))


def random_given(network: Network, seed: int) -> npt.NDArray[Any]:
    """Smooth noise `[8, …]` of unit deviation, or of the deviation that the graph expects, as the graph takes it."""
    generator = np.random.default_rng(seed)
    channels, height, width = network.input.shape
    images = np.zeros((8, channels, height, width))
    for octave in range(4):
        cell = 1 << (2 * octave)
        rows, columns = -(-height // cell), -(-width // cell)
        coarse = generator.standard_normal((8, channels, rows, columns))
        images += np.repeat(np.repeat(coarse, cell, axis=2), cell, axis=3)[:, :, :height, :width]
    return as_given(network.input, expected(network.input, images / 2))
