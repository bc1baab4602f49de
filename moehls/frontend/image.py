"""The image input: what the graph takes, the pixels that the reader starts from, and what the host does before the machine.

An affine map of the pixels a channel goes into the patch embedding, so that the machine gets the pixels as they are. The host
turns a layout with channels last, and normalises the patches where the graph does.
"""

from __future__ import annotations

import numpy as np

from moehls.frontend.builder import ImageNorm
from moehls.frontend.load import Inputs
from moehls.frontend.values import Pixels
from moehls.network.operations import NetworkInput
from moehls.network.processing import Step


def image_pixels(inputs: Inputs, rank: int) -> Pixels:
    """All elements of the image as the graph takes it, in a tensor of `rank` dimensions."""
    index = np.arange(np.prod(inputs.image_shape), dtype=np.int64).reshape(inputs.image_shape)
    if inputs.channels_last:
        index = index.transpose(1, 2, 0)
    index = index.reshape(*(1,) * (rank - 3), *index.shape)
    ones = np.ones(index.shape)
    return Pixels(index, inputs.image_shape, ones, np.zeros_like(ones), integer=inputs.type != "float32")


def network_input(inputs: Inputs, norm: ImageNorm) -> NetworkInput:
    """The network's input, with the host's steps from a sample to an image."""
    steps: list[Step] = []

    def step(kind: str, *read: int, integers: tuple[int, ...] = (), number: float | None = None) -> int:
        steps.append(Step(kind, read, integers, None if number is None else np.asarray(number)))
        return len(steps)

    channels, height, width = inputs.image_shape
    value = 0
    if inputs.channels_last:
        value = step("transpose", value, integers=(2, 0, 1))
    if norm.patch_norm is not None:
        rows, columns = norm.patch
        grid = channels, height // rows, rows, width // columns, columns
        value = step("reshape", value, integers=grid)
        value = step("transpose", value, integers=(1, 3, 0, 2, 4))
        value = step("reshape", value, integers=(grid[1] * grid[3], channels * rows * columns))
        value = step("subtract", value, step("mean", value, integers=(1,)))
        square = step("multiply", value, value)
        variance = step("add", step("mean", square, integers=(1,)), step("constant", number=norm.patch_norm))
        value = step("divide", value, step("root", variance))
        value = step("reshape", value, integers=(grid[1], grid[3], channels, rows, columns))
        value = step("transpose", value, integers=(2, 0, 3, 1, 4))
        value = step("reshape", value, integers=inputs.image_shape)
    last = (height, width, channels) if inputs.channels_last else inputs.image_shape
    given = last if steps or inputs.type != "float32" else ()
    mean, deviation = norm.mean, norm.deviation
    if inputs.type == "uint8" and not mean:
        mean, deviation = (127.5,) * channels, (64.0,) * channels
    return NetworkInput(
        inputs.image, inputs.image_shape, given, inputs.type, inputs.channels_last, tuple(steps), mean, deviation
    )
