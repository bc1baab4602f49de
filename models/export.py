"""A zoo model to an ONNX file by either of torch's exporters.

In: a model's name, its settings and weights, or a module. Out: one `.onnx` file with the weights inside; the same call
gives the same bytes. Inputs `image` [1, C, H, W] and, for all tasks in one graph, `task`, an int64 scalar.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import onnx
import torch
from torch import Tensor, nn

from moehls.errors import MoehlsError

from .config import with_settings
from .external import External, build_external
from .m3vit import M3Vit, initialise
from .presets import EXTERNAL, PRESETS
from .strip import strip
from .weights import load_weights

Exporter = Literal["ts", "dynamo"]

OPSETS: dict[str, tuple[int, int]] = {"ts": (13, 23), "dynamo": (17, 24)}


class _OneTask(nn.Module):
    """A model with its task fixed, so that the graph holds this task's gates only."""

    def __init__(self, model: M3Vit, task: int) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = self.model(image, self.task)
        return out


def export(
    name: str,
    out: Path,
    weights: Path | None,
    task: int | Literal["all"],
    exporter: Exporter,
    opset: int,
    settings: Mapping[str, str],
) -> None:
    """Build the zoo model `name` and write it to `out`; `settings` change its `VitConfig`, `seed` its random weights.

    Raises:
        MoehlsError: unknown name, setting, task or opset, or weights that are not this model's.
    """
    model = build(name, weights, settings)
    export_model(model, out, task, exporter, opset)


def build(name: str, weights: Path | None, settings: Mapping[str, str]) -> M3Vit | External:
    """The zoo model `name` with its settings; weights from `weights`, the preset's own, or drawn from the seed."""
    changes = dict(settings)
    try:
        seed = int(changes.pop("seed", "0"))
    except ValueError as error:
        raise MoehlsError(f"zoo setting seed={settings['seed']!r}: expected a whole number") from error
    if name in EXTERNAL:
        if weights or changes:
            what = "--weights" if weights else f"--set {next(iter(changes))}"
            raise MoehlsError(f"{name} comes from another library with its own shape: {what} does not apply")
        return build_external(name, seed)
    if name not in PRESETS:
        raise MoehlsError(f"unknown zoo model {name!r}; known: {', '.join([*PRESETS, *EXTERNAL])}")
    preset = PRESETS[name]
    model = M3Vit(with_settings(preset.config, changes)).eval()
    initialise(model, seed)
    if weights:
        load_weights(weights, model)
    elif preset.weights and "seed" not in settings:
        load_weights(Path(__file__).parent / preset.weights, model)
    return model


def export_model(
    model: M3Vit | External, out: Path, task: int | Literal["all"], exporter: Exporter, opset: int
) -> None:
    """Write `model` to `out`; `task` fixes the task, or `all` makes it an input where the model has several."""
    first, last = OPSETS[exporter]
    if not first <= opset <= last:
        raise MoehlsError(f"opset {opset}: the {exporter} exporter writes opsets {first} to {last}")
    tasks = model.config.tasks if isinstance(model, M3Vit) else 1
    if task != "all" and not 0 <= task < tasks:
        raise MoehlsError(f"task {task}: the model has tasks 0 to {tasks - 1}")
    if isinstance(model, M3Vit):
        config = model.config
        shape = (1, config.image_channels, config.image_height, config.image_width)
        names = [name for name, _ in config.outputs] or ["tokens"]
    else:
        shape, names = (1, *model.image_shape), ["logits"]
    inputs: tuple[Tensor, ...] = (torch.zeros(shape),)
    module: nn.Module = model
    if tasks > 1 and task == "all":
        inputs += (torch.tensor(0),)
    elif isinstance(model, M3Vit):
        module = _OneTask(model, 0 if task == "all" else task)
    data = _onnx_bytes(module.eval(), inputs, names, exporter, opset)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise MoehlsError(f"{out}: cannot be written ({error.strerror})") from error


def _onnx_bytes(
    module: nn.Module, inputs: tuple[Tensor, ...], output_names: list[str], exporter: Exporter, opset: int
) -> bytes:
    options: dict[str, Any] = {
        "opset_version": opset,
        "input_names": ["image", "task"][: len(inputs)],
        "output_names": output_names,
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if exporter == "ts":
            buffer = io.BytesIO()
            torch.onnx.export(module, inputs, cast(Any, buffer), dynamo=False, **options)
            proto = onnx.load_from_string(buffer.getvalue())
        else:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, **options)
            proto = cast(torch.onnx.ONNXProgram, program).model_proto
    strip(proto)
    return bytes(proto.SerializeToString(deterministic=True))
