"""The fixtures, and edits of their graphs for tests of refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import helper

from moehls.frontend import Refusal, inspect_model

FIXTURES = Path(__file__).parent / "fixtures"
Edit = Callable[[onnx.GraphProto], None]


def fixture(name: str) -> Path:
    return FIXTURES / f"{name}.onnx"


def names() -> list[str]:
    return sorted(path.stem for path in FIXTURES.glob("*.onnx"))


def edited(name: str, folder: Path, edit: Edit) -> Path:
    """A copy of a fixture with its graph changed by `edit`."""
    model = onnx.load(str(fixture(name)))
    edit(model.graph)
    path = folder / "edited.onnx"
    onnx.save(model, str(path))
    return path


def nodes(graph: onnx.GraphProto, op: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == op]


def insert_after(graph: onnx.GraphProto, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
    """Put `new` between `node` and what reads it; `new` must read `node`'s first output."""
    old = node.output[0]
    new.output[:] = [f"{old}_new"]
    for other in graph.node:
        other.input[:] = [new.output[0] if name == old else name for name in other.input]
    new.input[0] = old
    graph.node.insert(list(graph.node).index(node) + 1, new)


def set_weight(graph: onnx.GraphProto, index: int, change: Callable[[onnx.TensorProto], onnx.TensorProto]) -> None:
    tensor = graph.initializer[index]
    replaced = change(tensor)
    replaced.name = tensor.name
    tensor.CopyFrom(replaced)


def refusals(name: str, folder: Path, edit: Callable[[onnx.GraphProto], None]) -> tuple[Refusal, ...]:
    inspection = inspect_model(edited(name, folder, edit), {})
    assert inspection.summary is None
    return inspection.unsupported


def activation(graph: onnx.GraphProto, op: str) -> None:
    """Put an activation in the place of the first MLP's."""
    gelu = next(node for node in graph.node if node.op_type in ("Gelu", "Erf"))
    first = next(node for node in graph.node if node.op_type == "Div") if gelu.op_type == "Erf" else gelu
    last = gelu
    while gelu.op_type == "Erf" and last.op_type not in ("MatMul", "Gemm"):
        end, last = last, next(node for node in graph.node if last.output[0] in node.input)
    output = gelu.output[0] if gelu.op_type == "Gelu" else end.output[0]
    new = helper.make_node(op, [first.input[0]], [f"{output}_replaced"], name="activation")
    graph.node.insert(list(graph.node).index(first), new)
    for node in graph.node:
        node.input[:] = [new.output[0] if name == output else name for name in node.input]
