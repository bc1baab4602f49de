"""Names for the signals of a process: what the source calls each value, or else what it is for.

In go a process, whose graph knows the variables (`Graph.labels`), and the names that are taken; out comes a name for every value
that becomes a signal. A value without a variable of its own is called by what it is part of (`gate_mul`: a product on the
way to `gate`), a comparison by its operands (`nest_i2_is_0`).
"""

from __future__ import annotations

import re

from moehls.rtl.graph import WIRING, Node
from moehls.rtl.ir import Process
from moehls.rtl.names import spelling
from moehls.rtl.ports import port_prefix
from moehls.rtl.schedule import live_nodes

_LONGEST = 48
"""characters, without the number that tells equal names apart"""
_LEAVES = ("const", "input", "reg", "read")
_COMPARISONS = {"eq": "is", "ult": "below", "slt": "below"}
_OURS = re.compile(
    r"_(s\d+|wanted|valid|ready|data|local|start|busy|finished|done|site|argument_\d+|read_\w+|write_\w+|(dsp|pcout|slice)_\d+)$|"
    r"^(valid|step|hold|stall|advance)_\d+$|^ended$"
)
"""what the emitter calls signals of its own"""


def signal_names(process: Process, taken: set[str]) -> dict[int, str]:
    """Names of the values that something uses, different from all that are `taken`, by `Node.id`."""
    ordered = live_nodes(process)
    purposes = _purposes(process, ordered)
    used = set(taken)
    found: dict[int, str] = {}
    for node in ordered:
        if node.op not in _LEAVES and node.op not in WIRING:
            found[node.id] = _unique(_base(process, node, found, purposes), used)
    return found


def _base(process: Process, node: Node, found: dict[int, str], purposes: dict[int, str]) -> str:
    label = process.graph.labels.get(node.id)
    if label is not None:
        return f"{label.name}_next" if label.name in process.registers else label.name
    if node.op in _COMPARISONS:
        left, right = (_operand(process, a, found) for a in node.args)
        if left and right and node.args[0].op == "const":
            return f"{right}_above_{left}"
        if left and right:
            return f"{left}_{_COMPARISONS[node.op]}_{right}"
    if node.op == "not" and (inner := _operand(process, node.args[0], found)):
        return f"not_{inner}"
    purpose = purposes.get(node.id, process.name)
    return purpose if purpose.endswith(f"_{node.op}") else f"{purpose}_{node.op}"


def _operand(process: Process, node: Node, found: dict[int, str]) -> str:
    """What an operand is called, "" where it is no one thing."""
    if node.op == "const":
        return str(node.value) if node.value < 1000 else "limit"
    label = process.graph.labels.get(node.id)
    if label is not None:
        return label.name
    if node.op in WIRING:
        inner = [a for a in node.args if a.op != "const"]
        return _operand(process, inner[0], found) if len(inner) == 1 else ""
    if node.op == "read":
        return port_name(process, str(node.aux))
    return str(node.aux).partition("[")[0] if node.op in _LEAVES else found.get(node.id, "")


def _purposes(process: Process, nodes: list[Node]) -> dict[int, str]:
    """What each value without a name is for: its first user with a name, or what its first user is for."""
    best: dict[int, tuple[int, int]] = {}
    found: dict[int, str] = {}

    def serve(node: Node, purpose: str, rank: tuple[int, int]) -> None:
        if node.id not in best or rank < best[node.id]:
            best[node.id], found[node.id] = rank, purpose

    for node, purpose in _ends(process):
        serve(node, purpose, (2, 0))
    for node in reversed(nodes):
        label = process.graph.labels.get(node.id)
        if label is not None:
            purpose, rank = label.name, (0, node.id)
        elif node.id in found:
            purpose, rank = found[node.id], (1, best[node.id][1] or node.id)
        else:
            continue
        for operand in node.args:
            serve(operand, purpose, rank)
    return found


def _ends(process: Process) -> list[tuple[Node, str]]:
    """What leaves the graph, and for what."""
    found: list[tuple[Node, str]] = []
    for access in process.accesses:
        name = port_name(process, access.port)
        found.append((access.predicate, f"{name}_when"))
        found += [(n, f"{name}_at") for n in (access.address,) if n is not None]
        found += [(n, f"{name}_value") for n in (access.data, *access.arguments) if n is not None]
    for write in process.writes:
        found += [(write.value, f"{write.register}_next"), (write.predicate, f"{write.register}_when")]
    for step in process.steps:
        found += [(condition, f"to_step_{max(target, 0)}") for condition, target in step.successors]
    return found


def port_name(process: Process, port: str) -> str:
    """What an access's port is called."""
    if port.startswith("call."):
        return "call"
    return port_prefix(port, process)[0] if "." in port else port


def _unique(text: str, used: set[str]) -> str:
    text = spelling(text[:_LONGEST])
    text = f"{text}_value" if _OURS.search(text) else text
    fresh, n = text, 1
    while fresh in used:
        n += 1
        fresh = f"{text}_{n}"
    used.add(fresh)
    return fresh
