"""What the host computes before and behind the machine: samples in the graph's own form, outputs as the graph gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from moehls import api
from moehls.errors import MoehlsError
from moehls.network.processing import Step, evaluate, steps_of
from moehls.project import Project, open_project
from moehls.samples import read_samples
from moehls.simulate.board import Board
from tests.frontend.support import fixture
from tests.host.test_driver import accelerator

SHAPE = {"token_parallel": "2", "block": "8"}


def samples(name: str, count: int) -> tuple[str, npt.NDArray[np.generic]]:
    """Name of the input and random samples `[count, …]` as the graph takes them."""
    (given,) = ort.InferenceSession(fixture(name)).get_inputs()
    rng = np.random.default_rng(0)
    if given.type == "tensor(uint8)":
        return given.name, rng.integers(0, 256, (count, *given.shape[1:]), np.uint8)
    return given.name, rng.standard_normal((count, *given.shape[1:]), np.float32)


def compiled(name: str, folder: Path) -> tuple[Project, Path, npt.NDArray[np.generic]]:
    """A project calibrated on samples of the graph's own form, the file of these samples and the samples."""
    key, given = samples(name, 8)
    file = folder / "samples.npz"
    np.savez(file, **{key: given})
    api.compile(fixture(name), folder / "project", calibration=file, settings=SHAPE, precision="w16a16")
    return open_project(folder / "project"), file, given


@pytest.mark.parametrize("name", ["input_patch_norm-ts17", "input_turned-dynamo20", "output_labels-dynamo20"])
def test_samples_and_outputs_are_those_of_the_graph(name: str, tmp_path: Path) -> None:
    """`moehls run` and the driver take what the graph takes and give what onnxruntime gives, in its shape and type."""
    project, file, given = compiled(name, tmp_path)
    session = ort.InferenceSession(fixture(name))
    names = [output.name for output in session.get_outputs()]
    wanted = [session.run(names, {session.get_inputs()[0].name: sample[None]}) for sample in given]
    api.run(project.path, file, tmp_path / "out.npz")
    found = accelerator(Board(project)).run(given, 0)
    with np.load(tmp_path / "out.npz") as written:
        for place, output in enumerate(session.get_outputs()):
            exact = np.stack([each[place] for each in wanted])
            exact = exact[:, 0] if exact.shape[1:2] == (1,) else exact
            ours = written[output.name]
            np.testing.assert_array_equal(found[output.name], ours)
            assert (ours.shape, ours.dtype, found[output.name].dtype) == (exact.shape, exact.dtype, exact.dtype)
            if exact.dtype.kind == "f":
                np.testing.assert_allclose(ours, exact, rtol=0, atol=5e-3 * np.abs(exact).max())
            else:
                assert (ours == exact).mean() > 0.9


def test_bytes_reach_the_machine_as_they_are(tmp_path: Path) -> None:
    project, file, given = compiled("input_bytes-ts17", tmp_path)
    source = project.manifest["input"]
    assert (source["type"], source["scale"], source["offset"]) == ("uint8", [1.0, 1.0], [0.0, 0.0])
    kept = read_samples(project.path / "data/samples/inputs.npz", project.network)
    assert kept.given is not None
    assert kept.given.dtype == np.uint8
    np.testing.assert_array_equal(kept.given, given[: len(kept)])
    np.savez(file, **{project.network.input.name: given.astype(np.float32) + 0.5})
    with pytest.raises(MoehlsError, match="takes uint8: whole numbers of 0 … 255"):
        read_samples(file, project.network)


def test_classes_are_compared_as_classes(tmp_path: Path) -> None:
    project, file, _ = compiled("output_classes-ts17", tmp_path)
    fidelity = api.verify(project.path, ("reference",), inputs=file).fidelity
    assert fidelity is not None
    assert fidelity.sqnr_db is None
    assert fidelity.classes_kept == 1.0


def test_a_manifest_holds_the_steps() -> None:
    steps = (
        Step("reshape", (0,), (2, 3)),
        Step("constant", numbers=np.array([1.0, 2.0, 3.0])),
        Step("multiply", (1, 2)),
        Step("softmax", (3,), (1,)),
        Step("best", (4,), (1, 1)),
    )
    again = steps_of([step.json() for step in steps])
    x = np.array([0.0, 1.0, 2.0, 9.0, 1.0, 0.0])
    np.testing.assert_array_equal(evaluate(again, x), [[2], [0]])
    np.testing.assert_array_equal(evaluate(again, x), evaluate(steps, x))
