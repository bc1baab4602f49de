"""The hand-written SystemVerilog (movers, FIFO, control, DRAM model) in Verilator under cocotb, and its lint."""

from __future__ import annotations

from pathlib import Path

import pytest

import moehls
from moehls.resources import resource
from moehls.simulate.rtl_bench import Bench, run_bench
from moehls.simulate.verilator import lint

LIBRARY = Path(moehls.__file__).parent / "rtl" / "sv"
TB = resource("tb") / "sv"
MOVERS = (*(LIBRARY / f"{name}.sv" for name in ("burst_read", "burst_write", "fifo", "memory")), TB / "mover_loop.sv")
WAIVERS = (LIBRARY / "waivers.vlt", TB / "waivers.vlt")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One build folder, so that Verilator's runtime is compiled once."""
    return tmp_path_factory.mktemp("tb")


def run(folder: Path, bench: Bench, prefix: str) -> int:
    return run_bench(bench, folder, tests=(f"{prefix}_.*",))


@pytest.mark.parametrize(
    ("burst", "outstanding", "depth", "style"),
    [(16, 4, 8, "auto"), (64, 16, 100, "block"), (256, 1, 1, "auto")],
)
def test_movers_and_fifo(folder: Path, burst: int, outstanding: int, depth: int, style: str) -> None:
    parameters = (("BURST", burst), ("OUTSTANDING", outstanding), ("DEPTH", depth), ("STYLE", style))
    assert run(folder, Bench("mover_loop", MOVERS, "library_benches", parameters), "movers") == 3


def test_control_registers(folder: Path) -> None:
    bench = Bench("control", (LIBRARY / "control.sv",), "library_benches", (("WORDS", 5), ("PRESENT", 0b01011)))
    assert run(folder, bench, "control") == 3


def test_dram_model(folder: Path) -> None:
    bench = Bench("dram_ports", (TB / "dram.sv", TB / "dram_ports.sv"), "library_benches")
    assert run(folder, bench, "dram") == 5


@pytest.mark.parametrize("name", ["burst_read", "burst_read_segments", "burst_write", "control"])
def test_library_has_no_unwaived_warning(name: str) -> None:
    assert lint([*WAIVERS, LIBRARY / f"{name}.sv"], name) == []


def test_benches_have_no_unwaived_warning() -> None:
    assert lint([*WAIVERS, TB / "dram.sv", TB / "dram_ports.sv"], "dram_ports") == []
    assert lint([*WAIVERS, *MOVERS], "mover_loop") == []
