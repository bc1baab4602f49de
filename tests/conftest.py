"""Projects that several areas test, compiled once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls import api
from moehls.project import Project, open_project
from moehls.resources import resource
from moehls.simulate import csim

DIGITS = resource("models") / "digits"


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained digits model, compiled, with its C simulation built."""
    folder = tmp_path_factory.mktemp("projects") / "digits"
    api.compile(DIGITS / "digits.onnx", folder, calibration=DIGITS / "calibration.npz")
    csim.build(folder)
    return folder


@pytest.fixture(scope="session")
def digits(digits_folder: Path) -> Project:
    return open_project(digits_folder)
