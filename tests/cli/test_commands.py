"""The commands on a good day: what they write, print and return."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from moehls import reference
from moehls.integer.host import dequantise_output
from moehls.project import SUMMARY, Project, open_project
from tests.cli.support import CALIBRATION, MODEL, Outcome, call, changed, images, renamed, tree
from tests.conftest import DIGITS

Run = Callable[..., Outcome]
SUMMARY_KEYS = {
    "model", "board", "clock_mhz", "precision", "tokens", "parameters", "macs", "weight_bytes", "cycles_estimated",
    "cycles_rtl", "latency_ms", "fps", "dsp", "bram36", "uram", "lut", "ff", "sqnr_db", "sqnr_forced_db", "cosine",
    "routing_agreement", "bit_exact", "steps",
}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four calibration images, for compilations that need not be accurate."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, image=images(4))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first four held-out samples with their labels."""
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    with np.load(DIGITS / "test.npz") as file:
        np.savez(path, **{name: file[name][:4] for name in file.files})
    return path


def test_a_project_holds_what_the_contract_says(digits_folder: Path) -> None:
    found = tree(digits_folder)
    for path in (
        "Makefile", "moehls.json", "include/model.hpp", "include/hardware.hpp", "include/datatypes.hpp", "src/kernel.cpp",
        "scripts/csynth.tcl", "scripts/bitstream.tcl", "data/weights.bin", "data/samples/inputs.npz", "host/driver.py",
        "report/summary.json",
    ):  # fmt: skip
        assert path in found


def test_the_summary_has_every_key(digits: Project) -> None:
    summary = digits.summary()
    assert summary.keys() >= SUMMARY_KEYS
    assert set(summary["bit_exact"]) == {"csim", "rtl"}
    assert {"name", "cycles", "macs", "weight_bytes", "utilisation"} <= summary["steps"][0].keys()
    until_the_first_word = summary["steps"][0]["start"]
    assert until_the_first_word + sum(step["cycles"] for step in summary["steps"]) == summary["cycles_estimated"]
    assert sum(step["weight_bytes"] for step in summary["steps"]) == summary["weight_bytes"]
    assert summary["dsp"]["origin"] == "planned"


def test_the_manifest_describes_the_weights(digits: Project) -> None:
    weights = digits.manifest["weights"]
    size = (digits.path / weights["file"]).stat().st_size
    assert (
        weights["ports"] * weights["chunks_per_port"] * weights["chunk_bytes"]
        == size
        == digits.summary()["weight_bytes"]
    )


def test_the_same_input_gives_the_same_bytes(run: Run, few: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("compile", MODEL, "-o", tmp_path / name, "--calibrate", few).code == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    for path in tree(tmp_path / "a"):
        if (tmp_path / "a" / path).is_file():
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


def test_a_project_is_replaced_only_by_force(run: Run, few: Path, digits_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    shutil.copytree(digits_folder, target, ignore=shutil.ignore_patterns("build"))
    (target / "stale").write_text("")
    refusal = run("compile", MODEL, "-o", target, "--calibrate", few)
    assert refusal.code == 2
    assert "--force" in refusal.err
    assert (target / "stale").exists()
    assert run("compile", MODEL, "-o", target, "--calibrate", few, "--force").code == 0
    assert not (target / "stale").exists()
    assert tree(tmp_path) == {"out", *(f"out/{path}" for path in tree(target))}


def test_without_calibration_there_is_a_warning(run: Run, tmp_path: Path) -> None:
    outcome = run("compile", MODEL, "-o", tmp_path / "out", "--set", "token_parallel=2", "--set", "block=8")
    assert outcome.code == 0
    assert "no calibration" in outcome.err
    assert open_project(tmp_path / "out").manifest["shape"]["token_parallel"] == 2


def test_a_folder_of_images_calibrates_as_one_file(run: Run, few: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(images(4)):
        np.save(folder / f"{index}.npy", image)
    for name, source in (("file", few), ("folder", folder)):
        assert run("compile", MODEL, "-o", tmp_path / name, "--calibrate", source).code == 0
    weights = [(tmp_path / name / "data/weights.bin").read_bytes() for name in ("file", "folder")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("level", ["reference", "csim"])
def test_run_writes_the_outputs_under_their_names(
    level: str, run: Run, digits: Project, inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.npz"
    assert run("run", digits.path, "--inputs", inputs, "-o", output, "--level", level, "--raw").code == 0
    with np.load(inputs) as file, np.load(output) as found:
        assert set(found.files) == {"digit", "parity", "digit.raw", "parity.raw"}
        assert found["digit"].shape == (4, 10)
        for index in range(4):
            execution = reference.run(digits.integer, file["image"][index], int(file["task"][index]))
            for out in digits.integer.outputs:
                expected = execution.array(out.value)
                np.testing.assert_array_equal(found[f"{out.name}.raw"][index], expected)
                real = dequantise_output(digits.integer, out.name, expected)
                np.testing.assert_array_equal(found[out.name][index], real.reshape(-1))


def test_verify_passes_and_updates_the_summary(run: Run, digits_folder: Path, inputs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_folder, copy)
    outcome = run("verify", copy, "--levels", "reference,csim", "--inputs", inputs, "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["passed"] is True
    assert [(level["level"], level["exact"]) for level in found["levels"]] == [("reference", None), ("csim", True)]
    assert found["levels"][1]["stages"] > 30
    assert found["fidelity"]["sqnr_forced_db"] > 22
    assert found["fidelity"]["routing_agreement"] > 0.9
    assert [(row["output"], row["task"], row["labelled"]) for row in found["fidelity"]["accuracy"]] == [
        ("digit", 0, 2), ("parity", 1, 2),
    ]  # fmt: skip
    summary = open_project(copy).summary()
    assert summary["bit_exact"] == {"csim": True, "rtl": None}
    assert summary["sqnr_db"] == found["fidelity"]["sqnr_db"]


def test_random_samples_follow_the_seed(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_folder, copy)
    options = ("--levels", "reference,csim", "--samples", "2", "--json")
    found = [json.loads(run("verify", copy, *options, "--seed", seed).out)["fidelity"]["cosine"] for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_a_flipped_weight_is_found_at_its_first_stage(
    run: Run, digits_folder: Path, inputs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_folder, copy)
    project = open_project(copy)
    step = next(step for step in project.program.steps if step.name.startswith("linear") or "norm" in step.name)
    words, index = project.program.step_words, project.program.steps.index(step)
    first = sum(words[: index + 1]) - step.instruction.payload_words
    path = copy / "data/weights.bin"
    data = bytearray(path.read_bytes())
    data[first * project.plan.shape.word_bits // 8 + 5] ^= 0x40  # high byte of a multiplier, above a 32-bit bias
    path.write_bytes(bytes(data))
    outcome = run("verify", copy, "--levels", "csim", "--inputs", inputs)
    assert outcome.code == 1
    assert f"after step {step.name}" in outcome.err
    assert "expected" in outcome.err
    assert "found" in outcome.err
    assert open_project(copy).summary()["bit_exact"]["csim"] is False


HOSTILE = {"image": '"; touch pwned; #', "task": "$(touch pwned)", "digit": "</script><img src=x onerror=alert(1)>"}


def test_names_from_the_graph_never_leave_their_quotes(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    model = changed(tmp_path / "$(touch pwned) [red]\n&.onnx", lambda model: renamed(model, HOSTILE))
    calibration = tmp_path / "hostile.npz"
    np.savez(calibration, **{HOSTILE["image"]: images(4)})
    target = tmp_path / "out of $HOME 'quoted'"
    assert run("compile", model, "-o", target, "--calibrate", calibration).code == 0
    shutil.copytree(digits_folder / "build", target / "build")  # the same sources: nothing to compile
    assert run("verify", target, "--levels", "reference,csim").code == 0
    assert run("report", target).code == 0
    page = (target / "report/index.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x" in page
    for path in sorted(target.rglob("*")):
        if path.suffix in (".cpp", ".hpp", ".tcl", ".mk") or path.name == "Makefile":
            assert "pwned" not in path.read_text(), path
    made = subprocess.run(
        ["make", "-C", str(target), "csim"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert "equal in every bit" in made.stdout
    assert not list(tmp_path.rglob("pwned"))
    assert not Path("pwned").exists()


@pytest.mark.parametrize("target", ["csynth", "cosim", "export", "bitstream"])
def test_vendor_targets_say_which_tool_is_missing(target: str, digits_folder: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    made = subprocess.run(
        ["make", "-C", str(digits_folder), target], capture_output=True, text=True, check=False, env=environment
    )
    assert made.returncode != 0
    assert "Vitis HLS is not installed here" in made.stderr
    assert tree(digits_folder / "build").isdisjoint({"csynth.done", "export.done", "bitstream"})


def test_collected_reports_replace_what_was_planned(run: Run, digits_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(digits_folder, copy, ignore=shutil.ignore_patterns("build"))
    shutil.copytree(Path(__file__).parent.parent / "report/vendor", copy / "report/vendor")
    assert run("collect", copy).code == 0
    summary = json.loads((copy / SUMMARY).read_text())
    assert summary["dsp"] == {"value": 1299, "origin": "vivado", "available": 1728}
    assert summary["resources"]["vitis"]["dsp"] == 1310
    assert summary["cycles_cosim"] == 412345
    assert summary["timing"]["vivado_worst_slack_ns"] == -0.057


def test_inspect_shows_the_model(run: Run) -> None:
    found = json.loads(run("inspect", MODEL, "--json").out)
    assert found["unsupported"] == []
    assert found["recognised"]["tasks"] == 2
    assert [block["experts"] for block in found["recognised"]["blocks"]] == [0, 8, 0, 8]
    shown = run("inspect", MODEL)
    assert shown.code == 0
    assert "softmax, top-k" in shown.out


def test_doctor_and_zoo_list(run: Run) -> None:
    outcome = run("doctor")
    assert outcome.code == 0
    assert "vitis_hls" in outcome.out
    assert "ziglang" in outcome.out
    listed = run("zoo", "list")
    assert listed.code == 0
    assert "m3vit-tiny" in listed.out


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "moehls", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_committed_model_is_small_and_fixed() -> None:
    assert MODEL.stat().st_size < 3_000_000
    assert [value.name for value in onnx.load(MODEL).graph.input] == ["image", "task"]
    assert CALIBRATION.exists()
