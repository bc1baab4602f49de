"""The resource count: memories as the plan counts them, two products a DSP, library modules with whoever holds them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from moehls.emit.hls import emit_hls
from moehls.errors import MoehlsError
from moehls.plan.memory import bram36_count, lutram_count, uram_count
from moehls.plan.resources import dsp_by_process
from moehls.rtl.generate import LIBRARY, generate
from moehls.rtl.lanes import parts
from moehls.rtl.netlist import elaborate
from moehls.rtl.resources import Cells, cells_of, count
from tests.csim.conftest import SHAPES

_MEMORY = """    memory #(.WIDTH({width}), .DEPTH({depth}), .STYLE("{style}"), .LATENCY({latency})) {name}_memory (
        .clock, .read_enable(enable), .read_advance(enable), .read_address(address[{top}:0]),
        .write_enable(enable), .write_address(other[{top}:0]), .write_data(data[{width}-1:0]), .read_data({name})
    );"""
MEMORIES = {
    "m_0": (136, 600, "block", 2),
    "m_1": (136, 600, "block", 2),
    "deep": (72, 4096, "ultra", 2),
    "kept": (70, 48, "distributed", 1),
}


def test_memories_lie_where_the_plan_has_them(tmp_path: Path) -> None:
    text = "\n".join(
        _MEMORY.format(name=name, width=w, depth=d, style=style, latency=latency, top=(d - 1).bit_length() - 1)
        for name, (w, d, style, latency) in MEMORIES.items()
    )
    outputs = ", ".join(f"output wire [{w - 1}:0] {name}" for name, (w, *_) in MEMORIES.items())
    inputs = "input wire clock, enable, input wire [11:0] address, other, input wire [135:0] data"
    (tmp_path / "holder.sv").write_text(f"module holder ({inputs}, {outputs});\n{text}\nendmodule\n")
    usage = count([tmp_path / "holder.sv", LIBRARY / "memory.sv"], "holder", tmp_path / "build")
    assert list(usage.storage) == ["holder.deep", "holder.kept", "holder.m"]
    assert usage.storage["holder.m"].bram36 == 2 * bram36_count(136, 600) == 8
    assert usage.storage["holder.deep"].uram == uram_count(72, 4096) == 1
    assert usage.storage["holder.kept"].lut == lutram_count(70, 48) == 80
    assert list(usage.processes) == ["holder"]
    assert usage.total == usage.processes["holder"]
    assert (usage.total.bram36, usage.total.uram, usage.total.dsp) == (8, 1, 0)


def test_two_products_share_a_dsp(tmp_path: Path) -> None:
    shape = SHAPES["w8a8"]
    emit_hls(shape, "exact", tmp_path)
    generate(tmp_path)
    build = tmp_path / "build"
    usage = count([tmp_path / "rtl" / "multiply.sv"], "multiply", build)
    products = dsp_by_process(shape)["multiply"]
    assert products == 128  # of 256 products a cycle
    assert products <= usage.total.dsp <= products + 3  # and the product of the loop's bounds
    assert count([tmp_path / "rtl" / "multiply.sv"], "multiply", build) == usage


def test_two_small_functions_share_a_site() -> None:
    kinds = {"LUT6": 3, "LUT4": 1, "INV": 1, "LUT3": 1, "LUT2": 7, "CARRY4": 1, "RAM64M8": 1, "RAMB18E2": 1}
    found = cells_of(Counter(kinds))
    # 3 alone, 4 with 1, four in front of the carry, 3 with 2, 2 with 2; eight of the memory
    assert found == Cells(bram36=0.5, lut=8 + 13, lut_sites=8 + 3 + 1 + 4 + 1 + 1)


LANES = 40
_LANE = """    logic [7:0] kept_{i}, sum_{i}, out_{i};
    always_ff @(posedge clock) begin
        if (enable) kept_{i} <= data[{high}:{low}];
        sum_{i} <= kept_{i} + {{7'h0, data[{low}]}};
        out_{i} <= kept_{i}[7] ? ~sum_{i} : (sum_{i} & {{8{{enable}}}});
    end
    assign found[{high}:{low}] = out_{i};"""


def test_lanes_that_are_alike_are_mapped_once(tmp_path: Path) -> None:
    lanes = "\n".join(_LANE.format(i=i, high=8 * i + 7, low=8 * i) for i in range(LANES))
    width = f"[{8 * LANES - 1}:0]"
    head = f"module lanes (input wire clock, enable, input wire {width} data, output wire {width} found);"
    (tmp_path / "lanes.sv").write_text(f"{head}\n{lanes}\nendmodule\n")
    module = elaborate([tmp_path / "lanes.sv"], "lanes", tmp_path)["lanes"]
    alike = parts("lanes", module.text)
    assert {part.count for part in alike} == {LANES}
    assert len(alike) == 3  # a lane has three registers
    total = count([tmp_path / "lanes.sv"], "lanes", tmp_path).total
    assert total.ff == 24 * LANES
    assert total.lut % LANES == 0
    assert 8 * LANES <= total.lut <= 17 * LANES


def test_yosys_refuses_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "bad.sv").write_text("module bad (input wire a);\n    missing m (.a);\nendmodule\n")
    with pytest.raises(MoehlsError, match=r"yosys fails .*missing"):
        count([tmp_path / "bad.sv"], "bad", tmp_path / "build")
