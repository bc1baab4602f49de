"""Exports by both of torch's exporters compute what the module computes. Run by `make test-models`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.export import build
from models.m3vit import M3Vit
from models.presets import EXTERNAL, PRESETS
from moehls.errors import MoehlsError
from moehls.zoo import Exporter, export

DIGITS = Path(__file__).parents[2] / "models" / "digits"
EXPORTERS: list[tuple[Exporter, int]] = [("ts", 17), ("ts", 23), ("dynamo", 17), ("dynamo", 20), ("dynamo", 23)]
STYLES = [
    {"expert_style": "dense"},
    {"expert_style": "gather"},
    {"expert_style": "loop"},
    {"gate": "task-conditioned"},
    {"attention_style": "fused"},
    {"outputs": "", "final_norm": "false"},
    {"class_tokens": "0", "outputs": ""},
    {"experts": "0", "tasks": "1"},
]


def image_of(model: M3Vit) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    config = model.config
    shape = (1, config.image_channels, config.image_height, config.image_width)
    return np.random.default_rng(1).random(shape, np.float32)


def run(path: Path, image: np.ndarray[tuple[int, ...], np.dtype[np.float32]], task: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    feeds = {"image": image} | ({"task": np.array(task)} if "task" in names else {})
    return list(session.run(None, feeds))


@pytest.mark.parametrize(("exporter", "opset"), EXPORTERS)
@pytest.mark.parametrize("settings", STYLES, ids=lambda settings: "-".join(settings.values()))
def test_an_export_computes_what_the_module_computes(
    tmp_path: Path, settings: dict[str, str], exporter: Exporter, opset: int
) -> None:
    model = build("m3vit-nano", None, settings)
    assert isinstance(model, M3Vit)
    out = tmp_path / "nano.onnx"
    export("m3vit-nano", out, exporter=exporter, opset=opset, settings=settings)
    image = image_of(model)
    assert onnx.load(out).opset_import[0].version == opset
    for task in range(model.config.tasks):
        with torch.no_grad():
            wanted = model(torch.from_numpy(image), task)
        for got, want in zip(run(out, image, task), wanted, strict=True):
            np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
def test_a_noisy_gate_computes_the_same(tmp_path: Path, exporter: Exporter) -> None:
    """At opset 20: onnxruntime has no RandomNormalLike of opset 22."""
    model = build("m3vit-nano", None, {})
    assert isinstance(model, M3Vit)
    export("m3vit-nano", tmp_path / "noisy.onnx", exporter=exporter, opset=20, settings={"noisy_gate": "true"})
    assert "RandomNormalLike" in {node.op_type for node in onnx.load(tmp_path / "noisy.onnx").graph.node}
    image = image_of(model)
    with torch.no_grad():
        wanted = model(torch.from_numpy(image), 1)
    for got, want in zip(run(tmp_path / "noisy.onnx", image, 1), wanted, strict=True):
        np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
@pytest.mark.parametrize("gate", ["multi-gate", "task-conditioned"])
def test_a_fixed_task_equals_the_task_input(tmp_path: Path, exporter: Exporter, gate: str) -> None:
    settings = {"gate": gate}
    export("m3vit-nano", tmp_path / "all.onnx", exporter=exporter, settings=settings)
    model = build("m3vit-nano", None, settings)
    assert isinstance(model, M3Vit)
    image = image_of(model)
    outputs = []
    for task in (0, 1):
        export("m3vit-nano", tmp_path / "one.onnx", task=task, exporter=exporter, settings=settings)
        inputs = [value.name for value in onnx.load(tmp_path / "one.onnx").graph.input]
        assert inputs == ["image"]
        outputs.append(run(tmp_path / "one.onnx", image, 0)[0])
        np.testing.assert_allclose(outputs[task], run(tmp_path / "all.onnx", image, task)[0], atol=2e-5)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-2


@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
def test_the_same_call_gives_the_same_bytes_and_no_path_of_the_machine(tmp_path: Path, exporter: Exporter) -> None:
    for name in ("a.onnx", "b.onnx"):
        export("m3vit-nano", tmp_path / name, exporter=exporter)
    data = (tmp_path / "a.onnx").read_bytes()
    assert data == (tmp_path / "b.onnx").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in data
    export("m3vit-nano", tmp_path / "c.onnx", exporter=exporter, settings={"seed": "1"})
    assert data != (tmp_path / "c.onnx").read_bytes()


def test_the_committed_digits_model_is_the_zoo_s(tmp_path: Path) -> None:
    export("digits", tmp_path / "digits.onnx", exporter="ts", opset=17)
    assert (tmp_path / "digits.onnx").read_bytes() == (DIGITS / "digits.onnx").read_bytes()


@pytest.mark.parametrize("name", [*EXTERNAL])
@pytest.mark.parametrize(("exporter", "opset"), [("ts", 17), ("dynamo", 20)])
def test_other_libraries_models_export(tmp_path: Path, name: str, exporter: Exporter, opset: int) -> None:
    out = tmp_path / "model.onnx"
    export(name, out, exporter=exporter, opset=opset)
    image = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    with torch.no_grad():
        wanted = build(name, None, {})(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(run(out, image, 0)[0], wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 24, "exporter": "ts"}, "opsets 13 to 23"),
        ({"opset": 16, "exporter": "dynamo"}, "opsets 17 to 24"),
        ({"task": 2}, "tasks 0 to 1"),
        ({"settings": {"seed": "x"}}, "seed='x'"),
        ({"name": "timm/vit_tiny_patch16_224", "settings": {"depth": "3"}}, "--set depth does not apply"),
        ({"name": "timm/vit_tiny_patch16_224", "weights": Path("w.npz")}, "--weights does not apply"),
    ],
)
def test_a_wrong_call_is_refused_and_writes_nothing(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    name = str(arguments.pop("name", "m3vit-nano"))
    with pytest.raises(MoehlsError, match=message):
        export(name, tmp_path / "x.onnx", **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_small_preset_has_four_experts_a_token() -> None:
    config = PRESETS["m3vit-small"].config
    assert (config.width, config.heads, config.depth, config.experts, config.k) == (384, 12, 12, 16, 4)
    assert config.expert_hidden == config.width
