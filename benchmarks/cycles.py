"""Estimated and measured cycles of a project: `python -m benchmarks cycles PROJECT [--draw F.svg]`.

In goes a project whose RTL has run (`moehls verify PROJECT --levels rtl`); out comes a table by step class, every step over
1 % of the frame whose estimate is more than 10 % off, and the frame. Experts are estimated with the tokens that they had in the
measured frame, the other steps as the plan estimates them. `--draw` writes the frame's timeline.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moehls.errors import MoehlsError
from moehls.plan.cost import estimate
from moehls.project import Project, open_project
from moehls.report.page import timed_steps
from moehls.report.timeline import draw, timeline

SHARE, LIMIT = 0.01, 0.1


@dataclass(frozen=True)
class MeasuredStep:
    """A step's cycles, by the cost model and in RTL."""

    name: str
    group: str
    estimated: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.estimated / max(self.measured, 1)


@dataclass(frozen=True)
class MeasuredFrame:
    """A frame in RTL: its steps, the cycles before the first of them, and what the plan had promised."""

    steps: tuple[MeasuredStep, ...]
    estimated: int
    measured: int
    planned: int

    def off(self) -> tuple[MeasuredStep, ...]:
        """Steps over `SHARE` of the frame with an estimate more than `LIMIT` off."""
        large = (step for step in self.steps if step.measured > SHARE * self.measured)
        return tuple(step for step in large if abs(step.ratio - 1) > LIMIT)


def measured_frame(project: Project) -> MeasuredFrame:
    """What `report/summary.json` has of the RTL, beside the cost model.

    Raises:
        MoehlsError: the RTL has not run.
    """
    summary, plan, program = project.summary(), project.plan, project.program
    cycles = [step["cycles_rtl"] for step in summary["steps"]]
    if summary["cycles_rtl"] is None or None in cycles:
        raise MoehlsError(f"{project.path} has no cycles of RTL; run moehls verify {project.path} --levels rtl first")
    load = next(level["expert_tokens"] for level in summary["verification"]["levels"] if level["level"] == "rtl")
    costs = estimate(program, plan.shape, plan.board, plan.clock_mhz, load, counted=True)
    steps = tuple(
        MeasuredStep(cost.name, step["class"], cost.cycles, count)
        for cost, step, count in zip(costs, summary["steps"], cycles, strict=True)
    )
    total = costs[-1].start + costs[-1].cycles
    return MeasuredFrame(steps, total, summary["cycles_rtl"], summary["cycles_estimated"])


def table(frame: MeasuredFrame) -> str:
    """The figures as text."""
    lines = [f"{'class':<12}{'steps':>6}{'estimated':>11}{'measured':>11}{'share':>8}{'ratio':>8}"]
    groups = dict.fromkeys(step.group for step in frame.steps)
    for group in groups:
        steps = [step for step in frame.steps if step.group == group]
        lines.append(_row(group, len(steps), sum(s.estimated for s in steps), sum(s.measured for s in steps), frame))
    before = (
        frame.estimated - sum(s.estimated for s in frame.steps),
        frame.measured - sum(s.measured for s in frame.steps),
    )
    lines += [_row("start", 0, *before, frame), _row("frame", len(frame.steps), frame.estimated, frame.measured, frame)]
    lines.append(f"planned with expected loads: {frame.planned:,} cycles, ratio {frame.planned / frame.measured:.3f}")
    off = frame.off()
    lines.append(f"steps over {SHARE:.0%} of the frame and more than {LIMIT:.0%} off: {len(off) or 'none'}")
    lines += [f"  {s.name}: estimated {s.estimated:,}, measured {s.measured:,}, ratio {s.ratio:.3f}" for s in off]
    return "\n".join(lines)


def _row(name: str, steps: int, estimated: int, measured: int, frame: MeasuredFrame) -> str:
    share, ratio = measured / frame.measured, estimated / max(measured, 1)
    return f"{name:<12}{steps:>6}{estimated:>11,}{measured:>11,}{share:>8.1%}{ratio:>8.3f}"


def main(arguments: Sequence[str]) -> None:
    """Print the table of one project."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks cycles", description="after moehls verify PROJECT --levels rtl"
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("--draw", type=Path, help="write the timeline of the frame as SVG")
    options = parser.parse_args(arguments)
    try:
        project = open_project(options.project)
        print(table(measured_frame(project)))
    except MoehlsError as error:
        sys.exit(f"error: {error}")
    if options.draw is not None:
        shape = project.manifest["shape"]
        drawing = timeline(timed_steps(project.summary(), shape), shape["ports"])
        if drawing is not None:
            options.draw.write_text(draw(drawing))
