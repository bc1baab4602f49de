"""Projects that several areas test, compiled once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from moehls import api
from moehls.project import Project, open_project
from moehls.resources import resource
from moehls.simulate import csim
from moehls.simulate.verilator import OBJECTS

DIGITS = resource("models") / "digits"
WORKERS_SHARE = "tests/csim"
"""The folder of tests whose builds every file of it uses."""


class FilesTogether(LoadScopeScheduling):
    """A file's tests on one worker, since they share what its fixtures build."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder == WORKERS_SHARE else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    return FilesTogether(config, log)


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
