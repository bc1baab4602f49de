"""Prints the table of docs/frontend.md: which form of which exporter and opset is read, how well the network agrees with
onnxruntime, and whether the C++ of its integer network equals the reference in every value of every step.

    python -m tests.frontend.table [form…]
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

from moehls.emit.hls import emit_hls
from moehls.errors import MoehlsError
from moehls.frontend import inspect_model, read_network
from moehls.integer.operations import IntegerNetwork, IntegerRoute
from moehls.integer.precision import W8A8, W16A16
from moehls.integer.validate import check
from moehls.network.operations import ActivationForm, Network
from moehls.quantize import quantize, random_calibration
from moehls.simulate.csim import build
from tests.csim.conftest import SHAPES, Accelerator
from tests.csim.test_networks import assert_equals_reference
from tests.frontend.support import fixture, names

_NAME = re.compile(r"(?P<form>.+)-(?P<exporter>ts|dynamo)(?P<opset>\d+)")
_SHAPES = {W8A8.name: "more", W16A16.name: "wide"}
_TOKENS = 64


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
    """The columns that are measured: all read; a power of ten above the largest relative error; exact in C++."""
    files = [fixture(f"{form}-{kind}{opset}") for kind in opsets for opset in opsets[kind]]
    inspections = [inspect_model(file, {}) for file in files]
    errors = [inspection.float_error for inspection in inspections if inspection.float_error is not None]
    if len(errors) < len(inspections):
        return " no | – | – |"
    exact = ", ".join(dict.fromkeys(exact_in_cpp(file) for file in files))
    return f" yes | < 1e{math.floor(math.log10(max(*errors, 1e-9))) + 1} | {exact} |"


def exact_in_cpp(file: Path) -> str:
    """The precision in which the network of a file was compared, value by value, for every task; or how it differs."""
    try:
        integer = _integer(read_network(file, {}))
        group = max((op.group for op in integer.operations if isinstance(op, IntegerRoute)), default=0)
        for task in range(integer.tasks):
            assert_equals_reference(accelerator(integer.precision.name, integer.activations, group), integer, task)
    except (MoehlsError, AssertionError) as error:
        return f"no: {next(filter(str.strip, str(error).splitlines()), type(error).__name__)}"
    return integer.precision.name


def _integer(network: Network) -> IntegerNetwork:
    """Calibrated on noise; with 16 bits where the graph's own integers do not fit 8."""
    images = random_calibration(network, 0)
    try:
        integer = quantize(network, images, W8A8)
    except MoehlsError as error:
        if not network.lattices or W16A16.name not in str(error):
            raise
        integer = quantize(network, images, W16A16)
    check(integer)
    return integer


@cache
def accelerator(precision: str, forms: tuple[ActivationForm, ...], group: int) -> Accelerator:
    """One compiled accelerator that takes every fixture: with every part that a shape can have."""
    parts = {name: True for name, value in vars(SHAPES[_SHAPES[precision]]).items() if isinstance(value, bool)}
    shape = replace(SHAPES[_SHAPES[precision]], max_tokens=_TOKENS, expert_group=group, **parts)
    folder = Path(tempfile.mkdtemp(prefix="moehls-table-"))
    emit_hls(shape, forms, folder)
    return Accelerator(shape, folder, build(folder))


def main() -> None:
    print("| form | TorchScript, opsets | dynamo, opsets | recognised | relative error | exact in C++ |")
    print("|---|---|---|---|---|---|")
    for form, opsets in groups().items():
        if not sys.argv[1:] or form in sys.argv[1:]:
            print(row(form, opsets) + measured(form, opsets), flush=True)


if __name__ == "__main__":
    main()
