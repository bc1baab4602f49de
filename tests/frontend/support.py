"""The fixtures, and edits of their graphs for tests of refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

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
