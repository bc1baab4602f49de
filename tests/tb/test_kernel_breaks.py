"""The kernel bench goes red where it should: for each thing it is there to test, the RTL with just that broken.

The kernel is the weight stream in front of a process that passes its words on (as in `test_weight_stream.py`), built once; an
argument of the simulator chooses the break.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moehls.errors import CheckFailed
from moehls.rtl.generate import generate_modules, shim
from moehls.simulate.rtl import project_kernel_of
from moehls.simulate.rtl_bench import Bench, run_bench
from tests.tb.projects import SMALL_SHAPE, write_random_project

WORDS = 150
INVERTED = 1 << 15
"""a bit of `task`: what the frame gives depends on it"""
COMPUTE = """
#include "operations.hpp"

void compute(task_t task, words_t& words, beats_t& pixels, beats_t& results) {
    constexpr int PARTS = WORD_BITS / BEAT_BITS;
    const beat_t mask = task[15] ? beat_t(~beat_t(0)) : beat_t(0);
    word_t word = 0;
    ap_uint<8> part = 0;
    const ap_uint<32> beats = ap_uint<15>(task) * ap_uint<8>(PARTS) + 1;
    for (ap_uint<32> n = 0; n < beats; ++n) {
        PIPELINE
        if (n == 0) {
            results.write(pixels.read() ^ mask);
        } else {
            if (part == 0) word = words.read();
            results.write(beat_t(word) ^ mask);
            word >>= BEAT_BITS;
            part = part == PARTS - 1 ? 0 : int(part) + 1;
        }
    }
}
"""
PLUSARG = '  int fault;\n  initial if ($value$plusargs("fault=%d", fault) == 0) fault = 0;\n'


@dataclass(frozen=True)
class Break:
    """`good` in a file of the library becomes `broken` where FAULT holds, which `test` of the kernel bench must see."""

    what: str
    file: str
    good: str
    broken: str
    test: str


RESET = "if (reset) begin\n      "
BREAKS = (
    Break(
        "a register",
        "control",
        "<= arguments[i];",
        "<= FAULT ? '0 : arguments[i];",
        "registers_keep_.*",
    ),
    Break("interrupt enable", "control", "enable && pending", "(enable || FAULT) && pending", "done_is_seen_.*"),
    Break("interrupt status", "control", "pending ^ s_axi", "FAULT ? '0 : pending ^ s_axi", "done_is_seen_.*"),
    Break("ap_done", "control", "if (ap_done) done", "if (ap_done && !FAULT) done", "done_is_seen_.*"),
    Break("back-pressure of data", "burst_write", "in_ready = m_axi", "in_ready = FAULT | m_axi", "stalls_.*"),
    Break("idle of data", "burst_read", "out_valid = m_axi", "out_valid = FAULT | m_axi", "stalls_.*"),
    Break("a slow memory", "burst_read", "(!m_axi_ARVALID ||", "(FAULT || !m_axi_ARVALID ||", "long_stalls_.*"),
    Break(
        "back to back",
        "control",
        "if (s_axi_WDATA[0]) ap_start",
        "if (s_axi_WDATA[0] && !(FAULT && done_once)) ap_start",
        "frames_.*",
    ),
    Break(
        "a change of task",
        "control",
        "if (s_axi_WSTRB[b])",
        "if (s_axi_WSTRB[b] && !(FAULT && done_once))",
        "frames_.*",
    ),
    Break("reset", "burst_read", f"{RESET}running", f"{RESET}if (!FAULT) running", "reset_ends_.*"),
    Break("a read error", "burst_read", "if (m_axi_RRESP[1])", "if (m_axi_RRESP[1] && !FAULT)", "a_read_error_.*"),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("breaks")
    project = write_random_project(folder, 1, settings=SMALL_SHAPE | {"fifo_beats": "512"})
    (folder / "src/compute.cpp").write_text(COMPUTE)
    sources = [folder / f"src/{name}.cpp" for name in ("burst", "compute", "kernel", "widen")]
    made = generate_modules(sources, [folder / "include", shim()], folder / "clang")
    files = dict(made.files)
    for number, one in enumerate(BREAKS, 1):
        text = files[f"{one.file}.sv"]
        assert one.good in text, one
        files[f"{one.file}.sv"] = text.replace(one.good, one.broken.replace("FAULT", f"(fault == {number})"), 1)
    for name in {one.file for one in BREAKS}:
        files[f"{name}.sv"] = files[f"{name}.sv"].replace("\n);\n", f"\n);\n{PLUSARG}", 1)
    once = "  logic done_once;\n  always_ff @(posedge ap_clk) done_once <= !ap_rst && (done_once || ap_done);\n"
    files["control.sv"] = files["control.sv"].replace(PLUSARG, PLUSARG + once)
    for name, text in files.items():
        (folder / name).write_text(text)
    kernel = project_kernel_of(project, tuple(sorted(folder.glob("*.sv"))))
    return (
        Bench(kernel.top, kernel.sources, "kernel_bench"),
        folder / "build",
        settings(project, folder, kernel.bundles),
    )


def settings(project: Any, folder: Path, bundles: tuple[str, ...]) -> dict[str, Any]:
    """What the kernel bench needs: two frames of the same words, the second inverted."""
    shape = project.plan.shape
    generator = np.random.default_rng(8)
    words = generator.integers(0, 256, WORDS * shape.word_bits // 8, np.uint8)
    chunks = words.reshape(-1, 16)
    weights = np.stack([chunks[port :: shape.ports] for port in range(shape.ports)])
    arrays: dict[str, Any] = {"weights": weights, "first_beats": np.array(weights.shape[1])}
    tasks = [WORDS, WORDS | INVERTED]
    for n, task in enumerate(tasks):
        pixels = generator.integers(0, 256, 16, np.uint8)
        expected = np.concatenate([pixels, words]) ^ np.uint8(255 if task & INVERTED else 0)
        arrays |= {f"input{n}": pixels, f"expected{n}": expected}
    np.savez(folder / "frames.npz", **arrays)
    registers = project.manifest["registers"]
    beats = 1 + len(chunks)
    return {
        "data": str(folder / "frames.npz"), "tasks": tasks, "registers": registers, "bundles": list(bundles),
        "limit": 20 * beats, "typical": beats // 4,  # resets come while the stream is read
        "status": registers[-1]["offset"] + registers[-1]["bits"] // 8 + 4,
    }  # fmt: skip


def test_without_a_break_all_is_green(bench: tuple[Bench, Path, dict[str, Any]]) -> None:
    assert run_bench(*bench) == 7


@pytest.mark.parametrize("number", range(1, len(BREAKS) + 1), ids=[one.what for one in BREAKS])
def test_a_break_is_seen_by_its_test(bench: tuple[Bench, Path, dict[str, Any]], number: int) -> None:
    with pytest.raises(CheckFailed, match=BREAKS[number - 1].test):
        run_bench(*bench, tests=(BREAKS[number - 1].test,), arguments=(f"+fault={number}",))
