"""Pixels in, real outputs out: sections 2 and 4 of the numbers page, and the random networks other tests rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moehls.errors import MoehlsError
from moehls.integer.host import dequantise_output, quantise_image
from moehls.integer.precision import PRECISIONS, Precision
from tests.support.random_networks import Sizes, random_image, random_integer_network

NETWORK = random_integer_network(2, sizes=Sizes(tokens=7, channels=2, patch=(2, 3), width=6, heads=2))


def test_patches_are_row_major_over_channel_row_column() -> None:
    image = random_image(NETWORK, 0)
    (channels, _, width), (rows, columns) = NETWORK.input.shape, NETWORK.input.patch
    pixels = quantise_image(NETWORK, image)
    assert pixels.shape == (6, channels * rows * columns)
    for p, patch in enumerate(pixels.tolist()):
        top, left = p // (width // columns) * rows, p % (width // columns) * columns
        expected = []
        for c in range(channels):
            scale, offset = float(NETWORK.input.scale[c]), float(NETWORK.input.offset[c])
            for y in range(top, top + rows):
                for x in range(left, left + columns):
                    expected.append(min(max(math.floor(float(image[c, y, x]) / scale + offset + 0.5), 0), 255))
        assert patch == expected


def test_image_of_another_shape_or_not_finite() -> None:
    image = random_image(NETWORK, 0)
    with pytest.raises(MoehlsError, match=r"found shape \(1,"):
        quantise_image(NETWORK, image[:1])
    image[0, 0, 0] = np.nan
    with pytest.raises(MoehlsError, match="finite"):
        quantise_image(NETWORK, image)


def test_outputs_are_offset_then_scaled() -> None:
    integers = np.arange(7 * 6).reshape(7, 6) - 20
    real = dequantise_output(NETWORK, "tokens", integers)
    meaning = NETWORK.formats[NETWORK.outputs[0].value]
    assert real.dtype == np.float32
    assert real.shape == (1, 7, 6)
    assert real[0, 3, 2] == np.float32((int(integers[3, 2]) - meaning.offset[2]) * meaning.scale[2])
    with pytest.raises(MoehlsError, match="logits, tokens"):
        dequantise_output(NETWORK, "nothing", integers)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_random_images_cover_the_pixel_range(precision: Precision) -> None:
    network = random_integer_network(0, precision, Sizes(tokens=65, width=6, heads=2))
    pixels = quantise_image(network, random_image(network, 0))
    top = (1 << precision.activation_bits) - 1
    assert (pixels.min(), pixels.max()) == (0, top)
    assert pixels.std() > top / 6
