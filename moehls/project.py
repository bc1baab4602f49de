"""A project folder: written whole or not at all, and read again.

In: the networks, the plan and samples. Out: the folder of `docs/compile.md`; or, of a folder, a `Project`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from moehls import __version__, reference, serialize
from moehls.emit.hls import KERNEL_NAME, emit_hls
from moehls.emit.manifest import FORMAT, manifest
from moehls.emit.results import result_bytes
from moehls.errors import MoehlsError
from moehls.integer import storage
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntegerNetwork
from moehls.network import operations, processing
from moehls.network.operations import Network
from moehls.network.processing import Step
from moehls.plan import Plan, build_program, load_plan, save_plan, weights_bytes
from moehls.plan.layout import input_bytes
from moehls.plan.steps import Program
from moehls.resources import resource
from moehls.samples import Samples

MANIFEST = "moehls.json"
SUMMARY = "report/summary.json"
SAMPLES = "data/samples/inputs.npz"
EXPECTED = "data/samples/expected.npz"
_NETWORK = "data/network.npz"
_INTEGER = "data/integer_network.npz"
_PLAN = "data/plan.npz"
_NETWORK_CLASSES = (
    *(cls for cls in operations.Operation.__args__),
    operations.Lattice,
    operations.Network,
    operations.NetworkInput,
    operations.NetworkOutput,
    Step,
)


@dataclass(frozen=True)
class Project:
    """A project folder. What it holds is read when it is first asked for."""

    path: Path
    manifest: dict[str, Any]

    @cached_property
    def network(self) -> Network:
        """The float network."""
        loaded = serialize.load(self.path / _NETWORK, _NETWORK_CLASSES)
        if not isinstance(loaded, Network):
            raise MoehlsError(f"{self.path / _NETWORK}: not a network; compile the model again")
        return loaded

    @cached_property
    def integer(self) -> IntegerNetwork:
        """The integer network: the specification of the numbers."""
        return storage.load(self.path / _INTEGER)

    @cached_property
    def plan(self) -> Plan:
        """Shape, memory map and estimates."""
        return load_plan(self.path / _PLAN)

    @cached_property
    def program(self) -> Program:
        """The step program, built again from the integer network and the shape."""
        return build_program(self.integer, self.plan.shape)

    def summary(self) -> dict[str, Any]:
        """report/summary.json as it is now."""
        return _read_json(self.path / SUMMARY)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace report/summary.json in one step."""
        path = self.path / SUMMARY
        temporary = path.with_suffix(".new")
        temporary.write_text(json_text(summary))
        os.replace(temporary, path)


def open_project(path: Path) -> Project:
    """The project in the folder `path`.

    Raises:
        MoehlsError: there is no project, or one of another version.
    """
    if not (path / MANIFEST).is_file():
        raise MoehlsError(f"{path}: not a project (it has no {MANIFEST}); write one with moehls compile")
    found = _read_json(path / MANIFEST)
    if found.get("format") != FORMAT:
        raise MoehlsError(f"{path}: a project of another version of moehls; compile the model again")
    return Project(path, found)


def check_target(path: Path, force: bool) -> None:
    """Whether a project may be written at `path`; changes nothing.

    Raises:
        MoehlsError: something is there that is no project, or a project without `force`.
    """
    if path.exists() and not path.is_dir():
        raise MoehlsError(f"{path}: is there and is not a folder; choose another output folder")
    if path.resolve() == Path.cwd():
        raise MoehlsError(f"{path}: is the current folder, which cannot be replaced; choose another output folder")
    for parent in path.resolve().parents:
        if parent.exists():
            if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
                raise MoehlsError(f"{path}: {parent} is not a folder that can be written to")
            break
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / MANIFEST).is_file():
        raise MoehlsError(f"{path}: holds something else than a moehls project; choose another output folder")
    if not force:
        raise MoehlsError(f"{path}: holds a project already; --force replaces it")


def write_project(
    path: Path,
    network: Network,
    integer: IntegerNetwork,
    plan: Plan,
    samples: Samples,
    executions: Sequence[reference.Execution],
    input_hash: str,
    summary: Mapping[str, Any],
) -> Project:
    """Write the project at `path`, replacing one that is there (`check_target` comes first).

    All of it is written beside `path` and then renamed, so that `path` is whole or as it was. `executions` are the
    reference's of `samples`; `summary` is the first report/summary.json.
    """
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        work.chmod(0o755)
        program = build_program(integer, plan.shape)
        found = manifest(integer, program, plan, input_hash)
        for folder in ("data/samples", "data/cosim", "report", "host", "scripts", "testbench"):
            (work / folder).mkdir(parents=True)
        (work / MANIFEST).write_text(json_text(found))
        (work / SUMMARY).write_text(json_text(summary))
        emit_hls(plan.shape, integer.activations, work)
        _write_data(work, network, integer, plan, samples, executions)
        _write_templates(work, plan, int(samples.tasks[0]))
        _replace(target, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Project(path, found)


def json_text(value: Mapping[str, Any]) -> str:
    """JSON as the project's files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _write_data(
    work: Path,
    network: Network,
    integer: IntegerNetwork,
    plan: Plan,
    samples: Samples,
    executions: Sequence[reference.Execution],
) -> None:
    serialize.save(work / _NETWORK, network)
    storage.save(work / _INTEGER, integer)
    save_plan(work / _PLAN, plan)
    weights_bytes(integer, plan).tofile(work / "data/weights.bin")
    serialize.write_npz(work / SAMPLES, samples.arrays(network))
    expected = [{o.name: execution.array(o.value) for o in integer.outputs} for execution in executions]
    stacked = {o.name: np.stack([outputs[o.name] for outputs in expected]) for o in integer.outputs}
    serialize.write_npz(work / EXPECTED, stacked)
    pixels = quantise_image(integer, samples.images[0])
    input_bytes(pixels, plan.input, plan.shape).tofile(work / "data/cosim/input.bin")
    result_bytes(expected[0], plan.outputs).tofile(work / "data/cosim/expected.bin")


def _write_templates(work: Path, plan: Plan, task: int) -> None:
    templates = resource("templates")
    for name in ("part", "board_part"):
        if not re.fullmatch(r"[\w.:-]+", getattr(plan.board, name), re.ASCII):
            raise MoehlsError(
                f"board {plan.board.name!r}: {name} = {getattr(plan.board, name)!r} is not a name Vivado takes"
            )
    context = {
        "version": __version__,
        "kernel": KERNEL_NAME,
        "part": plan.board.part,
        "board_part": plan.board.board_part,
        "clock_mhz": f"{plan.clock_mhz:g}",
        "ports": plan.shape.ports,
        "task": task,
        "weights_depth": plan.weight_beats,
        "first_beats": plan.first_beats,
        "input_depth": plan.input_beats,
        "output_depth": plan.output_beats,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # Tcl and C++; the board's names are checked above, the rest are numbers
    )
    for source, target in (
        ("scripts/config.tcl.j2", "scripts/config.tcl"),
        ("project/testbench.cpp.j2", "testbench/main.cpp"),
    ):
        (work / target).write_text(environment.get_template(source).render(context))
    for script in sorted((templates / "scripts").glob("*.tcl")):
        shutil.copyfile(script, work / "scripts" / script.name)
    shutil.copyfile(templates / "host/driver.py", work / "host/driver.py")
    shutil.copyfile(processing.__file__, work / "host/processing.py")
    shutil.copyfile(templates / "project/Makefile", work / "Makefile")
    (work / "local.mk").write_text(f"# This machine's moehls; not part of the project.\nMOEHLS ?= {_command()}\n")


def _command() -> str:
    """How make calls this moehls: quoted for the shell, dollars for make."""
    return "'" + sys.executable.replace("'", "'\\''").replace("$", "$$").replace("#", "\\#") + "' -m moehls"


def _replace(path: Path, work: Path) -> None:
    """Rename `work` to `path`; what was there goes only after that."""
    if not path.exists():
        os.rename(work, path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.rename(path, old / "old")
    try:
        os.rename(work, path)
    except OSError:
        os.rename(old / "old", path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MoehlsError(f"{path}: not readable ({error}); compile the model again") from error
    if not isinstance(found, dict):
        raise MoehlsError(f"{path}: not a JSON object; compile the model again")
    return found
