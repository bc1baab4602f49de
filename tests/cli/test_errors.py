"""Bad input is one clear message on stderr, exit code 2, no traceback, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from moehls import project
from tests.cli.support import CALIBRATION, MODEL, Outcome, call, changed, images, tree

Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error:") == 1
    for word in words:
        assert word in outcome.err


def assert_compile_refused(run: Run, folder: Path, model: Path, *options: object, words: tuple[str, ...]) -> None:
    """`moehls compile` refuses and leaves `folder` as it was."""
    before = tree(folder)
    assert_refused(run("compile", model, "-o", folder / "out/deep", *options), *words)
    assert tree(folder) == before


def test_an_unsupported_node_is_named(run: Run, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type, node.name = "Hardmax", "block 0/odd one"

    model = changed(tmp_path / "odd.onnx", change)
    assert_compile_refused(run, tmp_path, model, words=("Hardmax", "block 0/odd one"))
    outcome = run("inspect", model)
    assert outcome.code == 2
    assert "Hardmax" in outcome.out


def test_what_cannot_be_mapped_is_shown_by_inspect(run: Run, tmp_path: Path) -> None:
    """A normalisation of what is added to the stream."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
        add = next(node for node in graph.node if node.op_type == "Add" and node.input[0] == norm.input[0])
        place = list(graph.node).index(add)
        own = onnx.helper.make_node("LayerNormalization", [add.input[1], *norm.input[1:]], ["normed"], axis=-1)
        graph.node.insert(place, own)
        add.input[1] = "normed"

    model = changed(tmp_path / "branch.onnx", change)
    outcome = run("inspect", model)
    assert outcome.code == 2
    assert "not the residual stream plus the output of a linear" in outcome.out
    assert "2 parts cannot be mapped" in outcome.err
    assert_compile_refused(run, tmp_path, model, words=("LayerNorm", "its output is read by"))


def test_a_dynamic_shape_that_is_not_fixed(run: Run, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        image = next(value for value in model.graph.input if value.name == "image")
        image.type.tensor_type.shape.dim[2].dim_param = "rows"

    assert_compile_refused(run, tmp_path, changed(tmp_path / "dynamic.onnx", change), words=("rows", "--set"))


def test_a_truncated_model(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "half.onnx"
    model.write_bytes(MODEL.read_bytes()[: MODEL.stat().st_size // 2])
    assert_compile_refused(run, tmp_path, model, words=("half.onnx",))


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert_compile_refused(run, tmp_path, tmp_path / "none.onnx", words=("no such file",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--board", "zcu9000"), ("zcu9000", "zcu104")),
        (("--precision", "w4a4"), ("w4a4", "w8a8", "w16a16")),
        (("--clock-mhz", "0"), ("clock",)),
        (("--set", "token_parallel"), ("KEY=VALUE",)),
        (("--set", "block=7"), ("block",)),
        (("--set", "colour=3"), ("colour",)),
    ],
)
def test_options_that_make_no_sense(options: tuple[str, ...], words: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    calibration = tmp_path / "few.npz"
    np.savez(calibration, image=images(2))
    assert_compile_refused(run, tmp_path, MODEL, "--calibrate", calibration, *options, words=words)


def save_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("shape.npz", lambda p: np.savez(p, image=np.zeros((4, 3, 32, 32))), ("[4, 3, 32, 32]", "[samples, 1, 32, 32]")),
        ("alone.npz", lambda p: np.savez(p, image=np.zeros((32, 32))), ("[samples, 1, 32, 32]",)),
        ("nan.npz", lambda p: np.savez(p, image=np.full((2, 1, 32, 32), np.nan)), ("not finite",)),
        ("key.npz", lambda p: np.savez(p, picture=images(2)), ("missing 'image'", "unknown 'picture'")),
        ("none.npz", lambda p: np.savez(p, image=np.zeros((0, 1, 32, 32))), ("no sample",)),
        ("text.npy", lambda p: np.save(p, np.array(["a"])), ("not real numbers",)),
        ("object.npy", lambda p: np.save(p, np.array([{}], dtype=object)), ("not a readable",)),
        ("task.npz", lambda p: np.savez(p, image=images(2), task=np.array([0, 2])), ("0 … 1",)),
        ("half.npz", lambda p: save_bytes(p, CALIBRATION.read_bytes()[:9000]), ("not a readable",)),
        ("empty.npz", lambda p: save_bytes(p, b""), ("not a readable",)),
        ("folder", lambda p: p.mkdir(), ("holds no .npz and no .npy",)),
        ("missing.npz", lambda p: None, ("no such file",)),
    ],
)  # fmt: skip
def test_calibration_samples_that_do_not_fit(
    name: str, write: Callable[[Path], Any], words: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    write(tmp_path / name)
    assert_compile_refused(run, tmp_path, MODEL, "--calibrate", tmp_path / name, words=(name, *words))


def test_an_output_folder_that_holds_something_else(run: Run, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    for option in ((), ("--force",)):
        assert_refused(run("compile", MODEL, "-o", tmp_path, *option), "holds something else")
    assert tree(tmp_path) == {"diary.txt"}


def test_the_current_folder_is_not_replaced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("compile", MODEL, "-o", "."), "current folder")


def test_an_output_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert_refused(run("compile", MODEL, "-o", tmp_path / "out", "--force"), "not a folder")
    assert_refused(run("compile", MODEL, "-o", tmp_path / "out/deeper"), "not a folder")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_failure_while_writing_leaves_what_was_there(
    run: Run, digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / project.MANIFEST).write_text((digits_folder / project.MANIFEST).read_text())

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(project, "save_plan", full)
    calibration = tmp_path / "few.npz"
    np.savez(calibration, image=images(2))
    assert_refused(run("compile", MODEL, "-o", target, "--calibrate", calibration, "--force"), "No space left")
    assert tree(tmp_path) == {"out", f"out/{project.MANIFEST}", "few.npz"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "DIR", "--levels", "reference,silicon"),
        ("verify", "DIR", "--levels", ""),
        ("verify", "DIR", "--samples", "0"),
        ("verify", "DIR", "--stall", "2"),
        ("verify", "NONE"),
        ("report", "NONE"),
        ("run", "DIR", "--inputs", "NONE", "-o", "x.npz"),
        ("run", "DIR", "-o", "x.npz"),
        ("run", "DIR", "--inputs", "NONE", "-o", "x.npz", "--level", "silicon"),
        ("collect", "DIR"),
        ("zoo", "export", "no-such-model", "-o", "x.onnx"),
        ("zoo", "export", "m3vit-nano", "-o", "x.onnx", "--task", "second"),
        ("compile",),
        ("no-such-command",),
        ("inspect", "NONE", "--no-such-option"),
    ],
    ids=" ".join,
)
def test_usage_errors_end_with_code_2(
    arguments: tuple[str, ...], run: Run, digits_folder: Path, tmp_path: Path
) -> None:
    places = {"DIR": digits_folder, "NONE": tmp_path / "none"}
    outcome = run(*(places.get(argument, argument) for argument in arguments))
    assert outcome.code == 2
    assert outcome.err.strip()
    assert "Traceback" not in outcome.err
    assert tree(tmp_path) == set()


def test_inputs_list_the_names(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, image=images(2))
    assert_refused(
        run("run", digits_folder, "--inputs", inputs, "-o", tmp_path / "o.npz"), "missing 'task'", "'image', 'task'"
    )
    np.savez(inputs, image=images(2), task=np.zeros(2, int), extra=np.zeros(2))
    assert_refused(run("verify", digits_folder, "--inputs", inputs), "unknown 'extra'", "'digit.labels'")


def test_a_damaged_project(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    for name in (project.MANIFEST, project.SUMMARY):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((digits_folder / name).read_text())
    assert_refused(run("verify", tmp_path), "network.npz", "compile the model again")
    (tmp_path / project.MANIFEST).write_text('{"format": 0}')
    assert_refused(run("verify", tmp_path), "another version")
    (tmp_path / project.MANIFEST).write_text("{")
    assert_refused(run("verify", tmp_path), "not readable")
