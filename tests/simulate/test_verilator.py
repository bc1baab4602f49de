"""Verilator as the benches call it computes what SystemVerilog says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from moehls.simulate.verilator import Build, build

DESIGN = """
module shifts (
    input wire [31:0] x, input wire [1:0] a, input wire [1:0] b, output wire [31:0] left, output wire [31:0] right
);
  assign left = (x << a) << b;
  assign right = (x >> a) >> b;
endmodule
"""
PROGRAM = """
#include "Vshifts.h"
int main() {
  Vshifts m;
  for (int a = 0; a < 4; ++a)
    for (int b = 0; b < 4; ++b) {
      m.x = 0x81234567u;
      m.a = a;
      m.b = b;
      m.eval();
      if (m.left != 0x81234567u << a << b || m.right != 0x81234567u >> a >> b) return 1;
    }
  return 0;
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "shifts.sv").write_text(DESIGN)
    (tmp_path / "main.cpp").write_text(PROGRAM)
    job = Build("shifts", "Vshifts", (tmp_path / "shifts.sv",), (tmp_path / "main.cpp",), fast=False)
    return build(job, tmp_path / "build")


def test_nested_shifts_by_narrow_amounts(program: Path) -> None:
    """The amounts of 2 bits add up to more than 2 bits hold."""
    assert subprocess.run([str(program)], check=False).returncode == 0
