"""In how many parts hidden layers must be computed for a model's activations to fit a board.

In goes an integer network of whole hidden layers, out comes a number of parts for `moehls.network.split.split_hidden`. The
memories of the split network are those of a network that has the first part of each hidden layer alone.
"""

from __future__ import annotations

from dataclasses import replace

from moehls.boards import Board
from moehls.errors import DoesNotFit
from moehls.integer.operations import (
    GatedRequantise,
    GeluRequantise,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerOperation,
    Scaling,
)
from moehls.plan.program import build_program
from moehls.plan.search import Settings, candidates, fitted, program_key, splits
from moehls.plan.steps import Program
from moehls.plan.uses import factors

PARTS = (1, 2, 4, 8, 16)


def hidden_parts(network: IntegerNetwork, board: Board, settings: Settings) -> int:
    """The user's choice, else the fewest of `PARTS` with which `network` fits `board`; 1 where none helps.

    What else may lie on the chip in parts (`moehls.plan.search.SPLITS`) does so only where hidden layers in parts are not enough.
    """
    if settings.hidden_parts is not None:
        return settings.hidden_parts
    first = [_first_part(network, parts) for parts in PARTS]
    whole, *others = splits(settings)
    for trial in (whole, *others[-1:]):  # what fits in fewer parts fits in the most
        for parts, narrow in zip(PARTS, first, strict=True):
            if _fits(narrow, board, trial):
                return parts
    return 1


def _fits(network: IntegerNetwork, board: Board, settings: Settings) -> bool:
    programs: dict[tuple[object, ...], Program] = {}
    for candidate in candidates(network, board, settings):
        key = program_key(candidate)
        if key not in programs:
            programs[key] = build_program(network, candidate)
        try:
            fitted(programs[key], candidate, board, settings)
        except DoesNotFit:
            continue
        return True
    return False


def _first_part(network: IntegerNetwork, parts: int) -> IntegerNetwork:
    """`network` with the first part of each hidden layer: of the split network's memories, not of its function."""
    if parts == 1:
        return network
    others = factors(network)
    hidden = {
        op.output: -(-len(op.weight) // parts)
        for op in network.operations
        if isinstance(op, IntegerLinear)
        if isinstance(op.epilogue, GeluRequantise | GatedRequantise) or op.output in others
    }
    return replace(network, operations=tuple(_narrowed(op, hidden, parts) for op in network.operations))


def _narrowed(op: IntegerOperation, hidden: dict[str, int], parts: int) -> IntegerOperation:
    if isinstance(op, IntegerLinear) and op.output in hidden:
        kept, epilogue = slice(hidden[op.output]), op.epilogue
        if isinstance(epilogue, GeluRequantise | GatedRequantise):
            epilogue = replace(epilogue, multiplier=epilogue.multiplier[kept])
        return replace(op, weight=op.weight[kept], scaling=_part(op.scaling, kept), epilogue=epilogue)
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
            up_weight=None if op.up_weight is None else op.up_weight[:, kept],
            up_scaling=None if op.up_scaling is None else _part(op.up_scaling, (slice(None), kept)),
        )
    return op


def _part(scaling: Scaling, kept: slice | tuple[slice, slice]) -> Scaling:
    return Scaling(scaling.bias[kept], scaling.multiplier[kept], scaling.shift[kept])
