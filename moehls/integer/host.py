"""What the host computes around the machine: real images to pixels, output integers to real values.

In IEEE double precision, in the order written in `docs/numbers.md`, sections 2 and 4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moehls.errors import MoehlsError
from moehls.integer.operations import IntArray, IntegerNetwork, IntegerOutput
from moehls.network.processing import evaluate, rounded


def quantise_image(network: IntegerNetwork, image: npt.NDArray[Any]) -> IntArray:
    """Real image `[channels, height, width]` to unsigned pixels `[patches, channels · patch height · patch width]`.

    Raises:
        MoehlsError: the image has another shape or holds a value that is not finite.
    """
    source = network.input
    if image.shape != source.shape:
        raise MoehlsError(f"input {source.name!r}: found shape {image.shape}, the model takes {source.shape}")
    real = image.astype(np.float64)
    if not np.isfinite(real).all():
        raise MoehlsError(f"input {source.name!r}: holds values that are not finite; pixels must be finite")
    levels = np.floor(real / source.scale[:, None, None] + source.offset[:, None, None] + 0.5)
    pixels = np.clip(levels, 0, (1 << network.precision.activation_bits) - 1).astype(np.int64)
    (channels, height, width), (rows, columns) = source.shape, source.patch
    grid = pixels.reshape(channels, height // rows, rows, width // columns, columns)
    return grid.transpose(1, 3, 0, 2, 4).reshape(-1, channels * rows * columns)


def parts_of(network: IntegerNetwork, name: str) -> tuple[IntegerOutput, ...]:
    """What the machine gives out for the ONNX output `name`: itself, and the further parts of a sum.

    Raises:
        MoehlsError: the network has no such output.
    """
    names = [output.name for output in network.outputs if not output.part_of]
    if name not in names:
        raise MoehlsError(f"output {name!r}: the model has the outputs {', '.join(sorted(names))}")
    return tuple(output for output in network.outputs if name in (output.name, output.part_of))


def dequantise_output(network: IntegerNetwork, name: str, *integers: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
    """Integers `[tokens, channels]` of the ONNX output `name`, one array a part, to the output, in its shape.

    Raises:
        MoehlsError: the network has no such output.
    """
    parts = parts_of(network, name)
    meanings = [network.formats[part.value] for part in parts]
    terms = [
        (given.astype(np.float64) - meaning.offset) * meaning.scale
        for given, meaning in zip(integers, meanings, strict=True)
    ]
    return rounded(evaluate(parts[0].steps, sum(terms[1:], terms[0]))).reshape(parts[0].shape)
