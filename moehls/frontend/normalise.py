"""Brings a graph to one level: functions inlined, duplicates merged, unused nodes gone.

Constants, shape chains, Identity, Dropout and zero noise need no rewriting here: the reader folds them as it meets
them.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)

from moehls.errors import MoehlsError
from moehls.frontend.context import first_line


def normalise(model: ir.Model, name: str) -> ir.Model:
    """The same model, with one flat graph in topological order.

    Raises:
        MoehlsError: the graph is inconsistent (a cycle, a missing value, recursive functions).
    """
    passes = (
        InlinePass(),
        RemoveInitializersFromInputsPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        TopologicalSortPass(),
    )
    for step in passes:
        try:
            model = step(model).model
        except Exception as error:
            raise MoehlsError(f"{name}: the graph is inconsistent ({first_line(error)}); export it again") from error
    return model
