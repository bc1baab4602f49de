"""How fast RTL runs whole frames here: `python -m benchmarks speed PROJECT [--inputs F.npz] [--frames N]`.

In goes a project, and images (else noise); out come what building the simulator took, unless it was there, and for each frame its
cycles a second, and a second of the simulator's processor time, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moehls.integer.host import quantise_image
from moehls.plan.layout import input_bytes
from moehls.project import open_project
from moehls.samples import random_samples, read_samples
from moehls.simulate.rtl import RtlSimulator, dram_of


def main(arguments: Sequence[str]) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--frames", type=int, default=4)
    options = parser.parse_args(arguments)
    project = open_project(options.project)
    plan, network = project.plan, project.network
    zero, one = np.zeros(network.input.shape[0]), np.ones(network.input.shape[0])
    samples = read_samples(options.inputs, network) if options.inputs else random_samples(network, 1, 0, zero, one)
    begin, used = time.monotonic(), time.process_time() + _children()
    RtlSimulator(project, dram_of(project)).close()
    used = time.process_time() + _children() - used
    print(f"RTL and simulator built in {time.monotonic() - begin:.0f} s, {used:.0f} s of processor time")
    for frame in range(options.frames):
        sample = frame % len(samples)
        data = input_bytes(quantise_image(project.integer, samples.images[sample]), plan.input, plan.shape)
        used = _children()
        simulator = RtlSimulator(project, dram_of(project))
        begin = time.monotonic()
        run = simulator.frame(data, int(samples.tasks[sample]))
        elapsed = time.monotonic() - begin
        simulator.close()
        processor = run.cycles / (_children() - used) / 1e3
        print(
            f"{run.cycles:,} cycles: {processor:.1f} k a second of processor, {run.cycles / elapsed / 1e3:.1f} k a second"
        )


def _children() -> float:
    """Seconds of processor time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
