"""Campaigns of faults: `python -m tests.tb.faults NUMBER [SEED]` (the Makefile's `faults`) prints every survivor.

`NUMBER` breaks of the generated C++ in the C simulation, and as many of the generated RTL in Verilator. Verification runs
several networks on one machine, images that reach the saturations among them, and random programs of single steps. A break
that it does not see is

- a survivor, if it shows in a second set of images and programs;
- none, where that is proved (C++: the compiler makes the very same code of it; RTL: SAT shows that the broken expression
  always equals the good one);
- silent otherwise: none on all that was run, but not proved to be.

Verification must see at least 95 % of the breaks that show, and of the C++'s 90 % of all that are not proved to be none.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moehls.project import Project
from moehls.simulate import cpp_faults
from moehls.simulate.faults import Check, Fault, frames_of
from moehls.simulate.rtl import layout_of, project_kernel
from moehls.simulate.rtl_faults import Campaign, choose, proved_none
from tests.support.random_networks import Sizes, random_image
from tests.tb.projects import TINY, Variant, write_family
from tests.tb.step_programs import roomy, step_programs

ROOM = 1 << 19
"""bytes of DRAM for a program of steps"""
LARGE: list[Variant] = [
    (Sizes(), "all"),
    (Sizes(tokens=10, width=28, heads=1, mlp=40, experts=4, hidden=18, pooled=True, gated=True), "all"),
    (Sizes(tokens=13, width=44, heads=2, mlp=70, experts=6, hidden=19, k=3, head=0), "chosen"),
    (Sizes(tokens=9, width=24, heads=2, experts=0, tasks=1, prefix=0, head=9), "all"),
]
SMALL: list[Variant] = [
    (replace(TINY, pooled=True), "all"),
    (Sizes(tokens=5, width=26, heads=1, mlp=30, experts=3, hidden=18, k=1, tasks=1, prefix=0, head=0), "chosen"),
]


@dataclass(frozen=True)
class Result:
    """What became of the faults of a campaign."""

    seen: list[Fault]
    survivors: list[Fault]
    """breaks that only a second set of checks shows"""
    none: list[Fault]
    """breaks that are none, by proof"""
    silent: list[Fault]
    """breaks that nothing shows and nothing proves to be none"""

    @property
    def share(self) -> float:
        """Seen breaks among those that show."""
        return len(self.seen) / max(1, len(self.seen) + len(self.survivors))

    @property
    def strict(self) -> float:
        """Seen breaks among all that are not proved to be none."""
        return len(self.seen) / max(1, len(self.seen) + len(self.survivors) + len(self.silent))

    def show(self, what: str) -> None:
        """Every fault that was not seen, and the sums."""
        for kind, faults in (("survives", self.survivors), ("none", self.none), ("silent", self.silent)):
            for fault in faults:
                print(f"{kind}: {fault}")
        print(
            f"{what}: {len(self.seen)} seen, {len(self.survivors)} survive, {len(self.none)} none, {len(self.silent)} silent"
        )
        print(
            f"seen: {100 * self.share:.1f} % of those that show, {100 * self.strict:.1f} % of all but the none",
            flush=True,
        )


def images_of(project: Project, seed: int, number: int) -> list[np.ndarray]:
    """`number` images over the pixel range, and as many of black and white pixels, which reach the saturations."""
    network = project.integer
    images = [random_image(network, seed + n) for n in range(number)]
    far = float(np.abs(network.input.scale).max()) * (2 << network.precision.activation_bits)  # beyond every range
    return images + [(np.sign(image - np.median(image)) * far).astype(np.float32) for image in images]


def verification(projects: Sequence[Project], number: int, seed: int) -> list[Check]:
    """Frames of every project and task, and programs of single steps."""
    checks: list[Check] = []
    for project in projects:
        images = images_of(project, seed, number)
        checks += frames_of(project, [(image, task) for image in images for task in range(project.integer.tasks)])
    return [*checks, *step_programs(projects[0].plan.shape, projects[0].integer.activation, seed)]


def run_cpp(projects: Sequence[Project], number: int, seed: int, images: int = 2) -> Result:
    """`number` faults in the C++ of the projects, which is the same."""
    first = projects[0]
    campaign = cpp_faults.Campaign(first, cpp_faults.choose(first, number, seed), verification(projects, images, seed))
    outcomes = [campaign.run(n) for n in range(len(campaign.faults))]
    unseen = [outcome.fault for outcome in outcomes if outcome.seen is None]
    none = [fault for fault in unseen if cpp_faults.same_code(first, fault)]
    return Result([o.fault for o in outcomes if o.seen is not None], [], none, [f for f in unseen if f not in none])


def run_rtl(projects: Sequence[Project], number: int, seed: int, images: int = 2) -> Result:
    """`number` faults in the RTL of the projects, which is the same."""
    first = projects[0]
    sources = project_kernel(first).sources
    size = max(ROOM, *(layout_of(project).size for project in projects))
    usual, second = verification(projects, images, seed), verification(projects, 2 * images, seed + 1000)
    campaign = Campaign(first, choose(sources, number, seed), [*usual, *second], size)
    try:
        verdicts = [campaign.verdict(n) for n in range(len(campaign.faults))]
    finally:
        campaign.close()
    seen = [v.fault for v in verdicts if v.check is not None and v.check < len(usual)]
    survivors = [v.fault for v in verdicts if v.check is not None and v.check >= len(usual)]
    unseen = [v.fault for v in verdicts if v.check is None]
    none = [fault for fault in unseen if proved_none(sources, fault, first.path / "build/proofs")]
    return Result(seen, survivors, none, [fault for fault in unseen if fault not in none])


def main() -> None:
    """Run the campaigns on random networks and print them."""
    number, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        projects = write_family(Path(folder), seed, LARGE, roomy)
        results = {"C++": run_cpp(projects, number, seed), "RTL": run_rtl(projects, number, seed)}
    for what, result in results.items():
        result.show(what)
    sys.exit(results["C++"].strict < 0.9 or results["RTL"].share < 0.95)


if __name__ == "__main__":
    main()
