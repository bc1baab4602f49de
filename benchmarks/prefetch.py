"""Both ways to read experts, planned and measured: `python -m benchmarks prefetch [MODEL.onnx …] [-o DIR]`.

In go ONNX files, by default M3ViT-tiny (16 experts, top-2, 129 tokens) and ViT-tiny with 64 experts (top-1, 50 tokens) from the
zoo; each is compiled for the ZCU104 with experts `streamed` and `prefetched`, calibrated on photographs, and runs a frame in C
simulation and RTL. Out comes a table; the plan takes the design with fewer planned cycles. Exits 1 where a bit differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.images import natural_images
from moehls import api, show
from moehls.integer.operations import IntegerExperts
from moehls.project import open_project

MODELS = ("m3vit-tiny", "vit-tiny-64e")
DESIGNS = ("streamed", "prefetched")
_WIDTH = 130


@dataclass(frozen=True)
class Measured:
    """A design of a model: cycles a frame by the plan and in RTL, megabytes that RTL read, and who was chosen."""

    model: str
    design: str
    shape: str
    planned: int
    cycles: int
    megabytes: float
    of_megabytes: float
    """what `weights.bin` and an image hold"""
    chosen: int
    experts: int
    exact: bool


def measure(model: Path, images: Path, frame: Path, design: str, folder: Path, console: Console) -> Measured:
    """Compile `model` in `folder` with this design, and run one frame."""
    console.print(f"{model.stem}, {design}")
    with show.progress(console) as progress:
        settings = {"experts": design}
        api.compile(model, folder, calibration=images, settings=settings, force=True, progress=progress)
        found = api.verify(folder, ("csim", "rtl"), frame, progress=progress)
    project = open_project(folder)
    plan, summary = project.plan, project.summary()
    load = next(level["expert_tokens"] for level in summary["verification"]["levels"] if level["level"] == "rtl")
    counts = [tokens for op in project.integer.operations if isinstance(op, IntegerExperts) for tokens in load[op.name]]
    read = sum(step["read_bytes_rtl"] for step in summary["steps"])
    whole = 16 * (plan.weight_beats * plan.shape.ports + plan.input_beats)
    shape = f"{plan.shape.token_parallel} × {plan.shape.block}, Le {plan.shape.epilogue_lanes}"
    return Measured(
        model.stem,
        design,
        shape,
        summary["cycles_estimated"],
        summary["cycles_rtl"],
        read / 1e6,
        whole / 1e6,
        sum(count > 0 for count in counts),
        len(counts),
        found.passed,
    )


def table(rows: Sequence[Measured]) -> Table:
    """The figures."""
    found = Table(title="experts streamed in order, or prefetched by choice", title_justify="left")
    for column in (
        "model",
        "experts",
        "shape",
        "planned",
        "the plan",
        "RTL",
        "planned / RTL",
        "MB read",
        "chosen",
        "exact",
    ):
        found.add_column(column, justify="left" if column in ("model", "experts", "shape", "the plan") else "right")
    for row in rows:
        best = min(other.planned for other in rows if other.model == row.model)
        found.add_row(
            row.model,
            row.design,
            row.shape,
            f"{row.planned:,}",
            "takes it" if row.planned == best else "",
            f"{row.cycles:,}",
            f"{row.planned / row.cycles:.3f}",
            f"{row.megabytes:.2f} of {row.of_megabytes:.2f}",
            f"{row.chosen} of {row.experts}",
            "yes" if row.exact else "NO",
        )
    return found


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks prefetch")
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files with experts; two of the zoo without")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench-prefetch"), help="folder of its files")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=_WIDTH)
    options.output.mkdir(parents=True, exist_ok=True)
    models = options.models
    if not models:
        models = [options.output / f"{name}.onnx" for name in MODELS]
        for path in models:
            console.print(f"exporting {path.stem}")
            api.zoo_export(path.stem, path, None, "all", "dynamo", 20, {})
    rows = []
    for model in models:
        found = api.inspect(model, {})["recognised"]
        channels, height, width = found["image"]
        images = natural_images(height, width, channels)
        calibration, frame = options.output / f"{model.stem}.npz", options.output / f"{model.stem}-frame.npz"
        task = {found["task_input"]: np.zeros(1, np.int64)} if found["task_input"] else {}
        np.savez(calibration, image=images)
        np.savez(frame, image=images[:1], **task)  # type: ignore[arg-type]
        rows += [
            measure(model, calibration, frame, design, options.output / f"{model.stem}-{design}", console)
            for design in DESIGNS
        ]
    console.print(table(rows))
    if not all(row.exact for row in rows):
        sys.exit(1)
