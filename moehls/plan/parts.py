"""In how many parts hidden layers must be computed for a model's activations to fit a board.

In goes an integer network of whole hidden layers, out comes a number of parts for `moehls.network.split.split_hidden`. The
memories of the split network are those of a network that has the first part of each hidden layer alone.
"""

from __future__ import annotations

from dataclasses import replace

from moehls.boards import Board
from moehls.errors import DoesNotFit
from moehls.integer.operations import (
    GeluRequantise,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerOperation,
    Scaling,
)
from moehls.plan.program import build_program
from moehls.plan.search import Settings, candidates, fitted
from moehls.plan.steps import Program

PARTS = (1, 2, 4, 8, 16)


def hidden_parts(network: IntegerNetwork, board: Board, settings: Settings) -> int:
    """The user's choice, else the fewest of `PARTS` with which `network` fits `board`; 1 where none helps."""
    if settings.hidden_parts is not None:
        return settings.hidden_parts
    return next((parts for parts in PARTS if _fits(_first_part(network, parts), board, settings)), 1)


def _fits(network: IntegerNetwork, board: Board, settings: Settings) -> bool:
    programs: dict[tuple[int, int], Program] = {}
    for candidate in candidates(network, board, settings):
        parallelism = candidate.token_parallel, candidate.block
        if parallelism not in programs:
            programs[parallelism] = build_program(network, candidate)
        try:
            fitted(programs[parallelism], candidate, board, settings)
        except DoesNotFit:
            continue
        return True
    return False


def _first_part(network: IntegerNetwork, parts: int) -> IntegerNetwork:
    """`network` with the first part of each hidden layer: of the split network's memories, not of its function."""
    if parts == 1:
        return network
    hidden = {
        op.output: -(-len(op.weight) // parts)
        for op in network.operations
        if isinstance(op, IntegerLinear) and isinstance(op.epilogue, GeluRequantise)
    }
    return replace(network, operations=tuple(_narrowed(op, hidden, parts) for op in network.operations))


def _narrowed(op: IntegerOperation, hidden: dict[str, int], parts: int) -> IntegerOperation:
    if isinstance(op, IntegerLinear) and isinstance(op.epilogue, GeluRequantise):
        kept = slice(hidden[op.output])
        gelu = replace(op.epilogue, multiplier=op.epilogue.multiplier[kept])
        return replace(op, weight=op.weight[kept], scaling=_part(op.scaling, kept), epilogue=gelu)
    if isinstance(op, IntegerLinear) and op.input in hidden:
        return replace(op, weight=op.weight[:, : hidden[op.input]])
    if isinstance(op, IntegerExperts):
        kept = slice(-(-op.first_weight.shape[1] // parts))
        return replace(
            op,
            first_weight=op.first_weight[:, kept],
            first_scaling=_part(op.first_scaling, (slice(None), kept)),
            gelu=replace(op.gelu, multiplier=op.gelu.multiplier[:, kept]),
            second_weight=op.second_weight[:, :, kept],
        )
    return op


def _part(scaling: Scaling, kept: slice | tuple[slice, slice]) -> Scaling:
    return Scaling(scaling.bias[kept], scaling.multiplier[kept], scaling.shift[kept])
