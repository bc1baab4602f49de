"""Waves are FST files that others can read, though the compressors behind them are ours."""

from __future__ import annotations

import zlib
from pathlib import Path

from moehls.simulate.rtl import RtlSimulator, dram_of
from moehls.simulate.rtl_bench import Bench, run_bench
from tests.tb.projects import pixels_of, write_random_project
from tests.tb.test_library import LIBRARY

HEADER, GEOMETRY, HIERARCHY_LZ4 = 0, 3, 6


def lz4_block(data: bytes) -> bytes:
    """The text of an LZ4 block (lz4_Block_format.md)."""
    out, at = bytearray(), 0
    while at < len(data):
        token, at = data[at], at + 1
        literals, at = _length(data, at, token >> 4)
        out += data[at : at + literals]
        at += literals
        if at >= len(data):
            break
        offset, at = int.from_bytes(data[at : at + 2], "little"), at + 2
        match, at = _length(data, at, token & 15)
        for _ in range(match + 4):
            out.append(out[-offset])
    return bytes(out)


def _length(data: bytes, at: int, value: int) -> tuple[int, int]:
    if value == 15:
        while True:
            value, at = value + data[at], at + 1
            if data[at - 1] != 255:
                break
    return value, at


def blocks(data: bytes) -> dict[int, bytes]:
    """The blocks of an FST file by type: one byte of type, eight of length, contents."""
    found, at = {}, 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 9], "big")
        found[data[at]] = data[at + 9 : at + 1 + size]
        at += 1 + size
    return found


def test_waves_hold_the_signals_of_the_design(tmp_path: Path) -> None:
    parameters = (("WORDS", 5), ("PRESENT", 0b01011))
    bench = Bench("control", (LIBRARY / "control.sv",), "library_benches", parameters)
    run_bench(bench, tmp_path, tests=("control_raises_and_clears_the_interrupt",), waves=True)
    found = blocks(next(tmp_path.glob("*/run.*/dump.fst")).read_bytes())
    assert HEADER in found
    names = lz4_block(found[HIERARCHY_LZ4][8:])
    assert len(names) == int.from_bytes(found[HIERARCHY_LZ4][:8], "big")
    assert b"ap_start" in names
    assert b"s_axi_AWVALID" in names
    geometry = found[GEOMETRY]
    size = int.from_bytes(geometry[:8], "big")
    text = geometry[16:] if len(geometry) - 16 == size else zlib.decompress(geometry[16:])
    assert len(text) == size


def test_waves_of_whole_frames_name_the_processes(tmp_path: Path) -> None:
    project = write_random_project(tmp_path / "project", 2)
    simulator = RtlSimulator(project, dram_of(project), waves=tmp_path / "frame.fst")
    simulator.run(pixels_of(project.integer, 1), 0, trace=False)
    simulator.close()
    found = blocks((tmp_path / "frame.fst").read_bytes())
    names = lz4_block(found[HIERARCHY_LZ4][8:])
    for name in (b"compute_0", b"engine", b"multiply", b"step_taken", b"words_valid"):
        assert name in names
