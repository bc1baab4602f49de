"""The report page: in goes a project, out comes `report/index.html`, one file with no others and no network.

All of it comes from report/summary.json and moehls.json; the template escapes every text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moehls.project import Project
from moehls.report import figures
from moehls.report.templates import render
from moehls.report.timeline import timeline

_NAMES = {"dsp": "DSP48E2", "bram36": "BRAM36", "uram": "URAM", "lut": "LUT", "ff": "flip-flops"}


def write_page(project: Project) -> Path:
    """Write the page of `project`; returns its path."""
    path = project.path / "report/index.html"
    path.write_text(render_page(project.summary(), project.manifest))
    return path


def render_page(summary: dict[str, Any], manifest: dict[str, Any]) -> str:
    """The page's HTML."""
    fidelity = (summary["verification"] or {}).get("fidelity") or {}
    routing = _by_block(fidelity.get("routing", []), summary["recognised"])
    tasks = [t for t in range(manifest["tasks"]) if any(layer["tokens"][t] for layer in routing)]
    blocks = model_blocks(summary["recognised"])
    steps = timed_steps(summary, manifest["shape"])
    return render(
        "index.html.j2",
        summary=summary,
        manifest=manifest,
        kinds=list(figures.KINDS),
        steps=steps,
        measured=steps[0]["cycles_rtl"] is not None,
        tiles=tiles(summary),
        model_text=model_text(summary["recognised"]),
        network_legend=_legend(blocks),
        accuracy=fidelity.get("accuracy", []),
        gelu=summary["gelu"],
        routing={"samples": fidelity["samples"], "figures": [(t, figures.routing(routing, t)) for t in tasks]}
        if routing
        else None,
        memories=[
            (entry, figures.memory(entry, len(summary["steps"]))) for entry in manifest["memories"] if entry["values"]
        ],
        figures={
            "network": figures.network(blocks),
            "fidelity": figures.fidelity(fidelity.get("stages", [])),
            "timeline": timeline(steps, manifest["shape"]["ports"]),
            "shares": figures.shares(steps),
            "resources": figures.resources(summary, _NAMES),
            "gelu": figures.curve(summary["gelu"]["curve"], "Error of the integer activation over its input"),
        },
    )


def tiles(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    measured = "RTL" if summary["cycles_rtl"] is not None else "estimated"
    found = [
        _tile(_time(summary["latency_ms"]), f"an image, {measured}"),
        _tile(f"{summary['fps']:,.0f}", "images a second"),
        _tile(f"{summary['weight_bytes'] / 1e6:.1f} MB", "weight stream an image"),
        _tile(_decibel(summary["sqnr_forced_db"]), "SQNR, routing forced", summary["sqnr_forced_db"] is None),
        _tile(_decibel(summary["sqnr_db"]), "SQNR", summary["sqnr_db"] is None),
    ]
    if any(block["feed_forward"] == "experts" for block in summary["recognised"]["blocks"]):
        kept = summary["routing_agreement"]
        found.append(_tile("–" if kept is None else f"{100 * kept:.1f} %", "expert choices kept", kept is None))
    if summary.get("classes_kept") is not None:
        found.append(_tile(f"{100 * summary['classes_kept']:.1f} %", "classes kept"))
    for level, exact in summary["bit_exact"].items():
        text = {None: "not run", True: "bit-exact", False: "differs"}[exact]
        style = {None: "wait", True: "good", False: "bad"}[exact]
        found.append({"value": text, "name": level, "style": style})
    return found


def timed_steps(summary: dict[str, Any], shape: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps with the RTL's cycles in the place of the estimated ones, once all are measured."""
    if any(step["cycles_rtl"] is None for step in summary["steps"]):
        return list(summary["steps"])
    capacity = shape["token_parallel"] * shape["block"] ** 2
    return [
        step | {"cycles": step["cycles_rtl"], "utilisation": step["macs"] / (capacity * max(step["cycles_rtl"], 1))}
        for step in summary["steps"]
    ]


def model_text(recognised: dict[str, Any]) -> str:
    """The recognised model in one paragraph."""
    channels, height, width = recognised["image"]
    rows, columns = recognised["patch"]
    blocks = recognised["blocks"]
    experts = [block for block in blocks if block["feed_forward"] == "experts"]
    text = (
        f"An image of {channels} × {height} × {width} in patches of {rows} × {columns} becomes {recognised['tokens']} tokens "
        f"({recognised['leading_tokens']} of them leading) of {recognised['channels']} channels, through {len(blocks)} blocks"
    )
    if blocks:
        text += f" of {blocks[0]['heads']} heads"
    if experts:
        first = experts[0]
        text += (
            f"; {len(experts)} of them route each token to {first['k']} of {first['experts']} experts of "
            f"{first['hidden']} hidden channels ({first['gate_order']})"
        )
    soft = [block for block in blocks if block["feed_forward"] == "soft"]
    if soft:
        text += (
            f"; {len(soft)} of them have soft mixtures of {soft[0]['experts']} experts with {soft[0]['k']} slots each"
        )
    if recognised["tasks"] > 1:
        text += f", for {recognised['tasks']} tasks"
    outputs = ", ".join(f"{output['name']} {list(output['shape'])}" for output in recognised["outputs"])
    return f"{text}. Outputs: {outputs}."


_BIASES = {"none": "", "shared": ", scores with one bias", "heads": ", scores with a bias a head"}


def model_blocks(recognised: dict[str, Any]) -> list[dict[str, Any]]:
    """A column a block for the drawing of the model."""
    patch = "×".join(map(str, recognised["patch"]))
    found = [{"name": "patches", "parts": [{"class": "embed", "short": patch, "title": f"patch embedding {patch}"}]}]
    for number, block in enumerate(recognised["blocks"]):
        attention = f"{block['heads']} heads of {block['head_channels']} channels"
        attention += _BIASES[block["score_bias"]]
        parts = [{"class": "scores", "short": f"{block['heads']} heads", "title": f"attention, {attention}"}]
        if block["feed_forward"] == "mlp":
            parts.append({"class": "mlp", "short": "MLP", "title": f"MLP, {block['hidden']} hidden channels"})
        elif block["feed_forward"] == "experts":
            title = f"{block['experts']} experts of {block['hidden']} hidden channels, top-{block['k']}"
            parts.append({"class": "experts", "short": f"{block['k']}/{block['experts']}", "title": title})
        elif block["feed_forward"] == "soft":
            title = f"soft mixture, {block['experts']} experts of {block['hidden']} hidden channels, {block['k']} slots each"
            parts.append({"class": "experts", "short": f"{block['experts']}·{block['k']}", "title": title})
        found.append({"name": str(number), "parts": parts})
    outputs = ", ".join(output["name"] for output in recognised["outputs"])
    found.append({"name": "out", "parts": [{"class": "linear", "short": "out", "title": f"outputs {outputs}"}]})
    return found


def _legend(blocks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    names = {"embed": "patch embedding", "scores": "attention", "mlp": "MLP", "experts": "experts", "linear": "outputs"}
    used = {part["class"] for block in blocks for part in block["parts"]}
    return [(kind, name) for kind, name in names.items() if kind in used]


def _tile(value: str, name: str, waiting: bool = False) -> dict[str, str]:
    return {"value": value, "name": name, "style": "wait" if waiting else ""}


def _by_block(routing: list[dict[str, Any]], recognised: dict[str, Any]) -> list[dict[str, Any]]:
    """Routers under the number of their block."""
    numbers = [n for n, block in enumerate(recognised["blocks"]) if block["feed_forward"] in ("experts", "soft")]
    if len(numbers) != len(routing):
        return routing
    return [layer | {"name": f"block {n}"} for n, layer in zip(numbers, routing, strict=True)]


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.2f} ms" if milliseconds >= 0.1 else f"{1e3 * milliseconds:.1f} µs"


def _decibel(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"
