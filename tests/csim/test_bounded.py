"""The C simulation with bounded FIFOs: the declared depths suffice, and one that does not is named."""

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
from moehls.simulate.bounded import with_processes
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
    text = with_processes(REGION)
    assert 'hls::spawn("first", [&] { first(n, in,\n          narrow, wide); });' in text
    assert 'hls::spawn("second", [&] { second(narrow, wide, out); });' in text
    assert 'hls::name_stream(wide, "wide");  // a lane each' in text
    assert text.endswith("    hls::join();\n}\n")
    other = REGION.replace("    DATAFLOW\n", "")
    assert with_processes(other) == other


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
    folder = tmp_path / "shallow"
    shutil.copytree(digits_folder, folder, ignore=shutil.ignore_patterns("build"))
    path = folder / "src/norm.cpp"
    text, changes = re.subn(r"NORM_DEPTH \+ \d+(?=>\s+blocks_t;)", "1", path.read_text())
    assert changes == 1
    path.write_text(text)
    project = open_project(folder)
    machine = simulator(project, "csim", bounded=True)
    pixels = np.zeros((project.plan.input.patches, project.plan.input.channels), np.int64)
    with pytest.raises(CheckFailed, match="deadlock in step") as caught:
        machine.run(pixels, 0, trace=False)
    assert "moments waits for room in blocks, which is full (depth 1)" in str(caught.value)
    assert "compute waits for its processes" in str(caught.value)
