"""What the command line prints: in go the results of `moehls.api`, out come rich tables. Text from files is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from moehls.api import Compiled
from moehls.doctor import Tool
from moehls.report.vendor import RESOURCES
from moehls.rtl.resources import Usage
from moehls.simulate.rtl_bench import BenchResult
from moehls.simulate.verify import Verification


def plain(text: object) -> str:
    """Text for a console: control characters made visible, markup escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in str(text))
    return escape(shown)


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, nothing elsewhere; call it with what is done now and the share that is done."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, share: bar.update(task, description=plain(text), completed=share)


def inspection(console: Console, found: Mapping[str, Any]) -> None:
    """The model that `moehls inspect` recognised and what of it cannot be mapped, or the nodes that it did not recognise."""
    model = found["recognised"]
    for warning in found["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {plain(warning)}", soft_wrap=True)
    if model is None:
        _refusals(console, found["unsupported"])
        return
    console.print(plain(model["model"]), style="bold", soft_wrap=True)
    table = _table("", "")
    for key, value in model.items():
        if key not in ("model", "blocks", "outputs"):
            table.add_row(key.replace("_", " "), plain(_text(value)))
    table.add_row("outputs", plain(", ".join(f"{o['name']} {list(o['shape'])}" for o in model["outputs"])))
    table.add_row("largest error against onnxruntime", f"{found['float_error']:.1e}")
    console.print(table)
    if model["blocks"]:
        names = list(model["blocks"][0])
        console.print("blocks", style="bold", soft_wrap=True)
        blocks = _table("block", *(name.replace("_", " ") for name in names))
        for number, block in enumerate(model["blocks"]):
            blocks.add_row(str(number), *(plain(_text(block[name])) for name in names))
        console.print(blocks)
    for text in found["unmapped"]:
        console.print(f"[red]no place on the accelerator:[/red] {plain(text)}", soft_wrap=True)


def _refusals(console: Console, nodes: Sequence[Mapping[str, Any]]) -> None:
    """The nodes that were not recognised; those with one reason and one remedy together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        shapes = ", ".join("?" if shape is None else str(list(shape)) for shape in node["shapes"])
        scope = f" in {node['scope']}" if node["scope"] else ""
        groups.setdefault((node["reason"], node["remedy"]), []).append(
            f"{node['op']} {node['name']}{scope} on {shapes}"
        )
    counts = f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {len(groups)} reason{'s' * (len(groups) != 1)}"
    console.print(f"not recognised: {counts}", style="bold", soft_wrap=True)
    for (reason, remedy), places in groups.items():
        console.print(f"[red]{plain(reason)}[/red]", soft_wrap=True)
        for place in places:
            console.print(f"  {plain(place)}", soft_wrap=True)
        console.print(f"  [green]instead:[/green] {plain(remedy)}", soft_wrap=True)


def compiled(console: Console, result: Compiled) -> None:
    """What `moehls compile` wrote."""
    summary = result.summary
    console.print(plain(f"{summary['model']} → {result.project}"), style="bold", soft_wrap=True)
    table = _table("", "")
    table.add_row(
        "board, clock, precision", f"{summary['board']}, {summary['clock_mhz']:g} MHz, {summary['precision']}"
    )
    table.add_row("tokens, parameters", f"{summary['tokens']:,}, {summary['parameters']:,}")
    table.add_row("MACs, weight bytes", f"{summary['macs']:,}, {summary['weight_bytes']:,}")
    table.add_row("cycles (estimated)", f"{summary['cycles_estimated']:,}")
    table.add_row("latency", f"{summary['latency_ms']:.3f} ms, {summary['fps']:,.0f} images/s")
    for name in RESOURCES:
        found = summary[name]
        if found["value"] is not None:
            table.add_row(name, f"{found['value']:,g} of {found['available']:,} ({found['origin']})")
    console.print(table)
    console.print(f"next: moehls verify {plain(result.project)}", soft_wrap=True)


def front(console: Console, found: Mapping[str, Any]) -> None:
    """The points of `moehls explore`, and their cycles against their DSPs."""
    points = found["points"]
    title = f"{found['model']} on {found['board']}, {found['precision']}, {found['clock_mhz']:g} MHz"
    console.print(plain(f"{title}: {len(points)} shapes that no other beats, estimated"), style="bold", soft_wrap=True)
    table = _table("point", "cycles", "ms", "DSP", "BRAM36", "URAM", "LUT", "Tt×B", "Le", "ports", "FIFO")
    for point in points:
        s = point["settings"]
        resources = (f"{point[name]:,g}" for name in ("dsp", "bram36", "uram", "lut"))
        shape = (f"{s['token_parallel']}×{s['block']}", s["epilogue_lanes"], s["ports"], s["fifo_beats"])
        table.add_row(str(point["point"]), f"{point['cycles']:,}", f"{point['latency_ms']:.2f}", *resources, *shape)
    board = (f"{found['available'][name]:,}" for name in ("dsp", "bram36", "uram", "lut"))
    table.add_section()
    table.add_row("board", "", "", *board)
    console.print(table)
    for line in _scatter([(point["cycles"], point["dsp"]) for point in points]):
        console.print(line, soft_wrap=True)


def _scatter(points: Sequence[tuple[float, float]], width: int = 64, height: int = 14) -> list[str]:
    """Points (cycles, DSPs) as text: cycles to the right, logarithmic, and DSPs upwards from 0."""
    left, right, top = min(x for x, _ in points), max(x for x, _ in points), max(y for _, y in points)
    stretch = width / math.log(max(right / left, 1.01))
    rows = [[" "] * (width + 1) for _ in range(height + 1)]
    for x, y in points:
        rows[height - round(height * y / top)][round(stretch * math.log(x / left))] = "●"
    lines = [f"{f'{top:,.0f}' if n == 0 else '':>6} │{''.join(row).rstrip()}" for n, row in enumerate(rows)]
    ends = f"{left:,.0f}", f"{right:,.0f} cycles, logarithmic"
    return ["   DSP", *lines, f"{'0':>6} └{'─' * width}", f"{'':>8}{ends[0]}{ends[1]:>{width - len(ends[0])}}"]


def verification(console: Console, result: Verification) -> None:
    """A row a level, and the fidelity of the reference to the float model."""
    console.print("verification", style="bold", soft_wrap=True)
    table = _table("level", "samples", "stages", "s/sample", "cycles", "cycles/s", "result")
    for level in result.levels:
        if level.name == "reference":
            text = "the specification"
        elif level.difference is None:
            text = "[green]equal in every bit[/green]"
        else:
            text = f"[red]differs:[/red] {plain(level.difference)}"
        cycles = "" if level.cycles is None else f"{level.cycles:,}"
        rate = "" if level.cycles is None else f"{level.cycles / max(level.seconds, 1e-9):,.0f}"
        stages = str(level.stages) if level.stages else ""
        table.add_row(level.name, str(level.samples), stages, f"{level.seconds:.3f}", cycles, rate, text)
    console.print(table)
    if result.fidelity is None:
        return
    found = result.fidelity
    console.print("fidelity", style="bold", soft_wrap=True)
    table = _table("reference against the float model", "")
    table.add_row("SQNR", _decibel(found.sqnr_db))
    table.add_row("SQNR, expert choices forced", _decibel(found.sqnr_forced_db))
    table.add_row("cosine", "" if found.cosine is None else f"{found.cosine:.6f}")
    if found.routing_agreement is not None:
        table.add_row("expert choices kept", f"{100 * found.routing_agreement:.2f} %")
    if found.classes_kept is not None:
        table.add_row("classes kept", f"{100 * found.classes_kept:.2f} %")
    for accuracy in found.accuracy:
        text = f"{100 * accuracy.integer:.2f} % (float {100 * accuracy.float_:.2f} %) of {accuracy.labelled} labels"
        table.add_row(f"accuracy of {plain(accuracy.output)}, task {accuracy.task}", text)
    console.print(table)


def collected(console: Console, found: Sequence[str]) -> None:
    """Which figures of the vendor's reports went into the summary."""
    for line in found:
        console.print(plain(line))


def benches(console: Console, found: Sequence[BenchResult]) -> None:
    """The benches that passed, a row each."""
    table = _table("bench", "unit", "runs", "tests passed", "s")
    for bench in found:
        table.add_row(bench.name, plain(bench.unit), f"{bench.runs:,}", str(bench.tests), f"{bench.seconds:.0f}")
    console.print(table)
    console.print(f"{len(found)} benches, {sum(bench.tests for bench in found)} tests passed")


def resources(console: Console, usage: Usage, summary: Mapping[str, Any]) -> None:
    """What yosys counts, a row a process, and the total beside the plan's and the board's."""
    console.print("resources by yosys", style="bold", soft_wrap=True)
    table = _table("process", *RESOURCES)
    for name, cells in usage.processes.items():
        table.add_row(plain(name), *(f"{getattr(cells, kind):,g}" for kind in RESOURCES))
    rows = {"total": summary["resources"]["yosys"], "planned": summary["resources"]["planned"]}
    for name, counts in {**rows, "board": summary["available"]}.items():
        table.add_row(name, *(f"{counts[kind]:,g}" for kind in RESOURCES))
    console.print(table)


def tools(console: Console, found: Sequence[Tool]) -> None:
    """The table of `moehls doctor`."""
    console.print("doctor", style="bold", soft_wrap=True)
    table = _table("tool", "found", "gives")
    for tool in found:
        state = (
            f"[green]{plain(tool.found)}[/green]" if tool.found else f"[yellow]missing[/yellow]: {plain(tool.remedy)}"
        )
        table.add_row(plain(tool.name), state, plain(tool.gives))
    console.print(table)


def zoo(console: Console, models: Mapping[str, str]) -> None:
    """The models of the zoo and what they are."""
    console.print("zoo", style="bold", soft_wrap=True)
    table = _table("model", "what it is")
    for name, description in models.items():
        table.add_row(plain(name), plain(description))
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(show_header=any(columns), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    return "" if value is None else str(value)


def _decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} dB"
