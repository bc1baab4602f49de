"""Exported files of gated, normalised and shared forms, quantised, on the C++: every value equals the reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from moehls.emit.hls import emit_hls
from moehls.frontend import read_network
from moehls.integer.operations import IntegerNetwork
from moehls.integer.precision import PRECISIONS, W8A8, Precision
from moehls.network.interpreter import outputs, run
from moehls.network.operations import ActivationForm, Network
from moehls.plan.shape import Shape
from moehls.quantize import quantize, random_calibration
from moehls.reference import run as run_integers
from moehls.simulate.csim import build
from tests.csim.conftest import Accelerator
from tests.csim.test_networks import assert_equals_reference
from tests.frontend.support import fixture

SHAPE = Shape(
    W8A8,
    3,
    8,
    4,
    2,
    64,
    64,
    64,
    16,
    8,
    8,
    16,
    4,
    64,
    gated=True,
    sigmoids=True,
    sides=True,
    norm_targets=True,
    wide=True,
    weighed_inputs=True,
)
FORMS: dict[str, ActivationForm] = {
    "gated_silu-dynamo23": "silu",
    "gated_fused-ts17": "silu",
    "norm_rms-dynamo23": "silu",
    "gated_experts_index_add-ts17": "silu",
    "gated_experts_dense-dynamo20": "silu",
    "shared_sum-ts17": "silu",
    "shared_gated-dynamo20": "silu",
    "shared_sigmoids-ts17": "silu",
    "gated_relu-dynamo20": "relu",
    "qk_norm_whole-ts17": "silu",
    "activation_quick-ts17": "quick",
    "pre_norm-dynamo20": "quick",
    "transformers_clip-ts17": "quick",
    "pre_norm_experts-dynamo20": "silu",
    "post_norm-ts17": "silu",
    "weighed_inputs-ts17": "silu",
}


@cache
def network_of(name: str) -> Network:
    return read_network(fixture(name), {})


@cache
def quantised(name: str, precision: Precision) -> IntegerNetwork:
    network = network_of(name)
    return quantize(network, random_calibration(network, 0), precision)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[ActivationForm, Accelerator]:
    """One accelerator an activation: they differ in its table."""
    made: dict[ActivationForm, Accelerator] = {}
    for form in sorted(set(FORMS.values())):
        project: Path = tmp_path_factory.mktemp(form)
        emit_hls(SHAPE, (form,), project)
        made[form] = Accelerator(SHAPE, project, build(project))
    return made


@pytest.mark.parametrize("name", FORMS)
def test_every_value_of_an_exported_form_equals_the_reference(
    machines: dict[ActivationForm, Accelerator], name: str
) -> None:
    integer = quantised(name, W8A8)
    assert integer.activations == (FORMS[name],)
    assert_equals_reference(machines[FORMS[name]], integer, 0)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("precision", "least"), [("w8a8", 27.0), ("w16a16", 60.0)])
def test_the_integers_are_close_to_the_float_network(name: str, precision: str, least: float) -> None:
    """Signal to noise in decibels over the calibration images; networks of 8 channels have few to average over."""
    network, integer = network_of(name), quantised(name, PRECISIONS[precision])
    images = random_calibration(network, 0)
    signal = noise = 0.0
    for image, values in zip(images, outputs(network, run(network, images))[integer.outputs[0].name], strict=True):
        meaning = integer.formats[integer.outputs[0].value]
        found = (run_integers(integer, image).array(integer.outputs[0].value) - meaning.offset) * meaning.scale
        signal += float((values.astype(np.float64) ** 2).sum())
        noise += float(((found.ravel() - values.ravel()) ** 2).sum())
    ratio = 10 * np.log10(signal / noise)
    print(f"{name} {precision}: {ratio:.1f} dB")
    assert ratio > least
