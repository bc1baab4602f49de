"""Heads that the host has a part in, or that have no norm, from the file to the driver's reals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moehls import api, reference
from moehls.errors import MoehlsError
from moehls.integer.host import dequantise_output, parts_of
from moehls.integer.validate import check
from moehls.network import interpreter
from moehls.project import Project, open_project
from moehls.quantize import random_calibration
from moehls.simulate.board import Board
from tests.frontend.support import fixture
from tests.host.test_driver import accelerator


def compiled(name: str, folder: Path) -> Project:
    api.compile(fixture(name), folder, precision="w16a16", settings={"token_parallel": "2", "block": "8"})
    return open_project(folder)


@pytest.mark.parametrize(("name", "parts"), [("distilled-ts17", 2), ("head_before_norm-dynamo20", 1)])
def test_a_head_is_what_the_file_computes(name: str, parts: int, tmp_path: Path) -> None:
    """The averaged heads of DeiT with distillation are two parts, which the host adds."""
    project = compiled(name, tmp_path / "project")
    integer = project.integer
    (output,) = (output for output in integer.outputs if not output.part_of)
    assert len(parts_of(integer, output.name)) == parts
    images = random_calibration(project.network, 0)[:3]
    floats = interpreter.outputs(project.network, interpreter.run(project.network, images))[output.name]
    machine = accelerator(Board(project))
    found, raw = machine.run(images, 0), machine.run(images, 0, raw=True)
    assert set(found) == {output.name}
    for index, image in enumerate(images):
        execution = reference.run(integer, image, 0)
        tensors = [execution.array(part.value) for part in parts_of(integer, output.name)]
        for part, expected in zip(parts_of(integer, output.name), tensors, strict=True):
            np.testing.assert_array_equal(raw[part.name][index], expected)
        real = dequantise_output(integer, output.name, *tensors)
        np.testing.assert_array_equal(found[output.name][index], real.reshape(output.shape[1:]))
        np.testing.assert_allclose(found[output.name][index], floats[index], rtol=0, atol=2e-3 * np.abs(floats).max())
    samples = tmp_path / "samples.npz"
    np.savez(samples, image=images)
    api.run(project.path, samples, tmp_path / "out.npz", "csim")
    with np.load(tmp_path / "out.npz") as written:
        np.testing.assert_array_equal(written[output.name], found[output.name])


def test_a_part_belongs_to_an_output(tmp_path: Path) -> None:
    integer = compiled("distilled-ts17", tmp_path / "project").integer
    first, second = integer.outputs
    with pytest.raises(MoehlsError, match="is a part of 'nothing'"):
        check(replace(integer, outputs=(first, replace(second, part_of="nothing"))))
