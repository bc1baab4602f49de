"""What follows the heads: nodes between what the machine gives out and an output of the graph, as steps of the host.

In goes an output of the graph that the machine does not give out as it is; out come a matrix that it gives out and the steps from
there (`moehls.network.processing`). The nodes are followed from the output back to the first matrix that all of them can be
computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import onnx_ir as ir

from moehls.frontend.context import UnsupportedError, attribute, integers, operator_of
from moehls.frontend.layout import Array
from moehls.frontend.maps import LARGEST
from moehls.frontend.recognise.structure import chosen_indices, new_shape
from moehls.frontend.values import Affine, Constant, Value
from moehls.network.processing import Step, evaluate

_REMEDY = "end the graph at the head's outputs and compute the rest from them"
_SAME = {"Identity", "Dropout"}
_SHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
_UNARY = {
    "Abs": "absolute",
    "Exp": "exponential",
    "Log": "logarithm",
    "Neg": "negative",
    "Sigmoid": "sigmoid",
    "Sqrt": "root",
    "Tanh": "tanh",
}
_BINARY = {
    "Add": "add",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Mul": "multiply",
    "Pow": "power",
    "Sub": "subtract",
}
_REDUCTIONS = {
    "ReduceL2": "length",
    "ReduceMax": "max",
    "ReduceMean": "mean",
    "ReduceMin": "min",
    "ReduceSum": "sum",
    "ReduceSumSquare": "sum",
}
_TYPES = {
    ir.DataType.FLOAT: "float",
    ir.DataType.DOUBLE: "float",
    ir.DataType.INT32: "int32",
    ir.DataType.INT64: "int64",
}
_MOST_NUMBERS = 1 << 16
"""of all constants of an output; more is no elementwise operation on it"""


class Tail:
    """The steps from one matrix of the machine to an output."""

    def __init__(self, values: dict[ir.Value, Value], machine: Callable[[Value], Affine | None], opset: int) -> None:
        """`machine` gives the plain rows of a value that the machine can give out, None of any other."""
        self._values, self._machine, self._opset = values, machine, opset
        self._numbers: dict[ir.Value, int] = {}
        self.steps: list[Step] = []
        self.rows: Affine | None = None
        """the matrix, seen in the shape that the first step gives it"""
        self.tensor = ""
        """of the graph, which holds the matrix"""
        self.nodes: list[ir.Node] = []
        """that the steps stand for"""

    def number(self, value: ir.Value | None) -> int:
        """The number of the step that computes a tensor of the graph.

        Raises:
            UnsupportedError: no step does, or two matrices of the machine would be needed.
        """
        if value is None:
            raise UnsupportedError("an input behind the heads is missing", _REMEDY)
        if value not in self._numbers:
            self._numbers[value] = self._read(value)
        return self._numbers[value]

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The shape of a tensor, by computing it of zeros."""
        number = self.number(value)
        assert self.rows is not None or self.steps
        zeros = np.zeros((1, 1)) if self.rows is None else np.zeros(self.rows.layout.features * self.rows.layout.tokens)
        return evaluate(self.steps[:number], zeros).shape

    def _read(self, value: ir.Value) -> int:
        known = self._values.get(value)
        if isinstance(known, Constant):
            numbers = known.array
            if numbers.size > _MOST_NUMBERS or numbers.dtype.kind not in "fiu":
                raise UnsupportedError("behind the heads stands a constant that is no gain or offset", _REMEDY)
            return self._step("constant", numbers=numbers.astype(np.float64 if numbers.dtype.kind == "f" else np.int64))
        rows = None if known is None else self._machine(known)
        if rows is not None:
            if self.rows is not None:
                raise UnsupportedError(
                    "an output is computed from two matrices behind the last operation that the machine has", _REMEDY
                )
            self.rows, self.tensor = rows, value.name or ""
            return self._step("reshape", 0, integers=rows.layout.shape)
        node = value.producer()
        if node is None:
            raise UnsupportedError("an output is computed from an input of the graph", _REMEDY)
        found = self._node(node, value)
        if node not in self.nodes:
            self.nodes.append(node)
        return found

    def _step(self, kind: str, *read: int, integers: tuple[int, ...] = (), numbers: Array | None = None) -> int:
        self.steps.append(Step(kind, read, integers, numbers))
        return len(self.steps)

    def _node(self, node: ir.Node, value: ir.Value) -> int:
        op = node.op_type
        if operator_of(node) != op:
            raise UnsupportedError(f"the host has no step for {operator_of(node)} behind the heads", _REMEDY)
        if op in _SAME:
            return self.number(node.inputs[0])
        if op in _UNARY:
            return self._step(_UNARY[op], self.number(node.inputs[0]))
        if op in ("Relu", "Clip"):
            return self._clip(node)
        if op == "Reciprocal":
            return self._step("divide", self._step("constant", numbers=np.ones(())), self.number(node.inputs[0]))
        if op in _BINARY and len(node.inputs) == 2:
            left, right = (self.number(item) for item in node.inputs)
            return self._step(_BINARY[op], left, right)
        if op == "Cast":
            kind = _TYPES.get(ir.DataType(attribute(node, "to", 0)))
            if kind is None:
                raise UnsupportedError("an output is cast to a type that the host does not give", _REMEDY)
            return self._step(kind, self.number(node.inputs[0]))
        return self._axes(node, value)

    def _axes(self, node: ir.Node, value: ir.Value) -> int:
        """Operations that have axes or shapes."""
        op = node.op_type
        number, shape = self.number(node.inputs[0]), self.shape(node.inputs[0])
        rank = len(shape)
        given = [
            self._values.get(item, Constant(np.zeros(0))) if item else Constant(np.zeros(0)) for item in node.inputs
        ]
        if op in _SHAPES:
            return self._step("reshape", number, integers=new_shape(node, shape, given, self._opset))
        if op == "Transpose":
            order = tuple(attribute(node, "perm", None) or reversed(range(rank)))
            return self._step("transpose", number, integers=order)
        if op == "Expand":
            target = np.broadcast_shapes(shape, integers(given[1]) or ())
            if prod(target) > LARGEST:
                raise UnsupportedError("an output is expanded to an enormous size", _REMEDY)
            return self._step("expand", number, integers=target)
        if op in ("Softmax", "LogSoftmax"):
            axis = attribute(node, "axis", -1 if self._opset >= 13 else 1) % rank
            if self._opset < 13 and axis != rank - 1:
                raise UnsupportedError("a softmax over several dimensions", "export with opset 13 or later")
            return self._step("softmax" if op == "Softmax" else "log_softmax", number, integers=(axis,))
        if op == "LpNormalization" and attribute(node, "p", 2) == 2:
            length = self._step("length", number, integers=(attribute(node, "axis", -1) % rank,))
            return self._step("divide", number, length)
        if op in _REDUCTIONS:
            return self._reduce(node, number, shape, given)
        if op == "ArgMax" and not attribute(node, "select_last_index", 0):
            axis = attribute(node, "axis", 0) % rank
            found = self._step("best", number, integers=(axis, 1))
            return found if attribute(node, "keepdims", 1) else self._without(found, shape, (axis,))
        if op == "TopK" and attribute(node, "largest", 1):
            axis, count = attribute(node, "axis", -1) % rank, integers(given[1])
            if count is not None and 1 <= count[0] <= shape[axis]:
                places = self._step("best", number, integers=(axis, count[0]))
                return (
                    places if value is node.outputs[1] else self._step("take_along", number, places, integers=(axis,))
                )
        if op in ("Slice", "Gather") and all(isinstance(item, Constant) for item in given[1:]):
            return self._take(node, number, shape, given)
        raise UnsupportedError(f"the host has no step for this {op} behind the heads", _REMEDY)

    def _without(self, number: int, shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
        return self._step(
            "reshape", number, integers=tuple(size for axis, size in enumerate(shape) if axis not in axes)
        )

    def _reduce(self, node: ir.Node, number: int, shape: tuple[int, ...], given: list[Value]) -> int:
        rank = len(shape)
        listed = integers(given[1]) if len(given) > 1 else attribute(node, "axes", None)
        axes = tuple(sorted(int(axis) % rank for axis in (listed or range(rank))))
        if node.op_type == "ReduceSumSquare":
            number = self._step("multiply", number, number)
        if node.op_type == "ReduceL2" and len(axes) > 1:
            raise UnsupportedError("the length of a whole matrix is no step of the host", _REMEDY)
        for axis in axes:
            number = self._step(_REDUCTIONS[node.op_type], number, integers=(axis,))
        return number if attribute(node, "keepdims", 1) else self._without(number, shape, axes)

    def _clip(self, node: ir.Node) -> int:
        number = self.number(node.inputs[0])
        if node.op_type == "Relu":
            return self._step("maximum", number, self._step("constant", numbers=np.zeros(())))
        for place, name, kind in ((1, "min", "maximum"), (2, "max", "minimum")):
            bound = node.inputs[place] if len(node.inputs) > place else None
            if bound is not None:
                number = self._step(kind, number, self.number(bound))
            elif name in node.attributes:
                constant = self._step("constant", numbers=np.asarray(float(node.attributes[name].value)))
                number = self._step(kind, number, constant)
        return number

    def _take(self, node: ir.Node, number: int, shape: tuple[int, ...], given: list[Value]) -> int:
        if node.op_type == "Gather":
            assert isinstance(given[1], Constant)
            axis, places = attribute(node, "axis", 0) % len(shape), given[1].array.astype(np.int64)
            if places.ndim > 1:
                raise UnsupportedError("places of an output are gathered by a matrix", _REMEDY)
            found = self._step("take", number, integers=(axis, *(places.reshape(-1) % shape[axis]).tolist()))
            return found if places.ndim else self._without(found, shape, (axis,))
        for axis, size in enumerate(shape):
            chosen = chosen_indices(node, [Constant(np.zeros(shape)), *given[1:]], axis, size, self._opset)
            if not np.array_equal(chosen, np.arange(size)):
                number = self._step("take", number, integers=(axis, *chosen.tolist()))
        return number
