"""Renders the C++ of one accelerator: in go its shape and the network's activations, out come `include/`, `src/`, `csim/`.

The files are the templates in `templates/hls` and `templates/csim`, with sizes, instruction format and tables filled in
from frozen dataclasses and formatted by clang-format. Nothing from a graph (names, shapes) reaches them; the same shape
gives the same bytes.
"""

from __future__ import annotations

import enum
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clang_format  # type: ignore[import-untyped]
import jinja2

from moehls.emit.tables import delta_starts, tables_of
from moehls.errors import MoehlsError
from moehls.integer.operations import HIDDEN
from moehls.network.operations import ActivationForm
from moehls.plan.instruction import (
    ANY_TASK,
    EXPERT_STEPS,
    FIELDS,
    NO_EXPERT,
    Binding,
    Field,
    Flag,
    Gating,
    Kind,
    Mode,
    Source,
    Target,
)
from moehls.plan.shape import BIAS_BITS, Shape
from moehls.resources import resource

KERNEL_NAME = "moehls_kernel"
_PREFETCHING = ("sections.cpp.j2",)
"""what only accelerators have that prefetch experts"""


@dataclass(frozen=True)
class SourceFile:
    """A rendered file, `path` relative to the project."""

    path: Path
    text: str


def emit_hls(shape: Shape, activations: tuple[ActivationForm, ...], folder: Path) -> tuple[Path, ...]:
    """Write `include/*.hpp`, `src/*.cpp` and `csim/harness.cpp` below `folder`; returns their paths relative to it.

    Raises:
        MoehlsError: the shape breaks a constraint of `docs/accelerator.md`, section 1.
    """
    files = render_hls(shape, activations)
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(file.text)
    return tuple(file.path for file in files)


def render_hls(shape: Shape, activations: tuple[ActivationForm, ...]) -> tuple[SourceFile, ...]:
    """The files of `emit_hls`, in memory.

    Raises:
        MoehlsError: the shape breaks a constraint of `docs/accelerator.md`, section 1.
    """
    _check(shape)
    context = _context(shape, activations)
    files = []
    for root, pattern in ((resource("templates") / "hls", "*/*.j2"), (resource("templates"), "csim/*.j2")):
        environment = _environment(root)
        for path in sorted(path.relative_to(root) for path in root.glob(pattern)):
            if path.name in _PREFETCHING and shape.experts != "prefetched":
                continue
            text = environment.get_template(path.as_posix()).render(context)
            files.append(SourceFile(path.with_suffix(""), _format(text)))
    return tuple(files)


def _environment(root: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(root),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # C++, and nothing in the context comes from a user
    )


def _context(shape: Shape, activations: tuple[ActivationForm, ...]) -> dict[str, Any]:
    fields: dict[str, Field] = {field.name: field for field in FIELDS}
    enumerations: dict[str, Iterable[enum.IntEnum | enum.IntFlag]] = {
        "kind": Kind,
        "mode": [mode for mode in Mode if mode != Mode.WIDE or shape.wide],
        "source": Source,
        "gating": Gating,
        "binding": Binding,
    }
    if shape.norm_targets:
        enumerations["target"] = Target
    prefetches = shape.experts == "prefetched"
    return {
        **vars(shape),
        "norm_tokens": shape.norm_tokens,
        "route_experts": shape.route_experts,
        "gather_tokens": shape.gather_tokens,
        "bias_words": shape.bias_words,
        "channel_blocks": shape.packing("channel").blocks,
        "activated_blocks": shape.packing("activated").blocks,
        "bias_bits": BIAS_BITS,
        "hidden": HIDDEN,
        "kernel_name": KERNEL_NAME,
        "enumerations": [
            (name, [(m.name, m.value) for m in members if prefetches or m is not Kind.SECTION])
            for name, members in enumerations.items()
        ],
        "fields": FIELDS,
        "rows": fields["rows"],
        "n1": fields["n1"],
        "flags": [
            (str(f.name).lower(), fields["flags"].offset + f.value.bit_length() - 1)
            for f in Flag
            if prefetches or f is not Flag.LAST
        ],
        "any_task": ANY_TASK,
        "expert_steps": EXPERT_STEPS,
        "no_expert": NO_EXPERT,
        "tables": tables_of(shape.precision, activations, shape.sigmoids),
        "deltas": delta_starts(shape.precision, activations),
    }


def _check(shape: Shape) -> None:
    """The constraints that the C++ asserts, before anyone compiles it."""
    b, tt = shape.block, shape.token_parallel
    rules = (
        (b % 8 == 0 and b >= 8, f"block is {b}, but must be a multiple of 8"),
        (1 <= tt <= b, f"token_parallel is {tt}, but must be 1 … block ({b})"),
        (b % shape.epilogue_lanes == 0, f"epilogue_lanes is {shape.epilogue_lanes}, but must divide block ({b})"),
        (0 <= shape.lut_columns <= b, f"lut_columns is {shape.lut_columns}, but must be 0 … block ({b})"),
        (shape.word_bits <= 4096, f"a word has {shape.word_bits} bits, the limit is 4096: choose a smaller block"),
        (shape.word_bits >= 512, f"a word has {shape.word_bits} bits, but a header needs 512: choose a larger block"),
        (
            shape.word_bits % (128 * shape.ports) == 0,
            f"ports is {shape.ports}, but must divide {shape.word_bits // 128}",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise MoehlsError(f"the accelerator's shape is impossible: {message}")


def _format(text: str) -> str:
    """clang-format with the style file of the templates."""
    command = [
        clang_format.get_executable("clang-format"),
        f"--style=file:{resource('templates') / 'hls' / '.clang-format'}",
    ]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MoehlsError(f"clang-format failed ({done.stderr.strip()}); reinstall the clang-format package")
    return done.stdout
