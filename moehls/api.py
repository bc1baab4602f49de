"""Each command as one function: paths and options in, results out. The command line only prints what these return."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moehls import doctor, reference, serialize, zoo
from moehls.boards import Board, load_board
from moehls.errors import MoehlsError
from moehls.frontend import inspect_tasks, read_tasks
from moehls.integer.host import dequantise_output, parts_of, quantise_image
from moehls.integer.operations import IntArray, IntegerExperts, IntegerNetwork
from moehls.integer.precision import PRECISIONS, Precision
from moehls.network.inputs import prepared
from moehls.network.operations import FloatArray, Network
from moehls.network.split import split_hidden
from moehls.network.summary import summarise
from moehls.plan import Plan, plan
from moehls.plan.cost import uniform_load
from moehls.plan.explore import explore as explore_shapes
from moehls.plan.parts import hidden_parts
from moehls.plan.search import Settings, parse_settings
from moehls.points import front_json, read_point
from moehls.project import SAMPLES, Project, check_target, json_text, open_project, write_project
from moehls.quantize import left_to_calibration, quantize, random_calibration, random_given, unmapped
from moehls.report.front import draw as draw_front
from moehls.report.page import write_page
from moehls.report.summary import first_summary, with_resources, with_vendor_reports, with_verification
from moehls.report.vendor import RESOURCES, read_vendor_reports
from moehls.rtl.report import RtlReport, read_report
from moehls.rtl.resources import Usage
from moehls.rtl.resources import count as count_resources
from moehls.samples import Samples, random_samples, read_calibration, read_samples, samples_of
from moehls.simulate import rtl_kernel, rtl_units
from moehls.simulate.rtl import MOEHLS, RtlSimulator, generated_sources, rtl_origin
from moehls.simulate.rtl_bench import BenchResult
from moehls.simulate.simulator import Simulator
from moehls.simulate.simulators import BENCH_PACKAGES, require_rtl_packages, simulator
from moehls.simulate.verify import Verification
from moehls.simulate.verify import verify as verify_levels

Progress = Callable[[str, float], None]
LevelName = Literal["reference", "csim", "rtl"]
LEVELS: tuple[LevelName, ...] = ("reference", "csim", "rtl")
DEFAULT_LEVELS = ",".join(LEVELS)
_SAMPLES = 2
"""samples that a project keeps, but at least one a task"""


@dataclass(frozen=True)
class Compiled:
    """A project that was written."""

    project: Path
    summary: dict[str, Any]
    warnings: tuple[str, ...]


def inspect(models: Path | Sequence[Path], settings: Mapping[str, str]) -> dict[str, Any]:
    """What the front end recognises; several files are tasks.

    `recognised` (or None), `unsupported` nodes, `float_error`, `warnings`, and `unmapped`: what of a recognised network has no
    place on the accelerator.
    """
    found = inspect_tasks(_files(models), settings)
    return found.json() | {"unmapped": [] if found.network is None else list(unmapped(found.network))}


def compile(
    models: Path | Sequence[Path],
    directory: Path,
    *,
    calibration: Path | None = None,
    board: str = "zcu104",
    precision: str = "w8a8",
    clock_mhz: float | None = None,
    settings: Mapping[str, str] | None = None,
    point: str | None = None,
    force: bool = False,
    progress: Progress = lambda text, share: None,
) -> Compiled:
    """Compile an ONNX file, or files that are tasks of one model, to a project folder, written whole or not at all.

    `point` names a point of a file of `explore` (`F.json:N`), whose settings of the shape are taken.

    Raises:
        MoehlsError: anything about the model, the samples, the settings, the board or the folder that does not fit.
    """
    check_target(directory, force)
    if precision not in PRECISIONS:
        raise MoehlsError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    target = load_board(board)
    of_plan = {key: value for key, value in (settings or {}).items() if key in Settings.__dataclass_fields__}
    of_model = {key: value for key, value in (settings or {}).items() if key not in of_plan}
    clock = target.clock_mhz if clock_mhz is None else clock_mhz
    if point is not None:
        of_plan = _point_settings(point, board, precision, clock) | of_plan
    fixed = parse_settings(of_plan)
    progress("reading the model", 0.0)
    noticed: list[str] = []
    paths = _files(models)
    network = read_tasks(paths, of_model, warn=noticed.append)
    given, warnings = _calibration(network, calibration)
    images = prepared(network.input, given)
    unscaled = left_to_calibration(network)
    if unscaled:
        noticed.append(f"the graph has no scale for {', '.join(unscaled)}: chosen by calibration")

    def quantising(done: int, steps: int, name: str) -> None:
        progress(f"quantising {name}", 0.1 + 0.6 * done / steps)

    recognised = summarise(network)
    network, integer, parts = _quantised(network, images, PRECISIONS[precision], target, fixed, quantising)
    if parts > 1 and fixed.hidden_parts is None:
        noticed.append(
            f"hidden layers are computed in {parts} parts: whole, their activations do not fit {target.name}"
        )
    progress("running the reference", 0.7)
    samples = _project_samples(network, given)
    runs = [reference.run(integer, image, int(task)) for image, task in zip(samples.images, samples.tasks, strict=True)]
    progress("planning", 0.8)
    planned = plan(integer, target, clock, of_plan, _expert_load(integer, runs))
    source = {"samples": len(images), "random": calibration is None}
    noticed += _in_parts(planned, target, fixed)
    summary = first_summary(recognised, integer, planned, source, parts)
    progress("writing the project", 0.9)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    project = write_project(directory, network, integer, planned, samples, runs, digest, summary)
    return Compiled(project.path, summary, (*noticed, *warnings))


def explore(
    models: Path | Sequence[Path],
    *,
    output: Path | None = None,
    board: str = "zcu104",
    precision: str = "w8a8",
    clock_mhz: float | None = None,
    settings: Mapping[str, str] | None = None,
    progress: Progress = lambda text, share: None,
) -> dict[str, Any]:
    """The Pareto front of an ONNX file's accelerators as JSON, by the cost model; written to `output` with a drawing beside it.

    Quantised on one random image: cycles and resources do not depend on the values, and every expert is taken to get as many
    tokens as any other.

    Raises:
        MoehlsError: anything about the model, the settings or the board that does not fit.
    """
    if output is not None and (output.suffix == ".svg" or not output.absolute().parent.is_dir()):
        raise MoehlsError(
            f"{output}: wanted is a .json file in a folder that exists; the drawing goes to .svg beside it"
        )
    if precision not in PRECISIONS:
        raise MoehlsError(f"unknown precision {precision!r}; known are {', '.join(PRECISIONS)}")
    target = load_board(board)
    of_plan = {key: value for key, value in (settings or {}).items() if key in Settings.__dataclass_fields__}
    of_model = {key: value for key, value in (settings or {}).items() if key not in of_plan}
    fixed = parse_settings(of_plan)
    clock = target.clock_mhz if clock_mhz is None else clock_mhz
    progress("reading the model", 0.0)
    network = read_tasks(_files(models), of_model)
    progress("sizing the operations", 0.2)
    _, integer, parts = _quantised(network, random_calibration(network, 0)[:1], PRECISIONS[precision], target, fixed)
    found = explore_shapes(
        integer,
        target,
        clock,
        replace(fixed, hidden_parts=parts),
        uniform_load(integer),
        lambda share: progress("shapes", 0.6 + 0.4 * share),
    )
    result = front_json(network.name, target, board, precision, clock, found)
    if output is not None:
        output.write_text(json_text(result))
        output.with_suffix(".svg").write_text(draw_front(result))
    return result


def verify(
    directory: Path,
    levels: Sequence[str],
    inputs: Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    stall: float = 0.0,
    bounded: bool = False,
    waves: Path | None = None,
    progress: Progress = lambda text, share: None,
) -> Verification:
    """Run `levels` on samples and update the project's summary.

    The samples are those of `inputs` (at most `samples` of them), or `samples` random images from `seed`, or the project's
    own. `stall` is the chance of a stall an interface and cycle of the RTL; with `bounded` the FIFOs and memories of the C
    simulation hold no more than their depths. The RTL writes waves (FST) to `waves`.

    Raises:
        MoehlsError: no such level, no project, samples that do not fit, or a level that cannot run here.
    """
    wanted = [name.strip() for name in levels]
    unknown = [name for name in wanted if name not in LEVELS]
    if unknown or not wanted:
        raise MoehlsError(f"unknown level {', '.join(map(repr, unknown))}; the levels are {', '.join(LEVELS)}")
    project = open_project(directory)
    chosen = _verification_samples(project, inputs, samples, seed)
    simulators: dict[str, Simulator] = {
        name: simulator(project, name, seed=seed, stall=stall, bounded=bounded, waves=waves)
        for name in LEVELS
        if name in wanted and name != "reference"
    }
    result = verify_levels(
        project.network,
        project.integer,
        project.program,
        chosen,
        simulators,
        fidelity="reference" in wanted,
        progress=progress,
    )
    for machine in simulators.values():
        if isinstance(machine, RtlSimulator):
            machine.close()
    project.write_summary(with_verification(project.summary(), result))
    return result


def run(
    directory: Path,
    inputs: Path,
    output: Path,
    level: LevelName = "reference",
    raw: bool = False,
    progress: Progress = lambda text, share: None,
) -> int:
    """Outputs of every sample of `inputs` to the `.npz` `output`, under the ONNX output names; returns how many samples.

    `raw` adds the machine's integers `[samples, rows, channels]` as `NAME.raw`, of each part where an output is a sum.

    Raises:
        MoehlsError: no project, samples that do not fit, a level that cannot run here, or an output that cannot be written.
    """
    if not output.absolute().parent.is_dir():
        raise MoehlsError(f"{output}: the folder {output.parent} does not exist")
    project = open_project(directory)
    samples = read_samples(inputs, project.network)
    machine = None if level == "reference" else simulator(project, level)
    integers: dict[str, list[IntArray]] = {o.name: [] for o in project.integer.outputs}
    for index in range(len(samples)):
        found = _outputs(project.integer, machine, samples.images[index], int(samples.tasks[index]))
        for name, value in found.items():
            integers[name].append(value)
        progress(f"sample {index + 1} of {len(samples)}", (index + 1) / len(samples))
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for o in project.integer.outputs:
        if not o.part_of:
            inner = o.shape[1:] if o.shape[:1] == (1,) else o.shape
            parts = [integers[part.name] for part in parts_of(project.integer, o.name)]
            real = [
                dequantise_output(project.integer, o.name, *given).reshape(inner) for given in zip(*parts, strict=True)
            ]
            arrays[o.name] = np.stack(real)
        if raw:
            arrays[f"{o.name}.raw"] = np.stack(integers[o.name])
    serialize.write_npz(output, arrays)
    return len(samples)


def report(directory: Path) -> Path:
    """Write report/index.html; returns its path.

    Raises:
        MoehlsError: there is no project, or its summary is damaged.
    """
    project = open_project(directory)
    return write_page(project)


def collect(directory: Path) -> list[str]:
    """Read the vendor's reports in report/vendor into the summary; returns what was found, in words.

    Raises:
        MoehlsError: no project, no report, or a report that says the step failed.
    """
    project = open_project(directory)
    folder = project.path / "report/vendor"
    reports = read_vendor_reports(folder)
    found = [f"{name}: {value}" for name, value in vars(reports).items() if value is not None]
    if not found:
        raise MoehlsError(f"{folder}: holds no report; make csynth, cosim or bitstream write them")
    project.write_summary(with_vendor_reports(project.summary(), reports))
    return found


def rtl(directory: Path) -> tuple[tuple[Path, ...], RtlReport]:
    """SystemVerilog of the kernel in rtl/, generated where the C++ has changed; returns the files and what the generator says.

    Raises:
        MoehlsError: no project, a tool of the RTL flow is missing, or the C++ leaves the subset.
    """
    files = generated_sources(open_project(directory))
    return files, read_report(directory / "report" / "rtl.json")


def resources(directory: Path) -> tuple[Usage, Mapping[str, Any]]:
    """Count the RTL's resources by yosys into report/resources.json and the summary; returns the count and the summary.

    Raises:
        MoehlsError: no project, a tool of the RTL flow is missing, or yosys fails.
    """
    project = open_project(directory)
    usage = count_resources(
        generated_sources(project), project.manifest["interfaces"]["kernel"], directory / "build/resources"
    )
    (directory / "report/resources.json").write_text(json_text(usage.as_json()))
    counted = {name: getattr(usage.total, name) for name in RESOURCES}
    summary = with_resources(project.summary(), "yosys", counted)
    project.write_summary(summary)
    return usage, summary


def bench(
    directory: Path, only: Sequence[str] = (), progress: Progress = lambda text, share: None
) -> list[BenchResult]:
    """Run the cocotb benches of the project's units and of its kernel on its first samples, one a task.

    `only` names some of them. With `RTL=vitis` it is the bench of the kernel alone.

    Raises:
        CheckFailed: a test failed.
        MoehlsError: no project, no such bench, or a tool of the RTL flow is missing.
    """
    known = (*rtl_units.NAMES, rtl_kernel.NAME)
    unknown = [name for name in only if name not in known]
    if unknown:
        raise MoehlsError(f"unknown bench {', '.join(map(repr, unknown))}; the benches are {', '.join(known)}")
    project = open_project(directory)
    require_rtl_packages(BENCH_PACKAGES)
    samples = read_samples(directory / SAMPLES, project.network)
    tasks = range(project.integer.tasks)
    images = [samples.images[n % len(samples)] for n in range(max(2, len(tasks)))]
    wanted = [name for name in known if name in only or not only]
    units = [name for name in wanted if name in rtl_units.NAMES and rtl_origin() == MOEHLS]
    found: list[BenchResult] = []
    if units:
        progress("recording steps", 0.0)
        recorded = rtl_units.prepare(project, list(zip(images, tasks, strict=False)), units)
        for n, name in enumerate(units):
            progress(name, n / len(wanted))
            result = recorded.run(name)
            found += [] if result is None else [result]
    if rtl_kernel.NAME in wanted:
        progress(rtl_kernel.NAME, len(units) / len(wanted))
        frames = [rtl_kernel.kernel_frame(project, image, n % len(tasks)) for n, image in enumerate(images)]
        found.append(rtl_kernel.run_kernel_bench(project, frames))
    return found


def tools() -> tuple[doctor.Tool, ...]:
    """What `moehls doctor` shows."""
    return doctor.tools()


def zoo_models() -> dict[str, str]:
    """Name and description of every model of the zoo."""
    return dict(zoo.zoo_names())


def zoo_export(
    name: str,
    output: Path,
    weights: Path | None,
    task: str,
    exporter: zoo.Exporter,
    opset: int,
    settings: Mapping[str, str],
) -> None:
    """Export a model of the zoo to ONNX.

    Raises:
        MoehlsError: unknown name, task, setting or opset, weights of another model, or torch is missing.
    """
    if task != "all" and not (task.isascii() and task.isdigit()):
        raise MoehlsError(f"--task {task}: wanted is a number or all")
    zoo.export(name, output, weights, "all" if task == "all" else int(task), exporter, opset, settings)


def _point_settings(point: str, board: str, precision: str, clock_mhz: float) -> dict[str, str]:
    chosen = read_point(point)
    here, there = (board, precision, clock_mhz), (chosen.board, chosen.precision, chosen.clock_mhz)
    if here != there:
        wanted = f"--board {there[0]} --precision {there[1]} --clock-mhz {there[2]:g}"
        raise MoehlsError(f"--point {point}: its front was made with {wanted}; give these, or explore again")
    return chosen.settings


def _in_parts(planned: Plan, board: Board, fixed: Settings) -> Iterator[str]:
    """What the plan, and not the user, has put on the chip part by part."""
    blocks, groups = planned.shape.token_blocks, planned.shape.head_groups
    if blocks > 1 and fixed.token_blocks is None:
        yield (
            f"pixels, attention probabilities and what routers read lie on the chip in up to {blocks} blocks of tokens: whole, "
            f"they do not fit {board.name}"
        )
    if groups > 1 and fixed.head_groups is None:
        yield (
            f"queries, keys and values lie on the chip in up to {groups} groups of heads: whole, they do not fit {board.name}"
        )


def _files(models: Path | Sequence[Path]) -> Sequence[Path]:
    return [models] if isinstance(models, Path) else models


def _quantised(
    network: Network,
    images: FloatArray,
    precision: Precision,
    board: Board,
    settings: Settings,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Network, IntegerNetwork, int]:
    """The network, its hidden layers in as many parts as the board needs, quantised; and how many parts."""
    integer = quantize(network, images, precision, progress)
    parts = hidden_parts(integer, board, settings)
    if parts > 1:
        network = split_hidden(network, parts)
        integer = quantize(network, images, precision, progress)
    return network, integer, parts


def _calibration(network: Network, path: Path | None) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    if path is not None:
        return read_calibration(path, network), ()
    warning = (
        "no calibration samples (--calibrate): calibrated on random images, so the ranges are guesses and accuracy will "
        "suffer; give a few dozen real images"
    )
    return random_given(network, 0), (warning,)


def _project_samples(network: Network, given: np.ndarray[Any, Any]) -> Samples:
    count = max(_SAMPLES, network.tasks)
    return samples_of(network, given[np.arange(count) % len(given)], np.arange(count, dtype=np.int64) % network.tasks)


def _expert_load(integer: IntegerNetwork, runs: Sequence[reference.Execution]) -> dict[str, list[float]]:
    """Mean tokens of each expert over the runs, by the name of the experts operation."""
    load = {}
    for op in integer.operations:
        if isinstance(op, IntegerExperts):
            counts = [run.routing(op.routing).tokens(len(op.first_weight)) for run in runs]
            load[op.name] = [float(tokens) for tokens in np.mean(counts, axis=0)]
    return load


def _verification_samples(project: Project, inputs: Path | None, count: int | None, seed: int) -> Samples:
    if inputs is not None:
        found = read_samples(inputs, project.network)
        return found if count is None else found.first(count)
    if count is None:
        return read_samples(project.path / SAMPLES, project.network)
    source, levels = project.integer.input, 1 << project.integer.precision.activation_bits
    low, high = -source.offset * source.scale, (levels - 1 - source.offset) * source.scale
    return random_samples(project.network, count, seed, low, high)


def _outputs(integer: IntegerNetwork, machine: Simulator | None, image: FloatArray, task: int) -> dict[str, IntArray]:
    if machine is None:
        execution = reference.run(integer, image, task)
        return {o.name: execution.array(o.value) for o in integer.outputs}
    return machine.run(quantise_image(integer, image), task, trace=False).outputs
