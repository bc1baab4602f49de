"""The model zoo for the command line: what there is, and one model to an ONNX file.

In: names, tasks, settings and weights from the user. Out: descriptions, or an `.onnx` file. The models themselves are
the packaged folder `models/`; writing one needs torch (the extra `models`), listing them does not.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from moehls.errors import MoehlsError
from moehls.resources import resource

Exporter = Literal["ts", "dynamo"]

_PACKAGE = "moehls_models"
"""Name under which the folder is imported: `models` may be taken by a package of the user's."""


def zoo_names() -> list[tuple[str, str]]:
    """(name, description) of every model of the zoo; needs no torch."""
    presets = _module("presets")
    own: Mapping[str, Any] = presets.PRESETS
    external: Mapping[str, str] = presets.EXTERNAL
    return [(name, cast(str, preset.description)) for name, preset in own.items()] + list(external.items())


def export(
    name: str,
    out: Path,
    weights: Path | None = None,
    task: int | Literal["all"] = "all",
    exporter: Exporter = "dynamo",
    opset: int = 20,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Write the zoo model `name` to `out`; the same call gives the same bytes.

    Args:
        name: one of `zoo_names()`.
        out: the `.onnx` file; its folder must exist.
        weights: an `.npz` in the layout of docs/zoo.md; without it trained weights of the zoo, else random ones.
        task: fix this task, or `all`: one graph with the task as the int64 scalar input `task`.
        exporter: torch's TorchScript exporter (`ts`) or its `torch.export` based one (`dynamo`).
        opset: the ONNX opset to write.
        settings: changes to the model's configuration, and `seed` of the random weights, as texts.

    Raises:
        MoehlsError: torch is missing; unknown name, setting, task or opset; another model's weights; unwritable `out`.
    """
    known = [known for known, _ in zoo_names()]
    if name not in known:
        raise MoehlsError(f"unknown zoo model {name!r}; known: {', '.join(known)}")
    if not out.parent.is_dir():
        raise MoehlsError(f"{out}: the folder {out.parent} does not exist")
    if importlib.util.find_spec("torch") is None:
        raise MoehlsError("exporting a zoo model needs PyTorch; install it with: pip install 'moehls[models]'")
    write = cast(Callable[..., None], _module("export").export)
    write(name, out, weights, task, exporter, opset, settings or {})


def _module(name: str) -> ModuleType:
    """`models/<name>.py`, imported as a part of the package `moehls_models`."""
    if _PACKAGE not in sys.modules:
        folder = resource("models")
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise MoehlsError(f"{folder}: not the package of models; install moehls again")
        package = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.{name}")
