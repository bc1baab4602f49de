"""Fidelity of the integers by precision: SQNR with routing free and forced, cosine, expert choices kept, accuracy.

In: an ONNX model, calibration images and the samples to measure on, as `moehls compile` and `moehls run` take them. Out:
a table, a row a precision and task. Samples with labels give the accuracy of the integers and of the float model.

    python -m benchmarks fidelity [MODEL.onnx --calibrate IMAGES.npz --inputs SAMPLES.npz] [--precision w8a8]…
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from moehls.frontend import read_network
from moehls.integer.operations import IntegerNetwork
from moehls.integer.precision import PRECISIONS
from moehls.network.operations import Network
from moehls.quantize import quantize, random_calibration
from moehls.reference import run
from moehls.resources import resource
from moehls.samples import Samples, read_calibration, read_samples
from moehls.simulate.compare import Fidelity, FidelityMeter

DIGITS = resource("models") / "digits"
COLUMNS = (
    "precision",
    "task",
    "samples",
    "forced SQNR",
    "free SQNR",
    "cosine",
    "choices kept",
    "accuracy",
    "float",
    "seconds",
)


def measure(network: Network, integer: IntegerNetwork, samples: Samples, task: int) -> Fidelity:
    """The integers against the float model, over the samples of one task."""
    meter = FidelityMeter(network, integer)
    for index in np.nonzero(samples.tasks == task)[0]:
        labels = {name: label[index] for name, label in samples.labels.items()}
        meter.add(samples.images[index], task, run(integer, samples.images[index], task), labels)
    return meter.result()


def row(precision: str, task: int, found: Fidelity, seconds: float) -> list[str]:
    """One line of the table."""
    accuracies = [a for a in found.accuracy if a.task == task]
    return [
        precision,
        str(task),
        str(found.samples),
        _decibel(found.sqnr_forced_db),
        _decibel(found.sqnr_db),
        "–" if found.cosine is None else f"{found.cosine:.5f}",
        "–" if found.routing_agreement is None else f"{100 * found.routing_agreement:.2f} %",
        ", ".join(f"{100 * a.integer:.2f} %" for a in accuracies) or "–",
        ", ".join(f"{100 * a.float_:.2f} %" for a in accuracies) or "–",
        f"{seconds:.1f}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Quantise the model in each precision and print the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks fidelity", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="default: the trained digits model, with its images")
    parser.add_argument("--calibrate", type=Path, help="calibration images; without them random ones")
    parser.add_argument("--inputs", type=Path, help="samples to measure on")
    parser.add_argument("--precision", action="append", choices=list(PRECISIONS), help="default: all")
    options = parser.parse_args(arguments)
    if options.model is None:
        options.model, options.calibrate = DIGITS / "digits.onnx", options.calibrate or DIGITS / "calibration.npz"
        options.inputs = options.inputs or DIGITS / "test.npz"
    if options.inputs is None:
        parser.error("--inputs is needed with a model")
    network = read_network(options.model, {})
    calibration = options.calibrate
    images = random_calibration(network, 0) if calibration is None else read_calibration(calibration, network)
    samples = read_samples(options.inputs, network)
    table = Table(*COLUMNS, title=f"{network.name}: calibrated on {len(images)} images")
    for name in options.precision or PRECISIONS:
        start = time.process_time()
        integer = quantize(network, images, PRECISIONS[name])
        seconds = time.process_time() - start
        for task in np.unique(samples.tasks):
            table.add_row(*row(name, int(task), measure(network, integer, samples, int(task)), seconds))
    Console(width=140).print(table)


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"
