"""One compiled accelerator a shape, shared by all tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from moehls.emit.hls import emit_hls
from moehls.integer.precision import W8A8, W16A16
from moehls.plan.shape import Shape
from moehls.simulate.csim import Library, build
from tests.csim.bench import FORMS

SHAPES = {
    # with bounds of sums and shifts that the steps of the tests keep
    "w8a8": Shape(
        W8A8,
        4,
        8,
        4,
        2,
        256,
        128,
        64,
        64,
        8,
        8,
        32,
        10,
        64,
        scaled_bits=29,
        shift_low=4,
        shift_high=40,
        second_bits=26,
        second_shift_low=5,
        second_shift_high=36,
        channel_bias_bits=26,
        activated_bias_bits=24,
        channel_shift_bits=6,
    ),
    "w16a16": Shape(W16A16, 6, 16, 8, 4, 256, 128, 64, 64, 8, 8, 32, 6, 64, lut_columns=1, gated=True),
    # an odd number of token lanes, a tile in one slice, and products in LUTs
    "odd": Shape(W8A8, 3, 8, 8, 4, 128, 64, 64, 64, 8, 8, 32, 6, 64, lut_columns=3, gated=True, beside=True),
    # one token lane, and experts that do not fill a pass of the router
    "one": Shape(W8A8, 1, 8, 4, 1, 512, 128, 64, 64, 8, 8, 32, 3, 64),
    # what some models need
    "more": Shape(
        W8A8,
        4,
        8,
        2,
        2,
        256,
        128,
        64,
        64,
        128,
        8,
        32,
        10,
        64,
        pools=True,
        plain_norms=True,
        thresholds=True,
        capacities=True,
        rooms=True,
        sides=True,
        norm_targets=True,
        wide=True,
        biased=True,
    ),
    # biases of a tile of scores in two words
    "grouped": Shape(
        W8A8,
        7,
        8,
        4,
        2,
        256,
        128,
        64,
        64,
        8,
        8,
        32,
        6,
        64,
        gated=True,
        sigmoids=True,
        expert_group=2,
        selections=True,
        weighed_inputs=True,
        biased=True,
        experts="prefetched",
    ),
    "wide": Shape(
        W16A16,
        3,
        8,
        4,
        2,
        256,
        128,
        64,
        64,
        8,
        8,
        32,
        6,
        64,
        pools=True,
        plain_norms=True,
        thresholds=True,
        capacities=True,
        rooms=True,
        sides=True,
        norm_targets=True,
        wide=True,
        biased=True,
        beside=True,
        experts="prefetched",
    ),
}
BOUNDED = ("odd", "more", "grouped", "w16a16")
"""whose streams and memories hold no more than their depths, so that every step of the tests shows that they suffice"""


@dataclass(frozen=True)
class Accelerator:
    shape: Shape
    project: Path
    library: Library


@pytest.fixture(scope="session")
def accelerators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Accelerator]:
    made = {}
    for name, shape in SHAPES.items():
        project = tmp_path_factory.mktemp(name)
        emit_hls(shape, FORMS, project)
        made[name] = Accelerator(shape, project, build(project, bounded=name in BOUNDED))
    return made


@pytest.fixture(params=list(SHAPES))
def accelerator(request: pytest.FixtureRequest, accelerators: dict[str, Accelerator]) -> Accelerator:
    return accelerators[request.param]
