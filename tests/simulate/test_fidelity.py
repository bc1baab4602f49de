"""Fidelity figures against their definitions, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moehls.project import Project
from moehls.reference import run as run_reference
from moehls.samples import read_samples
from moehls.simulate.compare import FidelityMeter
from moehls.simulate.fidelity import Error, agreement, correct, first_difference
from tests.conftest import DIGITS


def test_sqnr_and_cosine_are_of_all_samples_together() -> None:
    error = Error()
    error.add(np.array([3.0, 0.0]), np.array([3.0, 0.1]))
    error.add(np.array([0.0, 4.0]), np.array([0.2, 4.0]))
    assert error.sqnr_db == pytest.approx(10 * math.log10(25 / 0.05))
    assert error.cosine == pytest.approx(25 / math.sqrt(25 * (25 + 0.05)))


def test_no_noise_has_no_sqnr() -> None:
    error = Error()
    error.add(np.ones(3), np.ones(3))
    assert error.sqnr_db is None
    assert error.cosine == pytest.approx(1.0)


def test_agreement_counts_choices_in_any_order() -> None:
    assert agreement(np.array([[0, 1], [2, 3]]), np.array([[1, 0], [3, 4]])) == (3, 4)


def test_labels_below_zero_are_no_labels() -> None:
    logits = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert correct(logits, np.array([1, 1, -1])) == (1, 2)


def test_the_first_difference_is_in_reading_order() -> None:
    expected = np.zeros((3, 4), np.int64)
    found = expected.copy()
    assert first_difference(expected, found) is None
    found[2, 0] = found[1, 3] = 5
    assert first_difference(expected, found) == (1, 3)


def test_every_stage_of_the_digits_model_is_close_to_the_float_model(digits: Project) -> None:
    samples = read_samples(DIGITS / "test.npz", digits.network).first(4)
    meter = FidelityMeter(digits.network, digits.integer)
    for image, task in zip(samples.images, samples.tasks, strict=True):
        meter.add(image, int(task), run_reference(digits.integer, image, int(task)), {})
    result = meter.result()
    assert len(result.stages) > 25
    assert all(stage.sqnr_db is not None and stage.sqnr_db > 10 for stage in result.stages)
    assert [use.tokens for use in result.routing] == [(34, 34), (34, 34)]
    assert all(sum(row) == 2 * 34 for use in result.routing for row in use.counts)
