"""`report/summary.json`: the figures of a project, and how each command updates its part.

In: the plan and the networks, a verification, or the vendor's reports. Out: the JSON object; functions return a new one.
`docs/report.md` lists the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moehls import __version__
from moehls.integer.operations import (
    AddResidual,
    GatedRequantise,
    GeluRequantise,
    IntegerAttention,
    IntegerConstant,
    IntegerEmbed,
    IntegerExperts,
    IntegerLinear,
    IntegerNetwork,
    IntegerNorm,
    IntegerPool,
    IntegerRoute,
)
from moehls.network.summary import Summary
from moehls.plan import Plan
from moehls.plan.cost import StepCost
from moehls.plan.uses import factors
from moehls.report.gelu import worst_activation
from moehls.report.vendor import RESOURCES, VendorReports
from moehls.simulate.verify import Verification

Json = dict[str, Any]
ORIGINS = ("planned", "yosys", "vitis", "vivado")
"""Where a resource count can come from, the better ground later."""
_BEAT_BYTES = 16
_TRANSFERS = ("LOAD", "STORE", "END", "GATHER", "INPUT", "SECTION")


def first_summary(
    model: Summary, integer: IntegerNetwork, plan: Plan, calibration: Mapping[str, Any], hidden_parts: int = 1
) -> Json:
    """What is known after compilation; figures that come later are null.

    `hidden_parts` is in how many parts the hidden layers are computed.
    """
    planned = {name: float(getattr(plan.resources, name)) for name in RESOURCES}
    summary: Json = {
        "version": __version__,
        "model": integer.name,
        "board": plan.board.name,
        "clock_mhz": plan.clock_mhz,
        "precision": integer.precision.name,
        "tokens": integer.tokens,
        "parameters": model.parameters,
        "macs": model.macs,
        "weight_bytes": plan.weight_words * plan.shape.word_bits // 8,
        "cycles_estimated": plan.cycles,
        "cycles_rtl": None,
        "cycles_cosim": None,
        "latency_ms": plan.latency_ms,
        "fps": 1e3 / plan.latency_ms,
        "sqnr_db": None,
        "sqnr_forced_db": None,
        "cosine": None,
        "routing_agreement": None,
        "classes_kept": None,
        "bit_exact": {"csim": None, "rtl": None},
        "resources": {},
        "available": {name: getattr(plan.board, name) for name in RESOURCES},
        "timing": {"vitis_clock_ns": None, "vivado_worst_slack_ns": None, "vivado_power_w": None},
        "calibration": dict(calibration),
        "hidden_parts": hidden_parts,
        "token_blocks": plan.shape.token_blocks,
        "head_groups": plan.shape.head_groups,
        "recognised": model.json(),
        "gelu": worst_activation(integer.precision, integer.activations),
        "verification": None,
        "steps": _steps(integer, plan.costs),
    }
    return with_resources(summary, "planned", planned)


def with_resources(summary: Json, origin: str, counts: Mapping[str, float | None]) -> Json:
    """Resource counts of one origin; each resource shows the count with the best ground."""
    resources = summary["resources"] | {origin: dict(counts)}
    new = summary | {"resources": resources}
    for name in RESOURCES:
        known = [o for o in ORIGINS if resources.get(o, {}).get(name) is not None]
        value = resources[known[-1]][name] if known else None
        new[name] = {
            "value": value,
            "origin": known[-1] if known else None,
            "available": summary["available"][name],
        }
    return new


def with_verification(summary: Json, verification: Verification) -> Json:
    """What `moehls verify` found: only the levels that ran change."""
    found = verification.as_json()
    levels = {level["level"]: level for level in (summary["verification"] or {}).get("levels", [])}
    levels |= {level["level"]: level for level in found["levels"]}
    order = [name for name in ("reference", "csim", "rtl") if name in levels]
    fidelity = found["fidelity"] or (summary["verification"] or {}).get("fidelity")
    exact = {name: level["exact"] for name, level in levels.items() if name in summary["bit_exact"]}
    new = summary | {
        "verification": {"levels": [levels[name] for name in order], "fidelity": fidelity},
        "bit_exact": summary["bit_exact"] | exact,
    }
    if found["fidelity"] is not None:
        names = ("sqnr_db", "sqnr_forced_db", "cosine", "routing_agreement", "classes_kept")
        new |= {name: found["fidelity"][name] for name in names}
    cycles = levels.get("rtl", {}).get("cycles")
    if cycles is not None:
        latency = cycles / summary["clock_mhz"] / 1e3
        new |= {"cycles_rtl": cycles, "latency_ms": latency, "fps": 1e3 / latency}
        measured = levels["rtl"].get("step_cycles", [])
        beats = levels["rtl"].get("step_beats", [])
        if len(measured) == len(beats) == len(summary["steps"]):
            rows = zip(summary["steps"], measured, beats, strict=True)
            new["steps"] = [s | {"cycles_rtl": count, "read_bytes_rtl": _BEAT_BYTES * read} for s, count, read in rows]
    return new


def with_vendor_reports(summary: Json, reports: VendorReports) -> Json:
    """What the reports of Vitis HLS and Vivado hold."""
    new = summary
    for origin, counts in (("vitis", reports.vitis), ("vivado", reports.vivado)):
        if counts is not None:
            new = with_resources(new, origin, counts)
    timing = {
        "vitis_clock_ns": reports.clock_ns,
        "vivado_worst_slack_ns": reports.worst_slack_ns,
        "vivado_power_w": reports.power_w,
    }
    known = {name: value for name, value in timing.items() if value is not None}
    new = new | {"timing": new["timing"] | known}
    if reports.cosim_cycles is not None:
        new["cycles_cosim"] = reports.cosim_cycles
    return new


def _steps(integer: IntegerNetwork, costs: tuple[StepCost, ...]) -> list[Json]:
    classes = step_classes(integer)
    return [
        {
            "name": cost.name,
            "operation": cost.operation,
            "kind": cost.kind,
            "class": _class(cost, classes),
            "start": cost.start,
            "cycles": cost.cycles,
            "cycles_rtl": None,
            "read_bytes_rtl": None,
            "macs": cost.macs,
            "weight_bytes": cost.weight_bytes,
            "utilisation": round(cost.utilisation, 4),
            "bound": cost.bound,
        }
        for cost in costs
    ]


def _class(cost: StepCost, classes: Mapping[str, str]) -> str:
    if cost.kind in ("SOFTMAX", "CONTEXT"):
        return "scores" if cost.kind == "SOFTMAX" else "context"
    if cost.kind in _TRANSFERS:
        return "transfer"
    return classes.get(cost.operation, "transfer")


def step_classes(integer: IntegerNetwork) -> dict[str, str]:
    """The class (of the report's legend) of each operation: an MLP is a GELU linear and the linear that reads it."""
    hidden = {
        op.output
        for op in integer.operations
        if isinstance(op, IntegerLinear) and isinstance(op.epilogue, GeluRequantise | GatedRequantise)
    } | factors(integer)
    found: dict[str, str] = {}
    for op in integer.operations:
        match op:
            case IntegerEmbed():
                found[op.name] = "embed"
            case IntegerConstant() | IntegerNorm() | IntegerPool():
                found[op.name] = "norm"
            case IntegerLinear(epilogue=epilogue):
                second = isinstance(epilogue, AddResidual) and op.input in hidden
                found[op.name] = "mlp" if op.output in hidden or second else "linear"
            case IntegerAttention():
                found[op.name] = "scores"
            case IntegerRoute():
                found[op.name] = "route"
            case IntegerExperts():
                found[op.name] = "experts"
    return found
