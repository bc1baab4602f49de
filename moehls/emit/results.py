"""The result stream as bytes, the inverse of `moehls.plan.layout.output_tensors`: what co-simulation compares with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from moehls.integer.operations import IntArray
from moehls.plan.layout import CHUNK_BYTES
from moehls.plan.steps import OutputPlace


def result_bytes(tensors: Mapping[str, IntArray], outputs: Iterable[OutputPlace]) -> npt.NDArray[np.uint8]:
    """Integers `[rows, channels]` by output name to the beats of the output port; padded lanes are zero."""
    places = list(outputs)
    stream = np.zeros(max((place.beat + place.beats for place in places), default=0) * CHUNK_BYTES, np.uint8)
    for place in places:
        lanes = np.zeros((place.rows, place.blocks * place.block), np.dtype(f"<i{place.bits // 8}"))
        lanes[:, : place.channels] = tensors[place.name]
        first = place.beat * CHUNK_BYTES
        stream[first : first + place.beats * CHUNK_BYTES] = lanes.reshape(-1).view(np.uint8)
    return stream
