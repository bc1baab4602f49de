"""The weight stream alone: AXI masters, widening and the deep FIFO, in front of a step machine that passes words on.

Under cocotb with pauses on every channel, and behind the DRAM model with latency, a bandwidth cap, refreshes and stalls.
Chunk j of the stream lies in port `j mod ports` (docs/accelerator.md, section 1), and every word must come out whole, once
and in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from moehls.project import Project
from moehls.rtl.generate import generate_modules, shim
from moehls.simulate.rtl import project_kernel_of
from moehls.simulate.rtl_bench import Bench, run_bench
from moehls.simulate.rtl_frame import BEAT_BYTES, Dram, FrameBench, Kernel, build_frame
from tests.tb.projects import SMALL_SHAPE, write_random_project

WORDS = 300
"""more than the FIFO holds"""
PAGE = 4096
COMPUTE = """
#include "operations.hpp"

// The first beat is a pixel, the others are the words of the stream; `task` says how many words.
void compute(task_t task, words_t& words, beats_t& pixels, beats_t& results) {
    constexpr int PARTS = WORD_BITS / BEAT_BITS;
    word_t word = 0;
    ap_uint<8> part = 0;
    const ap_uint<32> beats = task * ap_uint<8>(PARTS) + 1;
    for (ap_uint<32> n = 0; n < beats; ++n) {
        PIPELINE
        if (n == 0) {
            results.write(pixels.read());
        } else {
            if (part == 0) word = words.read();
            results.write(beat_t(word));
            word >>= BEAT_BITS;
            part = part == PARTS - 1 ? 0 : int(part) + 1;
        }
    }
}
"""


@dataclass(frozen=True)
class Stream:
    """A kernel that is the weight stream, and what goes through it."""

    project: Project
    kernel: Kernel
    weights: np.ndarray
    """[ports, chunks, 16]"""
    pixels: np.ndarray
    """[frames, 16]"""
    expected: np.ndarray
    """[frames, bytes]"""


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("stream")
    project = write_random_project(folder, 1, settings=SMALL_SHAPE | {"fifo_beats": "512"})
    assert WORDS > project.plan.shape.fifo_words > 64
    (folder / "src/compute.cpp").write_text(COMPUTE)
    sources = [folder / f"src/{name}.cpp" for name in ("burst", "compute", "kernel", "widen")]
    made = generate_modules(sources, [folder / "include", shim()], folder / "clang")
    for name, text in made.files.items():
        (folder / name).write_text(text)
    generator = np.random.default_rng(8)
    words = generator.integers(0, 256, WORDS * project.plan.shape.word_bits // 8, np.uint8)
    pixels = generator.integers(0, 256, (2, BEAT_BYTES), np.uint8)
    chunks, ports = words.reshape(-1, BEAT_BYTES), project.plan.shape.ports
    weights = np.stack([chunks[port::ports] for port in range(ports)])
    expected = np.stack([np.concatenate([pixel, words]) for pixel in pixels])
    kernel = project_kernel_of(project, tuple(sorted(folder.glob("*.sv"))))
    return Stream(project, kernel, weights, pixels, expected)


def test_words_under_cocotb(stream: Stream) -> None:
    """Pauses on every channel, alone and in bursts, and a reset with the FIFOs full."""
    folder = stream.project.path / "build"
    folder.mkdir(exist_ok=True)
    arrays: dict[str, Any] = {"weights": stream.weights, "first_beats": np.array(stream.weights.shape[1])}
    for n, (pixels, expected) in enumerate(zip(stream.pixels, stream.expected, strict=True)):
        arrays |= {f"input{n}": pixels, f"expected{n}": expected}
    np.savez(folder / "frames.npz", **arrays)
    beats = stream.expected.shape[1] // BEAT_BYTES
    settings = {
        "data": str(folder / "frames.npz"),
        "tasks": [WORDS, WORDS],
        "registers": stream.project.manifest["registers"],
        "bundles": list(stream.kernel.bundles),
        "limit": 50 * beats,
        "typical": beats,
        "status": None,
    }
    tests = ("stalls_change_nothing", "long_stalls_change_nothing", "reset_ends_a_frame")
    bench = Bench(stream.kernel.top, stream.kernel.sources, "kernel_bench")
    assert run_bench(bench, folder, settings, tests=tests) == len(tests)


def test_words_behind_the_dram_model(stream: Stream) -> None:
    """The same words come out whatever the memory does, no faster than its bandwidth allows, and none is read twice."""
    ports, chunks, _ = stream.weights.shape
    area = -(-chunks * BEAT_BYTES // PAGE) * PAGE
    output = (ports + 1) * area
    size, beats = stream.expected.shape[1], stream.expected.shape[1] // BEAT_BYTES
    program = build_frame(stream.kernel, stream.project.path / "build", output + size + PAGE, fast=False)
    registers = {register["name"]: register for register in stream.project.manifest["registers"]}
    with FrameBench(program, stream.kernel, Dram()) as bench:
        values = {f"weights{port}": port * area for port in range(ports)}
        values |= {"input": ports * area, "output": output, "weight_beats": chunks, "input_beats": 1}
        values |= {"output_beats": beats, "task": WORDS}
        for port in range(ports):
            bench.load(port * area, stream.weights[port])
        cases = [
            Dram(),
            Dram(beats=0.5, stall=0.3),
            Dram(latency=700, refresh_interval=300, refresh_length=80, stall=0.6),
        ]
        for n, dram in enumerate(cases):
            bench.load(ports * area, stream.pixels[n % 2])
            bench.load(output, np.full(size, 0xA5, np.uint8))
            for setting, value in dram.settings().items():
                bench.command("dram", setting, value)
            for name, value in values.items():
                bench.write(registers[name]["offset"], value, registers[name]["bits"])
            run = bench.start(200 * beats)
            assert run.done, dram
            np.testing.assert_array_equal(bench.dump(output, size), stream.expected[n % 2], err_msg=str(dram))
            assert (run.read_beats, run.write_beats) == (ports * chunks + 1, beats)
            assert run.cycles >= (ports * chunks + beats) / dram.beats
            assert run.protocol_errors == 0
