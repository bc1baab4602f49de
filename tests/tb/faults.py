"""A campaign of faults: `python -m tests.tb.faults NUMBER [SEED]` (the Makefile's `faults`) prints every survivor.

Faults that no image of the large set shows in a stage or an output count as equivalent on what the network exercises; of the
others, verification with the usual number of images must see at least 95 %.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moehls.project import Project
from moehls.simulate.rtl import project_kernel
from moehls.simulate.rtl_faults import Campaign, Verdict, choose, frames_of
from tests.support.random_networks import Sizes, random_image
from tests.tb.projects import write_random_project

IMAGES = 6
MORE_IMAGES = 12


@dataclass(frozen=True)
class Result:
    """The verdicts of a campaign."""

    seen: list[Verdict]
    survivors: list[Verdict]
    """faults that only the larger set of images shows"""
    equivalent: list[Verdict]

    @property
    def share(self) -> float:
        """Seen faults among those that are not equivalent."""
        return len(self.seen) / max(1, len(self.seen) + len(self.survivors))


def images_of(project: Project, seed: int, number: int) -> list[np.ndarray]:
    """`number` images over the pixel range, and as many of black and white pixels, which reach the saturations."""
    network = project.integer
    images = [random_image(network, seed + n) for n in range(number)]
    far = float(np.abs(network.input.scale).max()) * (2 << network.precision.activation_bits)  # beyond every range
    return images + [(np.sign(image - np.median(image)) * far).astype(np.float32) for image in images]


def run_campaign(project: Project, number: int, seed: int) -> Result:
    """`number` faults in the project's RTL, one after another."""
    tasks = range(project.integer.tasks)
    usual = [(image, task) for image in images_of(project, 0, IMAGES) for task in tasks]
    more = [(image, task) for image in images_of(project, 100, MORE_IMAGES) for task in tasks]
    faults = choose(project_kernel(project).sources, number, seed)
    campaign = Campaign(project, faults, frames_of(project, [*usual, *more]))
    seen, survivors, equivalent = [], [], []
    try:
        for n in range(len(faults)):
            verdict, by_usual = campaign.verdict(n, len(usual))
            (seen if by_usual else survivors if verdict.seen else equivalent).append(verdict)
    finally:
        campaign.close()
    return Result(seen, survivors, equivalent)


def main() -> None:
    """Run a campaign on a random network and print it."""
    number, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        result = run_campaign(write_random_project(Path(folder), seed, Sizes()), number, seed)
    for verdict in result.survivors:
        print(f"survives: {verdict.fault}\n    seen only with more images: {verdict.seen}")
    for verdict in result.equivalent:
        print(f"no effect: {verdict.fault}" + (" (other cycles)" if verdict.effect else ""))
    print(f"{len(result.seen)} seen, {len(result.survivors)} survive, {len(result.equivalent)} have no effect")
    print(f"{100 * result.share:.1f} % of the faults with an effect are seen")
    sys.exit(result.share < 0.95)


if __name__ == "__main__":
    main()
