"""Reads a normalised graph node by node into a `Network`, and lists every node that cannot be read.

A refused node does not stop the reading: where its output is still a matrix of the same tokens, the rest of the graph
is read as if it were, so that all refusals are shown at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from moehls.errors import MoehlsError
from moehls.frontend.builder import Builder, RoutingError
from moehls.frontend.context import Context, Result, UnsupportedError, attribute, first_line, operator_of
from moehls.frontend.evaluate import NodeEvaluator
from moehls.frontend.image import image_pixels, network_input
from moehls.frontend.layout import Layout, LayoutError, axes_of
from moehls.frontend.load import Inputs
from moehls.frontend.maps import LARGEST, rows
from moehls.frontend.nearest import GENERAL, ROUTING, describe, nearest
from moehls.frontend.recognise import rules_by_operator
from moehls.frontend.recognise.patch_embedding import token_matrix
from moehls.frontend.recognise.routing import sampled
from moehls.frontend.recognise.structure import TOKENS
from moehls.frontend.residuals import chained, norms_behind_linears, readers_in_time, rows_of_streams, streams_of_norms
from moehls.frontend.tail import Tail
from moehls.frontend.values import (
    Affine,
    Base,
    Constant,
    Dispatched,
    Hidden,
    Mixture,
    Noise,
    Normalised,
    Patches,
    PerTask,
    Pointwise,
    Routed,
    RouteSource,
    Sum,
    Unknown,
    Value,
    shape_of,
)
from moehls.heap import give_back
from moehls.network.interpreter import reads
from moehls.network.operations import Experts, Linear, Network, NetworkOutput, Operation, of_experts

_RANDOM = {"RandomNormalLike", "RandomUniformLike", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}
_QUANTISE = {"QuantizeLinear", "DequantizeLinear"}
_MALFORMED = (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError, MemoryError)
"""What reading a node with the wrong inputs or shapes can raise."""


@dataclass(frozen=True)
class Refusal:
    """A node that could not be read."""

    name: str
    op: str
    shapes: tuple[tuple[int, ...] | None, ...]
    """of the inputs; None where not known"""
    scope: str
    """module path from the exporter, empty where it left none"""
    reason: str
    remedy: str

    def __str__(self) -> str:
        shapes = ", ".join("?" if shape is None else str(list(shape)) for shape in self.shapes)
        scope = f" in {self.scope}" if self.scope else ""
        return f"{self.op} {self.name!r}{scope} on {shapes}: {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class Reading:
    """The outcome: a network, or the refusals that prevent it."""

    network: Network | None
    refusals: tuple[Refusal, ...]
    routers: Mapping[str, RouteSource]
    """what each Route of the network was recognised from"""
    probes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """names in the graph of values of the network `[tokens, channels]`: sums of experts and of branches"""


def read_graph(model: ir.Model, inputs: Inputs, opset: int, name: str, seed: int) -> Reading:
    """Recognise and lower a model's graph; reads it again once the number of tasks is known."""
    reader = _Reader(model, inputs, opset, name, seed, tasks=inputs.tasks or 1)
    reading, found = reader.read(), reader.task_sizes
    if inputs.task is not None and not inputs.tasks and found:
        del reader, reading
        give_back()  # a copy of the weights
        reading = _Reader(model, inputs, opset, name, seed, tasks=min(found)).read()
    return reading


def scope_of(node: ir.Node) -> str:
    """The module path: dynamo's metadata, or the node's name as TorchScript writes it."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    if scopes:
        names = [part.strip(" '\"[]") for part in scopes.split(",")]
        return next((part for part in reversed(names[:-1]) if part), "")
    return "/".join((node.name or "").strip("/").split("/")[:-1])


class _Reader:
    def __init__(self, model: ir.Model, inputs: Inputs, opset: int, name: str, seed: int, tasks: int) -> None:
        self._model, self._graph, self._inputs, self._name = model, model.graph, inputs, name
        self._context = Context(Builder(inputs.image, tasks), opset, tasks, seed, self._try, self._read_branch)
        self._rules = rules_by_operator()
        self._values: dict[ir.Value, Value] = {}
        self._refusals: dict[ir.Node | ir.Value, Refusal] = {}
        """of nodes and of outputs"""
        self._heads: dict[str, str] = {}
        """tensors of the graph that the host computes outputs from, by the value's name"""
        self._tokens = 2
        """the largest number of tokens seen"""
        self._channels: set[int] = set()
        """of token matrices seen"""
        self.task_sizes: set[int] = set()

    def read(self) -> Reading:
        self._start()
        for node in self._graph:
            self._read_node(node)
        outputs = [self._output(value) for value in self._graph.outputs]
        if self._refusals:
            return Reading(None, tuple(self._refusals.values()), {})
        shown = {output.value for output in outputs if output}
        used = _used(self._context.builder.operations, set(shown))
        operations = norms_behind_linears(readers_in_time(rows_of_streams(streams_of_norms(chained(used, shown)))))
        written = {self._inputs.image, *(operation.output for operation in operations)}
        experts = [operation.output for operation in operations if isinstance(operation, Experts)]
        written |= {of_experts(name, role) for name in experts for role in ("hidden", "up")}
        network = Network(
            name=self._name,
            input=network_input(self._inputs, self._context.builder.image_norm),
            operations=operations,
            outputs=tuple(output for output in outputs if output),
            tasks=self._context.tasks,
            task_input=self._inputs.task if self._context.tasks > 1 else None,
            lattices={name: own for name, own in self._context.builder.lattices.items() if name in written},
        )
        return Reading(network, (), self._context.builder.routers, self._probes(written))

    def _probes(self, written: set[str]) -> dict[str, tuple[str, ...]]:
        """The values whose rows are those of a tensor of the graph."""
        found: dict[str, tuple[str, ...]] = {name: (tensor,) for name, tensor in self._heads.items()}
        for tensor, value in self._values.items():
            known = self._context.builder.known(value) if isinstance(value, Mixture | Sum) else None
            if known is None or known.base.name not in written:
                continue
            kinds = [axis.token for axis in known.layout.axes]
            if all(left or not right for left, right in pairwise(kinds)):
                found[known.base.name] = (*found.get(known.base.name, ()), tensor.name or "")
        return found

    def _read_branch(self, graph: ir.Graph) -> list[Value]:
        self._read_weights(graph)
        for node in graph:
            self._read_node(node)
        return [self._values.get(output, Unknown()) for output in graph.outputs]

    def _read_weights(self, graph: ir.Graph) -> None:
        for value in graph.initializers.values():
            assert value.const_value is not None
            self._values[value] = Constant(value.const_value.numpy())

    def _start(self) -> None:
        self._read_weights(self._graph)
        for value in self._graph.inputs:
            if value.name == self._inputs.image and self._inputs.tokens:
                self._values[value] = token_matrix(*self._inputs.image_shape[1:])
            elif value.name == self._inputs.image:
                self._values[value] = image_pixels(self._inputs, len(value.shape or ()))
            elif value.name == self._inputs.task:
                count = self._context.tasks
                table = np.eye(count, dtype=np.float32) if self._inputs.one_hot else np.arange(count, dtype=np.int64)
                self._values[value] = PerTask(table.reshape(count, *(value.shape.numpy() if value.shape else ())))

    def _read_node(self, node: ir.Node) -> None:
        inputs = [Constant(np.zeros(0, np.float32)) if value is None else self._values[value] for value in node.inputs]
        try:
            result = self._try(node, inputs)
            if result is None and (operator_of(node) not in self._rules or not any(map(_is_stand_in, inputs))):
                kinds = ", ".join(describe(value) for value in inputs)
                raise UnsupportedError(f"no supported form has it here (it reads {kinds})", nearest(inputs))
            if result is None:
                result = [self._recover(output) for output in node.outputs]
        except _MALFORMED as error:
            self._refuse(
                node, inputs, UnsupportedError(f"its shapes do not fit ({first_line(error)})", nearest(inputs))
            )
            result = [Unknown() for _ in node.outputs]
        except (UnsupportedError, LayoutError) as refusal:
            if not any(isinstance(value, Unknown) for value in inputs):
                self._refuse(node, inputs, refusal)
            ends = isinstance(refusal, UnsupportedError) and refusal.ends
            choice = node.op_type == "TopK" or ends  # nothing that reads it is tokens
            instead = _instead(inputs, refusal)
            if node.op_type == "LayerNormalization" and not self._channels:
                self._begin(node)
            result = [Unknown() if choice else self._recover(output) for output in node.outputs]
            result = result if instead is None else [instead, *result[1:]]
        values: list[Value] = list(result) if isinstance(result, Sequence) else [result]
        for output, value in zip(node.outputs, values, strict=False):
            self._values[output] = value
            self._context.written_by.setdefault(id(value), node)
            if isinstance(value, TOKENS):
                self._tokens = max(self._tokens, value.layout.tokens)
            if isinstance(value, Normalised | Affine):
                self._channels.add(value.base.channels)
            if isinstance(value, Patches):
                self._channels.add(value.layout.features)
        for output in node.outputs[len(values) :]:
            self._values[output] = Unknown()

    def _try(self, node: ir.Node, inputs: list[Value]) -> Result:
        fixed = not isinstance(inputs[0], Routed) if inputs else False
        if node.op_type in ("Shape", "Size") and fixed and (shape := shape_of(inputs[0])) is not None:
            whole = np.asarray(shape, np.int64)
            if node.op_type == "Size":
                return Constant(np.asarray(np.prod(whole)))
            return Constant(whole[attribute(node, "start", 0) : attribute(node, "end", None)])
        if node.op_type == "Slice" and _only_shape_is_read(node) and isinstance(inputs[0], TOKENS):
            zeros = np.broadcast_to(np.float32(0), inputs[0].layout.shape)
            return self._fold(node, [Constant(zeros), *inputs[1:]])
        if node.op_type in _RANDOM:
            shape = shape_of(inputs[0]) if inputs else tuple(attribute(node, "shape", ()))
            return Unknown() if shape is None else Noise(shape)
        if any(isinstance(value, Noise) for value in inputs):
            return _noise(node, inputs)
        if node.op_type != "If" and all(isinstance(value, (Constant, PerTask)) for value in inputs):
            return self._fold(node, inputs)
        for rule in self._rules.get(operator_of(node), ()):
            result = rule(self._context, node, inputs)
            if result is not None:
                return result
        return sampled(self._context, node, inputs)

    def _fold(self, node: ir.Node, inputs: list[Value]) -> Result:
        """Evaluate a node of constants, once for each task where it reads the task."""
        evaluate = NodeEvaluator(node, self._context.opset)
        given = [None if value is None else inputs[i] for i, value in enumerate(node.inputs)]
        if not any(isinstance(value, PerTask) for value in given):
            return [
                Constant(array)
                for array in evaluate([value.array if isinstance(value, Constant) else None for value in given])
            ]
        self._note_task_size(node, inputs)
        results = [
            evaluate(
                [
                    value.table[task]
                    if isinstance(value, PerTask)
                    else value.array
                    if isinstance(value, Constant)
                    else None
                    for value in given
                ]
            )
            for task in range(self._context.tasks)
        ]
        return [PerTask(np.stack([result[i] for result in results])) for i in range(len(results[0]))]

    def _note_task_size(self, node: ir.Node, inputs: list[Value]) -> None:
        """A table indexed by the task has an entry for each task."""
        if node.op_type == "Gather" and isinstance(inputs[0], Constant) and isinstance(inputs[1], PerTask):
            self.task_sizes.add(inputs[0].array.shape[attribute(node, "axis", 0)])
        if node.op_type == "OneHot" and isinstance(inputs[0], PerTask) and isinstance(inputs[1], Constant):
            self.task_sizes.add(int(inputs[1].array.reshape(-1)[0]))
        if node.op_type == "Equal":
            self.task_sizes |= {
                value.array.size for value in inputs if isinstance(value, Constant) and value.array.size > 1
            }

    def _refuse(self, node: ir.Node, inputs: list[Value], refusal: UnsupportedError | LayoutError) -> None:
        """Note a refusal, of a sum of experts at the node that wrote it."""
        cause = self._context.written_by.get(id(refusal.mixture)) if isinstance(refusal, RoutingError) else None
        if cause is not None and cause is not node:
            node, inputs = cause, [self._values[value] for value in cause.inputs if value is not None]
        near = ROUTING if isinstance(refusal, RoutingError) else nearest(inputs)
        remedy = refusal.remedy if isinstance(refusal, UnsupportedError) else near
        shapes = tuple(shape_of(value) for value in inputs)
        found = Refusal(node.name or "", node.op_type, shapes, scope_of(node), str(refusal), remedy)
        if found not in self._refusals.values():
            self._refusals[node] = found

    def _begin(self, node: ir.Node) -> None:
        """Take what a first normalisation writes for the tokens, where the patch embedding could not be read."""
        shape = self._inferred_shapes.get(node.outputs[0].name or "", ())
        if len(shape) == 3 and shape[1] > 1:
            self._tokens, self._channels = shape[1], {shape[2]}

    def _recover(self, output: ir.Value) -> Value:
        """A stand-in for the output of a refused node: plain tokens where the shape is that of tokens known, else unknown."""
        shape = self._inferred_shapes.get(output.name or "")
        if shape is None:
            return Unknown()
        spans = [(i, j) for i in range(len(shape)) for j in range(i + 1, len(shape) + 1)]
        found = [span for span in spans if prod(shape[slice(*span)]) == self._tokens and min(shape[slice(*span)]) > 1]
        if not found or prod(shape) > LARGEST:
            return Unknown(shape)
        layout = Layout(tuple(axes_of(size, found[0][0] <= dim < found[0][1]) for dim, size in enumerate(shape)))
        if layout.features not in self._channels:
            return Unknown(shape)
        return rows(Base(f"refused {output.name}", layout.tokens, layout.features, stand_in=True), layout)

    @cached_property
    def _inferred_shapes(self) -> dict[str, tuple[int, ...]]:
        """The static shapes ONNX infers, by value name; needed only once a node is refused."""
        try:
            inferred = onnx.shape_inference.infer_shapes(ir.to_proto(self._model), data_prop=True).graph
        except Exception:  # shapes serve the recovery from a refusal only
            return {}
        shapes: dict[str, tuple[int, ...]] = {}
        for info in inferred.value_info:
            dims = info.type.tensor_type.shape.dim
            if all(dim.dim_value > 0 for dim in dims):
                shapes[info.name] = tuple(dim.dim_value for dim in dims)
        return shapes

    def _output(self, output: ir.Value) -> NetworkOutput | None:
        value = self._values.get(output, Unknown())
        try:
            plain = self._given_out(value)
            if plain is not None:
                return NetworkOutput(output.name or "", plain.base.name, plain.layout.shape)
            tail = Tail(self._values, self._given_out, self._context.opset)
            tail.number(output)
            if tail.rows is None:
                raise UnsupportedError("it is no function of the image", GENERAL)
            for done in tail.nodes:
                self._refusals.pop(done, None)
            self._heads[tail.rows.base.name] = tail.tensor
            return NetworkOutput(output.name or "", tail.rows.base.name, tail.shape(output), tuple(tail.steps))
        except (UnsupportedError, LayoutError, *_MALFORMED) as refusal:
            if self._refusals and (isinstance(value, Unknown) or _is_stand_in(value)):
                return None
            remedy = refusal.remedy if isinstance(refusal, UnsupportedError) else GENERAL
            reason = f"the output is {describe(value)}, not a matrix of tokens; {refusal}"
            node = output.producer()
            scope = scope_of(node) if node is not None else ""
            self._refusals[output] = Refusal(output.name or "", "output", (shape_of(value),), scope, reason, remedy)
            return None

    def _given_out(self, value: Value) -> Affine | None:
        """The plain rows of a matrix of tokens that the machine can give out; None of anything else."""
        makers = {operation.output: operation for operation in self._context.builder.operations}
        if not isinstance(value, TOKENS) or isinstance(value, Pointwise | Hidden):
            return None
        if isinstance(value, Normalised) and isinstance(makers.get(value.base.name), Linear):
            return None  # a head's output over its length
        try:
            plain = self._context.builder.materialise(value)
        except LayoutError:
            return None
        kinds = [axis.token for axis in plain.layout.axes]
        if plain.base.stand_in or any(not left and right for left, right in pairwise(kinds)):
            return None
        return plain


def _instead(inputs: list[Value], refusal: UnsupportedError | LayoutError) -> Value | None:
    """What the rest is read with: what the refusal knows, or some activation of rows whose number nobody knows."""
    if isinstance(refusal, UnsupportedError) and refusal.instead is not None:
        return refusal.instead
    rows = inputs[0] if len(inputs) == 1 else None
    if isinstance(rows, Dispatched) and isinstance(rows.rows, Affine):
        return replace(rows, rows=Hidden(rows.rows, "exact"))
    return None


def _only_shape_is_read(node: ir.Node) -> bool:
    """Whether a node serves other nodes' shapes only, as a slice TorchScript writes before a scatter."""
    users = [use.node for output in node.outputs for use in output.uses()]
    return (
        bool(users)
        and all(user.op_type == "Shape" or (user.op_type in _QUANTISE and _only_shape_is_read(user)) for user in users)
        and not any(output.is_graph_output() for output in node.outputs)
    )


def _noise(node: ir.Node, inputs: list[Value]) -> Result:
    """Noise times zero is zero, times another constant still noise; any other use of noise is refused."""
    shape = np.broadcast_shapes(*(shape_of(value) or () for value in inputs))
    constants = [value.array for value in inputs if isinstance(value, Constant)]
    if node.op_type == "Mul" and constants:
        return Noise(shape) if constants[0].any() else Constant(np.zeros(shape, np.float32))
    rest = [value for value in inputs if shape_of(value) == shape and not isinstance(value, Noise)]
    instead = rest[0] if node.op_type == "Add" and rest else None
    raise UnsupportedError(
        "random noise takes part in the result", "export in eval mode (model.eval())", instead=instead
    )


def _is_stand_in(value: Value) -> bool:
    return isinstance(value, Affine) and value.base.stand_in


def _used(operations: list[Operation], wanted: set[str]) -> tuple[Operation, ...]:
    """The operations that reach an output."""
    kept: list[Operation] = []
    for operation in reversed(operations):
        if operation.output in wanted:
            kept.append(operation)
            wanted |= set(reads(operation))
    return tuple(reversed(kept))


def refused(refusals: tuple[Refusal, ...], path: Path) -> MoehlsError:
    """One error that lists every refused node."""
    count = f"{len(refusals)} nodes cannot be read" if len(refusals) != 1 else "a node cannot be read"
    return MoehlsError(f"{path}: {count}:\n" + "\n".join(f"  {refusal}" for refusal in refusals))
