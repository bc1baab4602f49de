"""Projects that several areas test, compiled once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from moehls import api
from moehls.project import Project, open_project
from moehls.resources import resource
from moehls.simulate import csim
from moehls.simulate.verilator import OBJECTS

DIGITS = resource("models") / "digits"
WORKERS_SHARE = "csim"
"""The folder of tests whose builds every file of it uses."""


@pytest.hookimpl(tryfirst=True)  # before the worker that reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps a file's tests on one worker, since they share what its fixtures build."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder == WORKERS_SHARE else f"{folder}/{item.path.stem}"))


@pytest.fixture(scope="session", autouse=True)
def shared_objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Verilator's runtime library is compiled once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OBJECTS, str(tmp_path_factory.mktemp("objects")))
        yield


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
