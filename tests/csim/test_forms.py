"""Forms of models beyond the plain one, from the ONNX file on: quantised, they keep their meaning, and the C++ is exact."""

from __future__ import annotations

import numpy as np
import pytest

from moehls.frontend import read_network
from moehls.integer.precision import W8A8, W16A16, Precision
from moehls.integer.validate import check
from moehls.network.operations import Network
from moehls.quantize import quantize, random_calibration
from moehls.reference import run
from moehls.simulate.compare import FidelityMeter
from tests.csim.bench import FORMS as FORMS_OF_MACHINES
from tests.csim.conftest import Accelerator
from tests.csim.test_networks import assert_equals_reference
from tests.frontend.support import fixture

LEAST = {"w8a8": 28.0, "w16a16": 60.0}
"""SQNR in dB with the choices of experts forced"""
FORMS = (
    "mean-ts17",
    "mean_then_norm-ts17",
    "mean_of_patches-dynamo20",
    "gate_pruned-ts17",
    "gate_pruned_chosen-dynamo20",
    "gate_pruned_rest-ts17",
    "gate_own_norm-dynamo20",
    "gate_residual-ts17",
    "gate_block_input-dynamo20",
    "gate_first_norm-ts17",
    "capacity_choice-dynamo20",
    "capacity_tokens-ts17",
    "published_switch-dynamo20",
    "soft_einsum-ts17",
    "soft_loop-dynamo20",
    "soft_unit-ts17",
    "timm_qk_norm-dynamo20",
)
WHOLE = (
    "timm_registers-dynamo20",
    "transformers_deit-ts17",
    "transformers_dinov2_registers-dynamo20",
    "tokens_projected-ts17",
    "task_some-dynamo20",
    "task_outputs-ts17",
    "qdq_timm_vit-ts17",
    "qdq_experts-dynamo20",
)
"""graphs of other people's code; all forms are in the table of docs/frontend.md"""


def sqnr(network: Network, precision: Precision) -> float:
    """Of the integer network against the float one, on the images it was calibrated on: ranges play no part."""
    integer = quantize(network, random_calibration(network, 0), precision)
    meter = FidelityMeter(network, integer)
    for image in random_calibration(network, 0):
        for task in range(network.tasks):
            meter.add(image, task, run(integer, image, task), {})
    return meter.result().sqnr_forced_db or -np.inf


@pytest.mark.parametrize(("shape", "precision"), [("more", W8A8), ("wide", W16A16)])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_exact_in_cpp(
    accelerators: dict[str, Accelerator], name: str, shape: str, precision: Precision
) -> None:
    network = read_network(fixture(name), {})
    integer = quantize(network, random_calibration(network, 0), precision)
    check(integer)
    for task in range(network.tasks):
        assert_equals_reference(accelerators[shape], integer, task)


@pytest.mark.parametrize("name", WHOLE)
def test_a_graph_of_the_front_end_is_exact_in_cpp(accelerators: dict[str, Accelerator], name: str) -> None:
    network = read_network(fixture(name), {})
    integer = quantize(network, random_calibration(network, 0), W8A8)
    check(integer)
    for task in range(network.tasks):
        assert_equals_reference(accelerators["more"], integer, task)


def test_two_activations_are_exact_in_cpp(accelerators: dict[str, Accelerator]) -> None:
    """An MLP with GELU and experts with SiLU, on the tables of both."""
    network = read_network(fixture("activations_two-dynamo20"), {})
    integer = quantize(network, random_calibration(network, 0), W8A8)
    assert integer.activations == FORMS_OF_MACHINES
    assert_equals_reference(accelerators["grouped"], integer, 0)


@pytest.mark.parametrize("precision", [W8A8, W16A16], ids=lambda p: p.name)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_keeps_its_meaning(name: str, precision: Precision) -> None:
    assert sqnr(read_network(fixture(name), {}), precision) > LEAST[precision.name]
