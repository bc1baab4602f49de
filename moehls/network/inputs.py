"""Samples as a graph takes them, images as its network does, and the way from the one to the other.

A sample has the shape, the layout and the type of the graph's input; an image is `[channels, height, width]`, float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.network.operations import FloatArray, NetworkInput
from moehls.network.processing import evaluate

Samples = npt.NDArray[Any]


def prepared(source: NetworkInput, samples: Samples) -> FloatArray:
    """Images `[samples, channels, height, width]` of samples `[samples, …]`."""
    if not source.steps:
        return np.asarray(samples, np.float32).reshape(len(samples), *source.shape)
    return np.stack([evaluate(source.steps, sample) for sample in samples]).astype(np.float32)


def as_given(source: NetworkInput, pixels: npt.NDArray[np.floating]) -> Samples:
    """Samples with these pixels `[samples, channels, height, width]`, in the layout and the type of the graph's input."""
    moved = pixels.transpose(0, 2, 3, 1) if source.channels_last else pixels
    samples = moved.reshape(len(pixels), *(source.given or source.shape))
    if source.type == "float32":
        return samples.astype(np.float32)
    limits = np.iinfo(source.type)
    found: Samples = np.clip(np.rint(samples), limits.min, limits.max).astype(source.type)
    return found


def expected(source: NetworkInput, noise: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Noise `[samples, channels, height, width]` of unit deviation as pixels of the size that the graph expects."""
    if not source.mean:
        return noise
    mean, deviation = (np.asarray(field)[:, None, None] for field in (source.mean, source.deviation))
    return np.asarray(mean + noise * deviation)
