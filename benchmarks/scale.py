"""Compile time, peak memory and C simulation time against model size.

Every model is compiled and simulated in a process of its own, as a user would; the table shows processor seconds (user
and system, of all threads), the largest resident memory, and the ratio to the model's parameters.

    python -m benchmarks scale [MODEL.onnx[=CALIBRATION.npz] …]

Without arguments: the committed digits model and, where torch is installed, M3ViTs of growing size from the zoo, random weights.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from moehls import zoo
from moehls.errors import MoehlsError

DIGITS = Path(__file__).parent.parent / "models" / "digits"
ZOO = ("m3vit-nano", "vit-tiny", "m3vit-tiny", "m3vit-small", "vit-base-moe")


@dataclass(frozen=True)
class Cost:
    """Processor seconds and peak resident memory (MB) of one command."""

    seconds: float
    megabytes: float
    output: str


def measure(arguments: list[str]) -> Cost:
    """Run `moehls ARGUMENTS` and read its own resource usage.

    Raises:
        MoehlsError: the command failed; its message.
    """
    code = (
        "import resource, sys; from moehls.__main__ import main; sys.argv = ['moehls', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as stop:\n"
        "    if stop.code: raise\n"
        "both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
        # of this program alone: ru_maxrss counts what the process was before it became it
        "own = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print('usage', sum(u.ru_utime + u.ru_stime for u in both), max(own, both[1].ru_maxrss))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MoehlsError(f"moehls {' '.join(arguments)}: {done.stderr.strip()}")
    output, _, usage = done.stdout.rpartition("usage ")
    seconds, kilobytes = usage.split()
    return Cost(float(seconds), float(kilobytes) / 1024, output)


def models(folder: Path) -> list[tuple[str, Path, Path | None]]:
    """Name, file and calibration of the default models."""
    found: list[tuple[str, Path, Path | None]] = [("digits", DIGITS / "digits.onnx", DIGITS / "calibration.npz")]
    for name in ZOO:
        path = folder / f"{name}.onnx"
        try:
            zoo.export(name, path)
        except MoehlsError as error:
            Console(stderr=True).print(f"{name} is left out: {error}")
            continue
        found.append((name, path, None))
    return found


def main(arguments: list[str]) -> None:
    """Print the table."""
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments:
            pairs = [argument.partition("=") for argument in arguments]
            chosen = [(Path(a).stem, Path(a), Path(b) if b else None) for a, _, b in pairs]
        else:
            chosen = models(folder)
        sizes: list[tuple[float, float, float]] = []
        table = Table(title="compile and C simulation")
        for heading in ("model", "M parameters", "compile, s", "s / M", "peak, MB", "MB / M", "csim, s an image"):
            table.add_column(heading, justify="left" if heading == "model" else "right")
        for name, path, calibration in chosen:
            project = folder / name
            options = ["--calibrate", str(calibration)] if calibration else []
            cost = measure(["compile", str(path), "-o", str(project), *options])
            summary = json.loads((project / "report" / "summary.json").read_text())
            verified = measure(["verify", str(project), "--levels", "reference,csim", "--json"])
            csim = next(row for row in json.loads(verified.output)["levels"] if row["level"] == "csim")
            millions = summary["parameters"] / 1e6
            table.add_row(
                name,
                f"{millions:.2f}",
                f"{cost.seconds:.1f}",
                f"{cost.seconds / millions:.2f}",
                f"{cost.megabytes:.0f}",
                f"{cost.megabytes / millions:.0f}",
                f"{csim['seconds'] / csim['samples']:.2f}",
            )
            sizes.append((millions, cost.seconds, cost.megabytes))
            console.print(f"{name}: {cost.seconds:.1f} s, {cost.megabytes:.0f} MB")
        console.print(table)
        if len(sizes) > 1:
            console.print(slopes(np.array(sizes)))


def slopes(sizes: npt.NDArray[np.float64]) -> str:
    """Least-squares lines through `[models, (M parameters, seconds, MB)]`, and the power of the parameters at the large end."""
    millions, seconds, megabytes = sizes.T
    (a_second, b_second), (a_byte, b_byte) = (np.polyfit(millions, y, 1) for y in (seconds, megabytes))
    large = sizes[np.argsort(millions)[-3:]]
    power = np.polyfit(np.log(large[:, 0]), np.log(large[:, 1]), 1)[0]
    return (
        f"compile: {b_second:.1f} s + {a_second:.2f} s a million parameters; "
        f"memory: {b_byte:.0f} MB + {a_byte:.0f} MB a million; time grows with power {power:.2f} of the parameters "
        f"over the {len(large)} largest"
    )
