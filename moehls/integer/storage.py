"""The integer network on disk: in goes a network or a path, out comes one deterministic `.npz` or the network."""

from __future__ import annotations

from pathlib import Path

from moehls import serialize
from moehls.errors import MoehlsError
from moehls.integer import operations
from moehls.integer.operations import IntegerNetwork
from moehls.integer.precision import Precision
from moehls.integer.validate import check
from moehls.network.processing import Step

_CLASSES = (
    operations.AddResidual,
    operations.Format,
    operations.GatedRequantise,
    operations.GeluRequantise,
    operations.IntegerAttention,
    operations.IntegerConstant,
    operations.IntegerEmbed,
    operations.IntegerExperts,
    operations.IntegerInput,
    operations.IntegerLinear,
    operations.IntegerNetwork,
    operations.IntegerNorm,
    operations.IntegerOutput,
    operations.IntegerPool,
    operations.IntegerRoute,
    operations.Raw,
    operations.Requantise,
    operations.Scaling,
    operations.ScoreBias,
    operations.Widen,
    Precision,
    Step,
)


def save(path: Path, network: IntegerNetwork) -> None:
    """Write `network` to `path`; the same network gives the same bytes."""
    serialize.save(path, network)


def load(path: Path) -> IntegerNetwork:
    """Read and check what `save` wrote.

    Raises:
        MoehlsError: the file is missing, damaged, of another version, or its network breaks an invariant.
    """
    try:
        network = serialize.load(path, _CLASSES)
    except TypeError as error:
        raise MoehlsError(f"{path}: written by another version of moehls ({error}); compile the model again") from error
    if not isinstance(network, IntegerNetwork):
        raise MoehlsError(f"{path}: holds a {type(network).__name__}, not an integer network; compile the model again")
    check(network)
    return network
