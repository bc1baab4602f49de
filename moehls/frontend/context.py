"""What a recogniser works with: the node it reads, refusals, and the builder of network operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from moehls.frontend.builder import Builder
from moehls.frontend.values import Affine, Constant, RouteSource, Value


class UnsupportedError(Exception):
    """A node that cannot be taken: why, and what would be (the nearest supported form, what to change at export).

    `ends` where what the node writes are no tokens, so that nothing behind it is worth a refusal; `instead` is what the rest of
    the graph is read with, where that is known.
    """

    def __init__(self, reason: str, remedy: str, ends: bool = False, instead: Value | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.ends = ends
        self.instead = instead


@dataclass
class Context:
    """State of one reading of a graph."""

    builder: Builder
    opset: int
    tasks: int
    seed: int
    read: Callable[[ir.Node, list[Value]], Value | Sequence[Value] | None]
    """reads a node with other values in place of its inputs"""
    read_branch: Callable[[ir.Graph], list[Value]]
    """reads a sub-graph in the scope of the graph: the values of its outputs"""
    sources: dict[int, tuple[Affine, RouteSource]] = field(default_factory=dict)
    written_by: dict[int, ir.Node] = field(default_factory=dict)
    """the node that wrote a value, by the value's `id`"""


Result = Value | Sequence[Value] | None
Rule = Callable[[Context, ir.Node, list[Value]], Result]
"""Reads a node with the values of its inputs; None where the rule does not apply. Raises `UnsupportedError`,
`LayoutError`."""

Rules = Sequence[tuple[str, Rule]]
"""Pairs of space-separated ONNX operator names and the rule that reads them."""


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of a node's attribute, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def integers(value: Value) -> tuple[int, ...] | None:
    """The entries of a constant integer tensor, None for anything else."""
    if not isinstance(value, Constant) or not np.issubdtype(value.array.dtype, np.integer):
        return None
    return tuple(int(entry) for entry in value.array.reshape(-1))


def operator_of(node: ir.Node) -> str:
    """The operator as `RULES` names it: with its domain where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def apply(context: Context, operator: str, inputs: Sequence[Value], outputs: int = 1, **attributes: Any) -> list[Value]:
    """Read a standard node that is part of the meaning of another.

    Raises:
        UnsupportedError: no rule reads it.
    """
    names = [ir.Value(name=f"input{number}") for number in range(len(inputs))]
    written = [ir.Value(name=f"output{number}") for number in range(outputs)]
    result = context.read(ir.node(operator, names, attributes, outputs=written), list(inputs))
    if result is None:
        raise UnsupportedError(f"no supported form has its {operator} here", "export it without fused operators")
    return list(result) if isinstance(result, Sequence) else [result]


def first_line(error: Exception) -> str:
    """The first line of an error's text, for a message of ours."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
