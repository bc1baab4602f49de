"""ONNX to the float network: load, normalise, recognise, lower, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moehls.frontend.check import check_network
from moehls.frontend.load import load_model
from moehls.frontend.lower import Reading, Refusal, read_graph, refused
from moehls.frontend.normalise import normalise
from moehls.network.operations import Network
from moehls.network.summary import Summary, summarise

__all__ = ["Inspection", "Refusal", "inspect_model", "read_network"]


@dataclass(frozen=True)
class Inspection:
    """What was recognised, or every node that was not."""

    summary: Summary | None
    unsupported: tuple[Refusal, ...]
    float_error: float | None
    """largest relative difference from onnxruntime on random input, None where nodes are unsupported"""
    warnings: tuple[str, ...] = ()
    """what the export probably did not mean, or how an input was taken"""

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
    for text in warnings:
        warn(text)
    if reading.network is None:
        raise refused(reading.refusals, path)
    summarise(reading.network)
    check_network(reading.network, path, reading.routers, seed)
    return reading.network


def inspect_model(path: Path, settings: Mapping[str, str], seed: int = 0) -> Inspection:
    """What `read_network` recognises, or all nodes it cannot read.

    Raises:
        MoehlsError: as `read_network`, but for unsupported nodes.
    """
    reading, warnings = _read(path, settings, seed)
    if reading.network is None:
        return Inspection(None, reading.refusals, None, warnings)
    error = check_network(reading.network, path, reading.routers, seed)
    return Inspection(summarise(reading.network), (), error, warnings)
