"""Projects of random integer networks, without a float model: enough for every simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moehls.boards import load_board
from moehls.emit.hls import emit_hls
from moehls.emit.manifest import manifest
from moehls.integer import storage
from moehls.integer.host import quantise_image
from moehls.integer.operations import IntegerNetwork
from moehls.network.operations import GateNormalisation
from moehls.plan import Plan, build_program, plan, save_plan, weights_bytes
from moehls.plan.shape import Shape
from moehls.project import MANIFEST, Project, json_text
from tests.support.random_networks import Sizes, random_image, random_integer_network

TINY = Sizes(
    tokens=7, width=18, heads=2, layers=2, mlp=20, experts=4, hidden=11, k=2, tasks=2, prefix=1, patch=(3, 5), head=5
)
Variant = tuple[Sizes, GateNormalisation]
"""what a random network is made of, besides its seed"""
HARDWARE = ("pools", "gated", "sides", "norm_targets", "wide", "plain_norms")
"""hardware that only some networks need"""
SMALL_SHAPE = {
    "token_parallel": "4", "block": "8", "epilogue_lanes": "4", "ports": "2", "fifo_beats": "64", "lut_columns": "2"
}  # fmt: skip


def write_random_project(
    path: Path, seed: int, sizes: Sizes = TINY, settings: dict[str, str] = SMALL_SHAPE, **network: str
) -> Project:
    """A project at `path` with all that a simulator reads."""
    integer = random_integer_network(seed, sizes=sizes, **network)  # type: ignore[arg-type]
    return _write(path, integer, plan(integer, load_board("zcu104"), 300.0, settings))


def _write(path: Path, integer: IntegerNetwork, planned: Plan) -> Project:
    (path / "data").mkdir(parents=True, exist_ok=True)
    found = manifest(integer, build_program(integer, planned.shape), planned, "none")
    (path / MANIFEST).write_text(json_text(found))
    emit_hls(planned.shape, integer.activations, path)
    storage.save(path / "data/integer_network.npz", integer)
    save_plan(path / "data/plan.npz", planned)
    weights_bytes(integer, planned).tofile(path / "data/weights.bin")
    return Project(path, found)


def write_family(path: Path, seed: int, variants: Sequence[Variant], grow: Callable[[Shape], Shape]) -> list[Project]:
    """Projects of several networks for one machine, grown from the largest that one of them needs: the same C++ runs them all."""
    found = [
        write_random_project(path / str(n), seed + n, sizes, normalisation=normalisation)
        for n, (sizes, normalisation) in enumerate(variants)
    ]
    shapes = [project.plan.shape for project in found]
    depths = ("activation", "residual", "raw", "kept", "norm", "parameter")
    sizes = {f"{name}_depth": max(getattr(shape, f"{name}_depth") for shape in shapes) for name in depths}
    sizes |= {name: max(getattr(shape, name) for shape in shapes) for name in ("max_tokens", "max_experts")}
    parts = {name: any(getattr(shape, name) for shape in shapes) for name in HARDWARE}
    shape = grow(replace(shapes[0], **sizes, **parts))
    return [_write(project.path, project.integer, _on(project, shape)) for project in found]


def _on(project: Project, shape: Shape) -> Plan:
    """The plan of a project with its stream in the format of another machine."""
    program = build_program(project.integer, shape)
    beats = shape.word_bits // (128 * shape.ports)
    return replace(
        project.plan, shape=shape, stages=program.stages, weight_words=program.words, weight_beats=program.words * beats,
        first_beats=program.first_words * beats,
    )  # fmt: skip


def pixels_of(network: IntegerNetwork, seed: int) -> np.ndarray:
    """Quantised pixels of a random image."""
    return quantise_image(network, random_image(network, seed))
