"""The host driver of a compiled project, end to end on a board in software: equal to the reference in every integer."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from moehls import reference
from moehls.integer.host import dequantise_output
from moehls.project import MANIFEST, Project, json_text, open_project
from moehls.samples import Samples, read_samples
from moehls.simulate.board import Board
from tests.conftest import DIGITS


@pytest.fixture(scope="module")
def samples(digits: Project) -> Samples:
    return read_samples(DIGITS / "test.npz", digits.network).first(6)


@pytest.fixture(scope="module")
def board(digits: Project) -> Board:
    return Board(digits)


def load_driver(project: Project) -> ModuleType:
    spec = importlib.util.spec_from_file_location("driver", project.path / "host/driver.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accelerator(board: Board, project: Project | None = None) -> Any:
    project = project or board.project
    return load_driver(project).Accelerator("design.bit", project=project.path, pynq=board)


@pytest.mark.parametrize("task", [0, 1])
def test_a_batch_equals_the_reference(task: int, board: Board, samples: Samples) -> None:
    integer = board.project.integer
    machine = accelerator(board)
    found, raw = machine.run(samples.images, task), machine.run(samples.images, task, raw=True)
    for index, image in enumerate(samples.images):
        execution = reference.run(integer, image, task)
        for output in integer.outputs:
            expected = execution.array(output.value)
            np.testing.assert_array_equal(raw[output.name][index], expected)
            real = dequantise_output(integer, output.name, expected)
            np.testing.assert_array_equal(found[output.name][index], real.reshape(output.shape[1:]))


def test_weights_are_written_once(board: Board, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = accelerator(board)
    flushed: list[int] = []
    flush = type(machine.weights[0]).flush
    monkeypatch.setattr(
        type(machine.weights[0]), "flush", lambda buffer: (flushed.append(buffer.nbytes), flush(buffer))[1]
    )
    machine.run(samples.images, 0)
    machine.run(samples.images, 1)
    assert flushed == [machine.pixels[0].nbytes] * 2 * len(samples)


def test_images_of_another_shape_are_refused(board: Board) -> None:
    with pytest.raises(ValueError, match=r"wanted is \(samples, 1, 32, 32\)"):
        accelerator(board).run(np.zeros((2, 3, 32, 32), np.float32))


def test_an_unknown_task_is_refused(board: Board, samples: Samples) -> None:
    with pytest.raises(ValueError, match="tasks 0 to 1"):
        accelerator(board).run(samples.images, task=2)


def test_a_machine_that_does_not_end_is_a_timeout(
    board: Board, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = accelerator(board)
    monkeypatch.setattr(machine.kernel, "read", lambda offset: 0)
    with pytest.raises(TimeoutError):
        machine.run(samples.images[:1], timeout=0.05)


@pytest.mark.parametrize("register", ["weights0", "input", "output", "task"])
def test_another_register_map_is_another_bitstream(register: str, board: Board, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(board.project.path, copy, ignore=shutil.ignore_patterns("build"))
    manifest = open_project(copy).manifest
    next(entry for entry in manifest["registers"] if entry["name"] == register)["offset"] += 8
    (copy / MANIFEST).write_text(json_text(manifest))
    with pytest.raises(ValueError, match="not of one project"):
        accelerator(board, open_project(copy))


def test_truncated_weights_are_refused(board: Board, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(board.project.path, copy, ignore=shutil.ignore_patterns("build"))
    weights = copy / "data/weights.bin"
    weights.write_bytes(weights.read_bytes()[:-16])
    with pytest.raises(ValueError, match=r"the manifest says"):
        accelerator(board, open_project(copy))


def test_registers_are_where_vitis_puts_them(digits: Project) -> None:
    offsets = {r["name"]: r["offset"] for r in digits.manifest["registers"]}
    ports = digits.plan.shape.ports
    assert offsets["control"] == 0x00
    assert offsets["weights0"] == 0x10
    assert offsets["input"] == 0x10 + 12 * ports
    assert offsets["weight_beats"] == 0x10 + 12 * (ports + 2)
    assert offsets["task"] == offsets["weight_beats"] + 3 * 8
