"""The zoo as far as it works without torch: its list, its settings, its errors, and the trained digits model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.config import VitConfig, with_settings
from models.presets import PRESETS
from moehls.errors import MoehlsError
from moehls.zoo import export, zoo_names

DIGITS = Path(__file__).parents[2] / "models" / "digits"


def test_the_list_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from moehls.zoo import zoo_names; print(len(zoo_names()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(zoo_names())


def test_the_list_names_and_describes_every_model() -> None:
    names = [name for name, _ in zoo_names()]
    assert {"m3vit-tiny", "m3vit-small", "m3vit-nano", "digits", "vit-tiny", "deit-tiny"} <= set(names)
    assert len(set(names)) == len(names)
    assert all(description for _, description in zoo_names())


def test_without_torch_export_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MoehlsError, match=r"moehls\[models\]"):
        export("m3vit-nano", tmp_path / "nano.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unknown_model_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(MoehlsError, match=r"'m3vit-huge'.*m3vit-tiny"):
        export("m3vit-huge", tmp_path / "huge.onnx")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoehlsError, match="nowhere does not exist"):
        export("m3vit-nano", tmp_path / "nowhere" / "nano.onnx")


def test_m3vit_tiny_is_the_published_model() -> None:
    config = PRESETS["m3vit-tiny"].config
    assert (config.tokens, config.width, config.heads, config.depth, config.mlp_hidden) == (129, 192, 3, 12, 768)
    assert (config.experts, config.expert_hidden, config.k, config.tasks) == (16, 384, 2, 2)
    assert config.moe_layers == (1, 3, 5, 7, 9, 11)
    assert (config.final_norm, config.outputs, config.epsilon) == (False, (), 1e-6)


def test_settings_replace_fields_by_their_type() -> None:
    settings = {
        "depth": "4",
        "noisy_gate": "true",
        "epsilon": "1e-12",
        "gate": "task-conditioned",
        "outputs": "a:3,b:2",
    }
    config = with_settings(PRESETS["m3vit-nano"].config, settings)
    assert (config.depth, config.noisy_gate, config.epsilon, config.gate) == (4, True, 1e-12, "task-conditioned")
    assert config.outputs == (("a", 3), ("b", 2))
    assert config.gate_inputs == config.width + config.tasks
    assert config.gates == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "4"}, "unknown zoo setting 'layers'.*depth.*seed"),
        ({"depth": "four"}, "depth='four'"),
        ({"depth": "0"}, "depth=0: must be at least 1"),
        ({"noisy_gate": "maybe"}, "noisy_gate='maybe'"),
        ({"gate": "soft"}, "multi-gate, task-conditioned"),
        ({"outputs": "digit"}, "name:classes"),
        ({"outputs": "a:3,a:2"}, "differ"),
        ({"outputs": "task:3"}, "differ"),
        ({"outputs": "a:0"}, "at least one class"),
        ({"outputs": "a:3", "class_tokens": "0"}, "class token"),
        ({"patch": "7"}, "7×7"),
        ({"heads": "5"}, "multiple of the 5 heads"),
        ({"k": "5"}, "1 ≤ k ≤ 4"),
        ({"experts": "0"}, "only gates tell tasks apart"),
        ({"epsilon": "0"}, "epsilon"),
    ],
)
def test_a_setting_that_describes_no_model_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(MoehlsError, match=message):
        with_settings(PRESETS["m3vit-nano"].config, settings)


def test_every_preset_is_a_model() -> None:
    for preset in PRESETS.values():
        assert with_settings(preset.config, {}) == preset.config
    assert with_settings(VitConfig(), {}).moe_layers == ()


def test_the_digits_model_has_the_stated_accuracy_on_held_out_images() -> None:
    session = onnxruntime.InferenceSession(DIGITS / "digits.onnx")
    with np.load(DIGITS / "test.npz") as held_out:
        images, tasks = held_out["image"], held_out["task"]
        labels = [held_out["digit.labels"], held_out["parity.labels"]]
    right = [0, 0]
    for number, (image, task) in enumerate(zip(images, tasks, strict=True)):
        logits = session.run(["digit", "parity"], {"image": image[None], "task": np.array(task)})
        right[task] += int(logits[task].argmax() == labels[task][number])
    assert [int((tasks == task).sum()) for task in (0, 1)] == [360, 360]
    assert right == [355, 360]


def test_each_digits_sample_has_the_label_of_its_task_only() -> None:
    with np.load(DIGITS / "test.npz") as held_out:
        tasks, digit, parity = held_out["task"], held_out["digit.labels"], held_out["parity.labels"]
    np.testing.assert_array_equal(digit >= 0, tasks == 0)
    np.testing.assert_array_equal(parity >= 0, tasks == 1)
    np.testing.assert_array_equal(parity[1::2], digit[::2] % 2)


@pytest.mark.parametrize("name", ["test.npz", "calibration.npz"])
def test_digits_pixels_are_exact_8_bit_levels(name: str) -> None:
    with np.load(DIGITS / name) as file:
        levels = file["image"] * 256
    assert levels.dtype == np.float32
    np.testing.assert_array_equal(levels, np.clip(np.round(levels), 0, 255))


def test_calibration_and_test_images_are_different_digits() -> None:
    with np.load(DIGITS / "test.npz") as held_out, np.load(DIGITS / "calibration.npz") as calibration:
        tested = {image.tobytes() for image in held_out["image"]}
        assert not tested & {image.tobytes() for image in calibration["image"]}


def test_the_committed_model_is_small() -> None:
    assert (DIGITS / "digits.onnx").stat().st_size < 600_000
