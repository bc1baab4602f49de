"""A network as text, one operation a line, for people and for tests that compare structure."""

from __future__ import annotations

import dataclasses

import numpy as np

from moehls.network.interpreter import reads
from moehls.network.operations import Network, Operation
from moehls.network.shapes import Shape, value_shapes


def print_network(network: Network) -> str:
    """The network's operations with shapes and attributes."""
    shapes = value_shapes(network)
    task = f", task {_quoted(network.task_input)} of {network.tasks}" if network.task_input else ""
    lines = [
        f"network {_quoted(network.name)}: image {_quoted(network.input.name)} {_sizes(network.input.shape)}{task}"
    ]
    lines += [_line(operation, shapes) for operation in network.operations]
    lines += [f"output {_quoted(output.name)} {_sizes(output.shape)} = {output.value}" for output in network.outputs]
    return "\n".join(lines) + "\n"


def _line(operation: Operation, shapes: dict[str, Shape]) -> str:
    shape = shapes[operation.output]
    links = {"name", "output", "input", "left", "right", "query", "key", "value", "routing"}
    details: list[str] = []
    for field in dataclasses.fields(operation):
        value = getattr(operation, field.name)
        if isinstance(value, np.ndarray):
            details.append(f"{field.name} {_sizes(value.shape)}")
        elif field.name not in links and value is not None:
            details.append(f"{field.name} {value:g}" if isinstance(value, float) else f"{field.name} {value}")
    kind = type(operation).__name__
    text = f"  {operation.output} [{shape.tokens}, {shape.channels}] = {kind}({', '.join(reads(operation))})"
    return text + (f"  {', '.join(details)}" if details else "")


def _sizes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _quoted(name: str | None) -> str:
    """Names from the graph may hold anything; they print as one line."""
    return repr(name)
