"""Calls of the command line in this process, and changed copies of the digits model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from moehls import cli
from tests.conftest import DIGITS

MODEL = DIGITS / "digits.onnx"
CALIBRATION = DIGITS / "calibration.npz"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Outcome:
    """`moehls ARGUMENTS`: its exit code and what it printed."""
    monkeypatch.setattr(sys, "argv", ["moehls", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")  # of what the test starts as well
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "width", 200)
    capsys.readouterr()
    try:
        cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    return Outcome(int(code or 0), printed.out, printed.err)


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The digits model after `change`, written to `path`."""
    model = onnx.load(MODEL)
    change(model)
    onnx.save(model, path)
    return path


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Rename values of the graph."""
    graph = model.graph
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]


def images(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The first calibration images."""
    with np.load(CALIBRATION) as file:
        return np.asarray(file["image"][:count])


def tree(folder: Path) -> set[str]:
    """Every path below `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
