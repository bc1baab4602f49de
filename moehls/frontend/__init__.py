"""ONNX to the float network: load, normalise, recognise, lower, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moehls.errors import MoehlsError
from moehls.frontend.check import check_network
from moehls.frontend.join import DifferentBackbones, join, unrolled_tasks
from moehls.frontend.load import holding, load_model
from moehls.frontend.lower import Reading, Refusal, read_graph, refused
from moehls.frontend.normalise import normalise
from moehls.heap import give_back
from moehls.network.operations import Network
from moehls.network.summary import Summary, summarise

__all__ = ["Inspection", "Refusal", "inspect_model", "inspect_tasks", "read_network", "read_tasks"]


@dataclass(frozen=True)
class Inspection:
    """What was recognised, or every node that was not."""

    summary: Summary | None
    unsupported: tuple[Refusal, ...]
    float_error: float | None
    """largest relative difference from onnxruntime on random input, None where nodes are unsupported"""
    warnings: tuple[str, ...] = ()
    """what the export probably did not mean, or how an input was taken"""
    network: Network | None = None
    """what was recognised, whole"""

    def json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return {
            "recognised": self.summary.json() if self.summary else None,
            "unsupported": [asdict(refusal) for refusal in self.unsupported],
            "float_error": self.float_error,
            "warnings": list(self.warnings),
        }


def _read(path: Path, settings: Mapping[str, str], seed: int) -> tuple[Reading, tuple[str, ...]]:
    loaded = load_model(path, settings)
    model = normalise(loaded.model, str(path))
    return read_graph(model, loaded.inputs, loaded.opset, path.stem, seed), loaded.warnings


def read_network(
    path: Path, settings: Mapping[str, str], seed: int = 0, warn: Callable[[str], object] = lambda text: None
) -> Network:
    """Read an ONNX file into a network that was checked against onnxruntime.

    Args:
        settings: sizes of named dimensions (`batch` is 1 where not given) and `tasks`, by name.
        seed: of the random logits and images of the checks.
        warn: gets what the export probably did not mean, one text at a time.

    Raises:
        MoehlsError: the file is damaged, its inputs are not one image and at most one task, a node cannot be read
            (all are
            named), or the network differs from the file in float.
    """
    reading, warnings = _read(path, settings, seed)
    give_back()
    for text in warnings:
        warn(text)
    if reading.network is None:
        raise refused(reading.refusals, path)
    summarise(reading.network)
    check_network(reading.network, path, reading, seed)
    network = unrolled_tasks(reading.network)
    del reading
    give_back()
    return network


def read_tasks(
    paths: Sequence[Path], settings: Mapping[str, str], seed: int = 0, warn: Callable[[str], object] = lambda text: None
) -> Network:
    """Read one file, or several that are tasks of one model, into one network; the files number the tasks.

    Raises:
        MoehlsError: as `read_network`, or files that differ in more than gates and heads.
    """
    return _joined([read_network(path, settings, seed, warn) for path in paths], paths)


def _joined(networks: Sequence[Network], paths: Sequence[Path]) -> Network:
    if len(networks) == 1:
        return networks[0]
    stems = [path.stem for path in paths]
    labels = stems if len(set(stems)) == len(stems) else [f"task{number}" for number in range(len(stems))]
    for number in range(1, len(networks)):  # one after the other, so that the file that differs is known
        try:
            joint = join(networks[: number + 1], labels[: number + 1])
        except DifferentBackbones as difference:
            where = None if difference.weight is None else holding(paths[number], difference.weight)
            name = "" if where is None else f" (weight {where!r} of {paths[number].name})"
            raise MoehlsError(f"{difference}{name}") from difference
    return joint


def inspect_model(path: Path, settings: Mapping[str, str], seed: int = 0) -> Inspection:
    """What `read_network` recognises, or all nodes it cannot read.

    Raises:
        MoehlsError: as `read_network`, but for unsupported nodes.
    """
    return inspect_tasks([path], settings, seed)


def inspect_tasks(paths: Sequence[Path], settings: Mapping[str, str], seed: int = 0) -> Inspection:
    """As `inspect_model`, of one file or of several that are tasks of one model.

    Raises:
        MoehlsError: as `read_tasks`, but for unsupported nodes.
    """
    readings = [_read(path, settings, seed) for path in paths]
    warnings = tuple(dict.fromkeys(text for _, found in readings for text in found))
    refusals = tuple(refusal for reading, _ in readings for refusal in reading.refusals)
    networks = [reading.network for reading, _ in readings if reading.network is not None]
    if len(networks) < len(paths):
        return Inspection(None, refusals, None, warnings)
    errors = [
        check_network(network, path, reading, seed)
        for network, path, (reading, _) in zip(networks, paths, readings, strict=True)
    ]
    joint = _joined([unrolled_tasks(network) for network in networks], paths)
    return Inspection(summarise(joint), (), max(errors), warnings, joint)
