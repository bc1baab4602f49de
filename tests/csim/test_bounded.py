"""The C simulation with bounded FIFOs and memories: the declared depths suffice, and one that does not is named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from moehls import reference
from moehls.errors import CheckFailed
from moehls.integer.host import quantise_image
from moehls.project import Project, open_project
from moehls.samples import read_samples
from moehls.simulate.bounded import bounded_text
from moehls.simulate.simulators import simulator
from moehls.simulate.verify import compare
from tests.conftest import DIGITS

REGION = """void region(int n, in_t& in, out_t& out) {
    DATAFLOW
    narrow_t narrow;
    wide_t wide[LANES];  // a lane each
    FIFO_STORAGE(narrow, URAM)

    first(n, in,
          narrow, wide);
    second(narrow, wide, out);
}
"""


def test_the_calls_of_a_region_become_processes() -> None:
    text = bounded_text(REGION)
    assert 'hls::spawn("first", [&] { first(n, in,\n          narrow, wide); });' in text
    assert 'hls::spawn("second", [&] { second(narrow, wide, out); });' in text
    assert 'hls::name_stream(wide, "wide");  // a lane each' in text
    assert text.endswith("    hls::join();\n}\n")
    other = REGION.replace("    DATAFLOW\n", "")
    assert bounded_text(other) == other


def test_memories_know_their_sizes() -> None:
    text = """static void fill(header_t h, word_t to[TOKENS][ANY_DEPTH], const sum_t sums[BLOCK], streams_t in[PORTS],
                 queue_t queue[MAX_EXPERTS * MAX_TOKENS]) {
    static parameter_word_t parameters[ANY_DEPTH];
    sum_t total[BLOCK];
    TRACE_STEP(runs, to, queue);
}
void read_parameters(words_t& words, parameter_word_t* parameters);
"""
    assert bounded_text(text) == (
        """static void fill(header_t h, hls::memory<word_t, TOKENS, ANY_DEPTH>& to, const sum_t sums[BLOCK], streams_t in[PORTS],
                 hls::memory<queue_t, MAX_EXPERTS * MAX_TOKENS>& queue) {
    static hls::memory<parameter_word_t, ANY_DEPTH> parameters{"parameters"};
    sum_t total[BLOCK];
    TRACE_STEP(runs, to.words, queue.words);
}
void read_parameters(words_t& words, hls::words_of<parameter_word_t> parameters);
"""
    )


def test_the_depths_of_the_digits_model_suffice(digits: Project) -> None:
    """Frames of both tasks, every stage of the first, equal to the reference."""
    machine = simulator(digits, "csim", bounded=True)
    samples = read_samples(DIGITS / "test.npz", digits.network).first(4)
    assert set(samples.tasks) == {0, 1}
    for n, (image, task) in enumerate(zip(samples.images, samples.tasks.tolist(), strict=True)):
        found = machine.run(quantise_image(digits.integer, image), task, trace=n == 0)
        execution = reference.run(digits.integer, image, task)
        assert compare(digits.integer, digits.program, execution, found, n, task) is None


def test_a_fifo_that_is_too_shallow_is_a_deadlock(digits_folder: Path, tmp_path: Path) -> None:
    """A token's blocks wait for its sums: with one place the norm hangs, which a C simulation without depths does not see."""
    message = failure(digits_folder, tmp_path, "src/norm.cpp", r"NORM_DEPTH \+ \d+(?=>\s+blocks_t;)", "1")
    assert "deadlock in step" in message
    assert "moments waits for room in blocks, which is full (depth 1)" in message
    assert "compute waits for its processes" in message


def test_a_memory_that_is_too_small_is_seen(digits_folder: Path, tmp_path: Path) -> None:
    """Without its size an array of C++ gives what lies behind it: right by luck, and zeros in RTL."""
    message = failure(digits_folder, tmp_path, "include/model.hpp", r"(?<=NORM_DEPTH = )\d+", "1")
    assert re.fullmatch(r"index 1 outside of parameters \(depth 1\) in step \d+", message)


def failure(digits_folder: Path, tmp_path: Path, file: str, place: str, text: str) -> str:
    """How a frame ends on the digits model with the one `place` of a file changed."""
    folder = tmp_path / "changed"
    shutil.copytree(digits_folder, folder, ignore=shutil.ignore_patterns("build"))
    path = folder / file
    changed, changes = re.subn(place, text, path.read_text())
    assert changes == 1
    path.write_text(changed)
    project = open_project(folder)
    machine = simulator(project, "csim", bounded=True)
    pixels = np.zeros((project.plan.input.patches, project.plan.input.channels), np.int64)
    with pytest.raises(CheckFailed) as caught:
        machine.run(pixels, 0, trace=False)
    return str(caught.value)
