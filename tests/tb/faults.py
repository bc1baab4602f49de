"""Campaigns of faults: `python -m tests.tb.faults NUMBER [SEED]` (the Makefile's `faults`) prints what is not seen.

`NUMBER` breaks of the generated C++ in the C simulation, and as many of the generated RTL in Verilator. Verification runs
several networks on one machine, images that reach the saturations among them, and random programs of single steps. A break
is seen where a value differs, the simulation hangs or dies, a stream keeps values, or a step takes other cycles. One that is
not seen is

- none, where that is proved (C++: the compiler makes the very same code of it; RTL: the process and its broken text are
  sequentially equivalent, `moehls.simulate.rtl_proofs`);
- a survivor otherwise, listed with what the proof says.

Verification must see at least 95 % of the breaks that are not proved to be none.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moehls.plan.shape import Shape
from moehls.project import Project
from moehls.simulate import cpp_faults
from moehls.simulate.csim import Library
from moehls.simulate.faults import Check, Checked, Fault, frames_of
from moehls.simulate.rtl import RtlSimulator, dram_of, layout_of, project_kernel
from moehls.simulate.rtl_faults import Campaign, broken_text, choose
from moehls.simulate.rtl_proofs import Proof, compared
from tests.support.random_networks import Sizes, random_image
from tests.tb.explained import explained
from tests.tb.projects import TINY, Variant, write_family
from tests.tb.step_programs import roomy, step_programs

LEAST = 0.95
"""of the breaks that are not proved to be none"""
SLOW = {"latency": 300, "bandwidth_q8": 64, "stall_q8": 96, "seed": 7}
"""settings of a DRAM that gives a quarter of a beat a cycle and stalls three times in eight"""
SLOWED = 3
"""every third program runs behind it too"""
SAME_CODE = "the compiler makes the same code"
IMAGES = 2
"""of a campaign, and as many that saturate"""
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

    seen: dict[str, list[Fault]]
    """by what shows them: values, a hang, cycles, …"""
    none: dict[str, list[Fault]]
    """breaks that change nothing, by the kind of proof"""
    survivors: dict[str, list[Fault]]
    """breaks that nothing shows and nothing proves to be none, by what the proof says"""

    def __len__(self) -> int:
        return sum(len(faults) for group in (self.seen, self.none, self.survivors) for faults in group.values())

    @property
    def share(self) -> float:
        """Seen breaks among all that are not proved to change nothing."""
        seen, survivors = (sum(map(len, group.values())) for group in (self.seen, self.survivors))
        return seen / max(1, seen + survivors)

    def show(self, what: str) -> None:
        """Every fault that was not seen, and the sums."""
        for kind, group in (("survives", self.survivors), ("none", self.none)):
            for reason, faults in group.items():
                for fault in faults:
                    print(f"{kind}, {reason}: {fault}")
        for kind, group in (("seen", self.seen), ("none", self.none), ("survive", self.survivors)):
            sums = ", ".join(f"{len(faults)} {reason}" for reason, faults in group.items())
            print(f"{what}: {sum(map(len, group.values()))} {kind} ({sums})")
        print(f"{what}: {100 * self.share:.1f} % seen of those that are not proved to change nothing", flush=True)


def sort_of(seen: str) -> str:
    """What shows a break."""
    for word in ("cycles", "hangs", "dies", "stream", "memory", "results"):
        if word in seen:
            return {"hangs": "hang", "dies": "crash", "memory": "values", "results": "values"}.get(word, word)
    return "values"


def grouped(pairs: Iterable[tuple[str, Fault]]) -> dict[str, list[Fault]]:
    """Faults by their first."""
    found: dict[str, list[Fault]] = {}
    for name, fault in pairs:
        found.setdefault(name, []).append(fault)
    return found


def images_of(project: Project, seed: int, number: int) -> list[np.ndarray]:
    """`number` images over the pixel range, and as many of black and white pixels, which reach the saturations."""
    network = project.integer
    images = [random_image(network, seed + n) for n in range(number)]
    far = float(np.abs(network.input.scale).max()) * (2 << network.precision.activation_bits)  # beyond every range
    return images + [(np.sign(image - np.median(image)) * far).astype(np.float32) for image in images]


def verification(projects: Sequence[Project], number: int, seed: int) -> list[Check]:
    """Frames of every project and task, and programs of single steps, some of them behind a slow DRAM too."""
    programs = step_programs(projects[0].plan.shape, projects[0].integer.activations, seed)
    return [*frames(projects, number, seed), *programs, *map(Slow, programs[::SLOWED])]


def frames(projects: Sequence[Project], number: int, seed: int) -> list[Check]:
    """Frames of every project, task and image of `images_of`."""
    found: list[Check] = []
    for project in projects:
        images = images_of(project, seed, number)
        found += frames_of(project, [(image, task) for image in images for task in range(project.integer.tasks)])
    return found


@dataclass(frozen=True)
class Slow:
    """A check behind a slow DRAM that stalls: processes wait for each other where they do not otherwise."""

    check: Check

    def csim(self, library: Library) -> str | None:
        """The C simulation knows no time."""
        return self.check.csim(library)

    def rtl(self, simulator: RtlSimulator) -> Checked:
        """Run it on the RTL, from a reset on, with which the stalls begin anew."""
        usual = dram_of(simulator.project).settings()
        for name, value in SLOW.items():
            simulator.bench.command("dram", name, value)
        simulator.bench.command("reset")
        try:
            return self.check.rtl(simulator)
        finally:
            for name in SLOW:
                simulator.bench.command("dram", name, usual[name])
            simulator.bench.command("reset")


def run_cpp(projects: Sequence[Project], number: int, seed: int, checks: Sequence[Check]) -> Result:
    """`number` faults in the C++ of the projects, which is the same."""
    first = projects[0]
    campaign = cpp_faults.Campaign(first, number, seed, checks)
    outcomes = [campaign.run(n) for n in range(len(campaign.faults))]
    seen = grouped((sort_of(outcome.seen), outcome.fault) for outcome in outcomes if outcome.seen is not None)
    unseen = [outcome.fault for outcome in outcomes if outcome.seen is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = pool.map(lambda fault: cpp_faults.same_code(first, fault), unseen)
    proofs = {fault: SAME_CODE for fault, equal in zip(unseen, same, strict=True) if equal}
    return sorted_out(first.plan.shape, seen, unseen, proofs, "")


def run_rtl(projects: Sequence[Project], number: int, seed: int, checks: Sequence[Check]) -> Result:
    """`number` faults in the RTL of the projects, which is the same."""
    first = projects[0]
    sources = {path.name: path for path in project_kernel(first).sources}
    size = max(ROOM, *(layout_of(project).size for project in projects))
    faults = choose(list(sources.values()), number, seed)
    verdicts = Campaign(first, faults, checks, size).verdicts()
    seen = grouped((sort_of(v.seen), v.fault) for v in verdicts if v.seen is not None)
    unseen = [v.fault for v in verdicts if v.seen is None]
    unexplained = [fault for fault in unseen if explained(fault, first.plan.shape) is None]

    def proof(fault: Fault) -> str:
        source = sources[fault.file]
        folder = first.path / "build/proofs" / f"{source.stem}.{fault.line}.{fault.kind}"
        return compared(source, broken_text(source, fault), first.plan.shape, folder).value

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        proofs = dict(zip(unexplained, pool.map(proof, unexplained), strict=True))
    return sorted_out(first.plan.shape, seen, unseen, proofs, Proof.UNKNOWN.value)


def sorted_out(
    shape: Shape, seen: dict[str, list[Fault]], unseen: Sequence[Fault], proofs: dict[Fault, str], unproved: str
) -> Result:
    """What was not seen: proved to change nothing, known to with a reason, or neither."""
    none: list[tuple[str, Fault]] = []
    survivors: list[tuple[str, Fault]] = []
    for fault in unseen:
        proof, reason = proofs.get(fault, unproved), explained(fault, shape)
        if proof in (SAME_CODE, Proof.EQUAL.value):
            none.append((proof, fault))
        elif reason is not None:
            none.append((f"explained: {reason}", fault))
        else:
            survivors.append((proof, fault))
    return Result(seen, grouped(none), grouped(survivors))


def main() -> None:
    """Run the campaigns on random networks and print them."""
    number, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        projects = write_family(Path(folder), seed, LARGE, roomy)
        checks = verification(projects, IMAGES, seed)
        results = {what: run(projects, number, seed, checks) for what, run in (("C++", run_cpp), ("RTL", run_rtl))}
    for what, result in results.items():
        result.show(what)
    sys.exit(any(result.share < LEAST for result in results.values()))


if __name__ == "__main__":
    main()
