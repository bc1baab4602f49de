"""What the host computes before and behind the machine: a few named array operations, in IEEE double precision.

In go steps and the array of one sample, out comes the result of the last step. The float model, the reference, `moehls run` and
the host driver, which has a copy of this file, compute with it. `docs/numbers.md`, section 6, says what each step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One operation. Value 0 is the sample, value n the result of the n-th step."""

    kind: str
    """a name in `MOVES`, `UNARY`, `BINARY`, `REDUCTIONS` or `OTHERS`, or `constant`"""
    inputs: tuple[int, ...] = ()
    """the values it reads"""
    integers: tuple[int, ...] = ()
    """a shape, an order of axes or an axis"""
    numbers: Array | None = None
    """of a constant"""

    def json(self) -> dict[str, Any]:
        """As a manifest has it."""
        numbers = None if self.numbers is None else self.numbers.tolist()
        return {"kind": self.kind, "inputs": list(self.inputs), "integers": list(self.integers), "numbers": numbers}


def steps_of(entries: Sequence[dict[str, Any]]) -> tuple[Step, ...]:
    """The steps of a manifest."""
    return tuple(
        Step(
            entry["kind"],
            tuple(entry["inputs"]),
            tuple(entry["integers"]),
            None if entry["numbers"] is None else np.asarray(entry["numbers"]),
        )
        for entry in entries
    )


def evaluate(steps: Sequence[Step], sample: Array) -> Array:
    """The result of the last step, `sample` in double precision where there is none; integers where a step gives them."""
    values = [np.asarray(sample, np.float64)]
    with np.errstate(all="ignore"):
        for step in steps:
            values.append(_result(step, [values[number] for number in step.inputs]))
    return values[-1]


def rounded(value: Array) -> Array:
    """A result as it is given out: reals in single precision, integers as they are."""
    return value.astype(np.float32) if np.issubdtype(value.dtype, np.floating) else value


def total(x: Array, axis: int) -> Array:
    """The sum along an axis, one element after the other; the axis stays."""
    return np.take(np.add.accumulate(x, axis=axis), [-1], axis=axis)


def softmax(x: Array, axis: int) -> Array:
    """Softmax along an axis."""
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(powers / total(powers, axis))


def best(x: Array, axis: int, count: int) -> Array:
    """Places of the `count` largest along an axis, the largest first, of equals the first."""
    order = np.argsort(-x, axis=axis, kind="stable")
    return np.take(order, np.arange(count), axis=axis).astype(np.int64)


MOVES: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, order: x.transpose(order),
    "expand": lambda x, shape: np.broadcast_to(x, shape),
}
UNARY: dict[str, Callable[[Array], Array]] = {
    "absolute": np.abs,
    "exponential": np.exp,
    "logarithm": np.log,
    "negative": np.negative,
    "root": np.sqrt,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "float": lambda x: x.astype(np.float64),
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: x.astype(np.int64),
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "multiply": np.multiply,
    "power": np.power,
    "subtract": np.subtract,
}
REDUCTIONS: dict[str, Callable[[Array, int], Array]] = {
    "length": lambda x, axis: np.sqrt(total(x * x, axis)),
    "log_softmax": lambda x, axis: np.log(softmax(x, axis)),
    "max": lambda x, axis: x.max(axis=axis, keepdims=True),
    "mean": lambda x, axis: total(x, axis) / x.shape[axis],
    "min": lambda x, axis: x.min(axis=axis, keepdims=True),
    "softmax": softmax,
    "sum": total,
}
OTHERS: dict[str, Callable[[list[Array], tuple[int, ...]], Array]] = {
    "best": lambda x, given: best(x[0], *given),
    "take": lambda x, given: np.take(x[0], given[1:], axis=given[0]),
    "take_along": lambda x, given: np.take_along_axis(x[0], x[1], axis=given[0]),
}


def _result(step: Step, inputs: list[Array]) -> Array:
    if step.kind == "constant":
        return np.asarray(step.numbers)
    if step.kind in MOVES:
        return MOVES[step.kind](inputs[0], step.integers)
    if step.kind in UNARY:
        return np.asarray(UNARY[step.kind](inputs[0]))
    if step.kind in BINARY:
        return np.asarray(BINARY[step.kind](inputs[0], inputs[1]))
    if step.kind in REDUCTIONS:
        return np.asarray(REDUCTIONS[step.kind](inputs[0], step.integers[0]))
    return OTHERS[step.kind](inputs, step.integers)
