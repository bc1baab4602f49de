"""Prints the table of docs/frontend.md: which form of which exporter and opset is read, and how well it agrees with onnxruntime.

python -m tests.frontend.table
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

from moehls.frontend import inspect_model
from tests.frontend.support import fixture, names

_NAME = re.compile(r"(?P<form>.+)-(?P<exporter>ts|dynamo)(?P<opset>\d+)")


def groups() -> dict[str, dict[str, list[int]]]:
    """Opsets of the fixtures by form and exporter."""
    found: dict[str, dict[str, list[int]]] = defaultdict(lambda: {"ts": [], "dynamo": []})
    for name in names():
        match = _NAME.fullmatch(name)
        if match is not None:
            found[match["form"]][match["exporter"]].append(int(match["opset"]))
    return {form: found[form] for form in sorted(found)}


def spans(opsets: list[int]) -> str:
    """`11–14, 17` for 11, 12, 13, 14, 17."""
    parts: list[list[int]] = []
    for opset in sorted(opsets):
        if parts and opset == parts[-1][-1] + 1:
            parts[-1].append(opset)
        else:
            parts.append([opset])
    return ", ".join(f"{part[0]}–{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "–"


def row(form: str, opsets: dict[str, list[int]]) -> str:
    """One line of the table, without the columns that are measured."""
    return f"| `{form}` | {spans(opsets['ts'])} | {spans(opsets['dynamo'])} |"


def measured(form: str, opsets: dict[str, list[int]]) -> str:
    """The columns that are measured: whether all are read, and a power of ten above the largest relative error."""
    inspections = [inspect_model(fixture(f"{form}-{kind}{opset}"), {}) for kind in opsets for opset in opsets[kind]]
    errors = [inspection.float_error for inspection in inspections if inspection.float_error is not None]
    if len(errors) < len(inspections):
        return " no | – |"
    return f" yes | < 1e{math.floor(math.log10(max(*errors, 1e-9))) + 1} |"


def main() -> None:
    print("| form | TorchScript, opsets | dynamo, opsets | recognised | relative error |\n|---|---|---|---|---|")
    for form, opsets in groups().items():
        print(row(form, opsets) + measured(form, opsets))


if __name__ == "__main__":
    main()
