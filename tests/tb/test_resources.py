"""yosys counts what a small design is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import moehls
from moehls.errors import MoehlsError
from moehls.rtl.resources import Usage, cells_of, count

MEMORY = Path(moehls.__file__).parent / "rtl" / "sv" / "memory.sv"
DESIGN = """
module product (input wire clock, input wire signed [26:0] a, input wire signed [17:0] b, output logic signed [44:0] p);
  always_ff @(posedge clock) p <= a * b;
endmodule
module design (
    input wire clock, input wire [26:0] a, input wire [17:0] b, output wire [44:0] p, output wire [44:0] q,
    input wire e, input wire [11:0] x, input wire [71:0] d, output wire [71:0] r, output wire [71:0] s
);
  product one (.clock, .a, .b, .p(p));
  product two (.clock, .a(~a), .b, .p(q));
  memory #(.WIDTH(72), .DEPTH(4096), .STYLE("ultra"), .LATENCY(2)) deep (
      .clock, .read_enable(e), .read_advance(e), .read_address(x), .read_data(r),
      .write_enable(e), .write_address(x), .write_data(d));
  memory #(.WIDTH(72), .DEPTH(512), .STYLE("block"), .LATENCY(2)) wide (
      .clock, .read_enable(e), .read_advance(e), .read_address(x[8:0]), .read_data(s),
      .write_enable(e), .write_address(x[8:0]), .write_data(d));
endmodule
"""


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> Usage:
    folder = tmp_path_factory.mktemp("resources")
    (folder / "design.sv").write_text(DESIGN)
    return count([folder / "design.sv", MEMORY], "design", folder / "build")


def test_multipliers_and_memories_are_counted_over_the_hierarchy(usage: Usage) -> None:
    assert usage.processes["product"].dsp == 2  # two of them
    assert (usage.total.dsp, usage.total.uram, usage.total.bram36) == (2, 1, 1.0)


def test_cells_of_the_library() -> None:
    names = ["DSP48E2", "RAMB18E2", "RAMB36E2", "URAM288", "LUT6", "LUT2", "RAM32M16", "FDRE", "FDSE", "CARRY8"]
    found = cells_of(Counter(names))
    assert (found.dsp, found.bram36, found.uram, found.lut, found.ff) == (1, 1.5, 1, 10, 2)


def test_rtl_that_yosys_cannot_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.sv").write_text("module broken (input wire a; endmodule\n")
    with pytest.raises(MoehlsError, match="yosys fails on the RTL"):
        count([tmp_path / "broken.sv"], "broken", tmp_path)
