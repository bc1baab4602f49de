"""The command line: options in, calls of `moehls.api`, tables out.

Exit codes: 0 good, 1 a check failed, 2 usage or bad input, with one message on stderr.
"""

from __future__ import annotations

import json
import sys
import webbrowser
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from moehls import api, show
from moehls.doctor import ready
from moehls.errors import CheckFailed, MoehlsError
from moehls.simulate.rtl_bench import BenchResult

app = typer.Typer(
    help="Compile Mixture-of-Experts Vision Transformers from ONNX to bit-exact FPGA accelerators in Vitis HLS C++.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
zoo = typer.Typer(help="The model zoo: list the models, export one to ONNX.", no_args_is_help=True)
app.add_typer(zoo, name="zoo")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Models = Annotated[
    list[Path], typer.Argument(metavar="MODEL.onnx…", help="The ONNX file, or files that are tasks of one model.")
]
Project = Annotated[Path, typer.Argument(metavar="DIR", help="A project that `moehls compile` wrote.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def inspect(models: Models, as_json: Json = False, settings: Settings = None) -> None:
    """Show what was recognised in an ONNX file, or every node that was not."""
    found = api.inspect(models, _settings(settings))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show.inspection(out, found)
    if not found["recognised"]:
        names = ", ".join(map(str, models))
        raise MoehlsError(f"{names}: {len(found['unsupported'])} nodes were not recognised")
    if found["unmapped"]:
        raise MoehlsError(
            f"{', '.join(map(str, models))}: recognised, but {len(found['unmapped'])} parts cannot be mapped"
        )


@app.command("compile")
def compile_(
    models: Models,
    directory: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The project folder to write.")],
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FILE|DIR", help="Calibration samples: .npz, .npy or a folder of them.")
    ] = None,
    board: Annotated[str, typer.Option(help="The board.")] = "zcu104",
    precision: Annotated[str, typer.Option(help="The precision: w8a8 or w16a16.")] = "w8a8",
    clock_mhz: Annotated[float | None, typer.Option(help="The kernel clock; the board's own without it.")] = None,
    settings: Settings = None,
    point: Annotated[
        str | None, typer.Option(metavar="F.json[:N]", help="A point of moehls explore; the fastest without N.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a project that is there.")] = False,
) -> None:
    """Compile an ONNX file, or files that are tasks of one model, to an HLS project."""
    with show.progress(err) as report:
        compiled = api.compile(
            models,
            directory,
            calibration=calibrate,
            board=board,
            precision=precision,
            clock_mhz=clock_mhz,
            settings=_settings(settings),
            point=point,
            force=force,
            progress=report,
        )
    for warning in compiled.warnings:
        err.print(f"[yellow]warning:[/yellow] {show.plain(warning)}")
    show.compiled(out, compiled)


@app.command()
def explore(
    models: Models,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="F.json", help="Write the front, and its drawing as F.svg.")
    ] = None,
    board: Annotated[str, typer.Option(help="The board.")] = "zcu104",
    precision: Annotated[str, typer.Option(help="The precision: w8a8 or w16a16.")] = "w8a8",
    clock_mhz: Annotated[float | None, typer.Option(help="The kernel clock; the board's own without it.")] = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """List the shapes that no other beats in cycles, DSPs, block RAM and URAM, estimated."""
    with show.progress(err) as report:
        found = api.explore(
            models,
            output=output,
            board=board,
            precision=precision,
            clock_mhz=clock_mhz,
            settings=_settings(settings),
            progress=report,
        )
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show.front(out, found)
        if output is not None:
            name, drawing = show.plain(output), show.plain(output.with_suffix(".svg"))
            out.print(f"{name} and {drawing}; next: moehls compile … --point {name}:1", soft_wrap=True)


@app.command()
def verify(
    project: Project,
    levels: Annotated[
        str, typer.Option(metavar="LIST", help="Levels to run: reference, csim, rtl.")
    ] = api.DEFAULT_LEVELS,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Samples; the project's own without it.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many samples to take.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random samples and of the RTL's stalls.")] = 0,
    stall: Annotated[float, typer.Option(min=0, max=0.95, help="RTL: chance of a stall an interface and cycle.")] = 0.0,
    bounded: Annotated[
        bool,
        typer.Option(
            "--bounded",
            help="C simulation: FIFOs and memories of their declared depths; a deadlock is a failure, an index outside is one.",
        ),
    ] = False,
    waves: Annotated[Path | None, typer.Option(metavar="FILE.fst", help="RTL: write waves.")] = None,
    benches: Annotated[
        bool, typer.Option("--benches", help="RTL: the cocotb benches of the units and of the kernel as well.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a project at every level; exit 1 where a level differs from the reference in any bit."""
    with show.progress(err) as report:
        result = api.verify(project, levels.split(","), inputs, samples, seed, stall, bounded, waves, report)
    if not as_json:
        show.verification(out, result)
    found: list[BenchResult] = []
    if benches and result.passed:
        with show.progress(err) as report:
            found = api.bench(project, (), report)
    if as_json:
        print(json.dumps(result.as_json() | ({"benches": [vars(bench) for bench in found]} if found else {}), indent=2))
    elif found:
        show.benches(out, found)
    if not result.passed:
        raise CheckFailed(result.failure())


@app.command()
def run(
    project: Project,
    inputs: Annotated[Path, typer.Option(metavar="FILE.npz", help="Samples, keyed by ONNX input name.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.npz", help="The outputs, by ONNX output name.")
    ],
    level: Annotated[Literal["reference", "csim", "rtl"], typer.Option(help="What computes them.")] = "reference",
    raw: Annotated[bool, typer.Option("--raw", help="Also the machine's integers, as NAME.raw.")] = False,
) -> None:
    """Run samples on a project."""
    with show.progress(err) as report:
        count = api.run(project, inputs, output, level, raw, report)
    out.print(f"{count} samples at level {level} → {show.plain(output)}")


@app.command()
def report(
    project: Project,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write report/index.html, one page with no other files."""
    page = api.report(project)
    out.print(f"report: {show.plain(page)}", soft_wrap=True)
    if open_:
        webbrowser.open(page.resolve().as_uri())


@app.command()
def rtl(project: Project) -> None:
    """Write the SystemVerilog of the kernel to rtl/ and list its paths by the delay model (the Makefile's rtl calls it)."""
    files, report = api.rtl(project)
    out.print(show.plain(report.table()), soft_wrap=True)
    out.print(f"{len(files)} files in {show.plain(project / 'rtl')}", soft_wrap=True)


@app.command()
def resources(project: Project) -> None:
    """Count DSPs, memories, LUTs and flip-flops of the RTL by yosys (the Makefile's resources calls it)."""
    show.resources(out, *api.resources(project))


@app.command()
def bench(
    project: Project,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A bench; may be repeated.")] = None,
) -> None:
    """Run the cocotb benches: every unit's RTL alone, and the kernel at its AXI ports."""
    with show.progress(err) as report:
        found = api.bench(project, only or (), report)
    show.benches(out, found)


@app.command()
def collect(project: Project) -> None:
    """Read the vendor tools' reports into report/summary.json (the Makefile's csynth, cosim and bitstream call it)."""
    found = api.collect(project)
    show.collected(out, found)


@app.command()
def doctor() -> None:
    """What is installed, what is missing, and what each missing tool would give."""
    show.tools(out, api.tools())
    if not ready():
        raise CheckFailed("there is no C++ compiler: install g++ or pip install ziglang")


@zoo.command("list")
def zoo_list() -> None:
    """The models of the zoo."""
    show.zoo(out, api.zoo_models())


@zoo.command("export")
def zoo_export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of `moehls zoo list`.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="The ONNX file to write.")],
    weights: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Weights; random ones without it.")] = None,
    task: Annotated[str, typer.Option(metavar="N|all", help="One task, or all with the task as an input.")] = "all",
    exporter: Annotated[Literal["ts", "dynamo"], typer.Option(help="Which of torch's exporters.")] = "ts",
    opset: Annotated[int, typer.Option(help="The ONNX opset.")] = 20,
    settings: Settings = None,
) -> None:
    """Export a model of the zoo to ONNX."""
    api.zoo_export(name, output, weights, task, exporter, opset, _settings(settings))
    out.print(f"{name} → {show.plain(output)}", soft_wrap=True)


def _settings(texts: list[str] | None) -> dict[str, str]:
    settings = {}
    for text in texts or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise MoehlsError(f"--set {text}: wanted is KEY=VALUE")
        settings[key] = value
    return settings


def main() -> None:
    """Run the command line; a user's error is one message and exit code 2, a failed check exit code 1."""
    try:
        app()
    except CheckFailed as failure:
        err.print(f"[red]failed:[/red] {show.plain(failure)}", soft_wrap=True)
        sys.exit(1)
    except (MoehlsError, OSError) as error:
        err.print(f"[red]error:[/red] {show.plain(error)}", soft_wrap=True)
        sys.exit(2)
