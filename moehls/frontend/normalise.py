"""Brings a graph to one level: functions inlined, duplicates merged, unused nodes gone, shapes inferred.

Constants, shape chains, Identity, Dropout and zero noise need no rewriting here: the reader folds them as it meets
them.
"""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    InlinePass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
    TopologicalSortPass,
)

from moehls.errors import MoehlsError


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
        ShapeInferencePass(),
    )
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it logs what is raised, or is of no matter here
    for step in passes:
        try:
            model = step(model).model
        except Exception as error:
            if isinstance(step, ShapeInferencePass):
                break  # shapes serve messages only
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise MoehlsError(f"{name}: the graph is inconsistent ({reason}); export it again") from error
    return model
