"""The resource count: memories as the plan counts them, two products a DSP, library modules with whoever holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.calibrate import cascade_luts
from moehls.emit.hls import emit_hls
from moehls.errors import MoehlsError
from moehls.plan.memory import MemoryUse, bram36_count, lutram_count, uram_count
from moehls.plan.resources import dsp_by_process
from moehls.rtl.generate import LIBRARY, generate
from moehls.rtl.lanes import parts
from moehls.rtl.netlist import elaborate
from moehls.rtl.resources import SHARED, Cells, cells_of, count
from moehls.rtl.sites import shared_sites
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
    emit_hls(shape, ("exact",), tmp_path)
    generate(tmp_path)
    build = tmp_path / "build"
    sources = [tmp_path / "rtl" / f"{name}.sv" for name in ("multiply", "dsp_slice")]
    usage = count(sources, "multiply", build)
    products = dsp_by_process(shape)["multiply"]
    assert products == 128  # of 256 products a cycle
    assert products <= usage.total.dsp <= products + 3  # and the product of the loop's bounds
    outputs = shape.token_parallel * shape.block
    assert usage.total.lut < outputs * 80, "an accumulator, and no adder of the products"
    assert count(sources, "multiply", build) == usage


def _function(output: str, *inputs: str) -> tuple[str, dict[str, list[Hashable]]]:
    pins: dict[str, list[Hashable]] = {f"I{i}": [(net, 0)] for i, net in enumerate(inputs)}
    return f"LUT{len(inputs)}", {"O": [(output, 0)], **pins}


def test_two_small_functions_share_a_site() -> None:
    multiplexers = [_function(f"y{i}", "select", f"a{i}", f"b{i}") for i in range(6)]
    assert shared_sites(multiplexers) == 3
    strangers = [_function(f"y{i}", f"a{i}", f"b{i}", f"c{i}") for i in range(6)]
    assert shared_sites(strangers) == 0  # nothing in common
    assert shared_sites([_function("y", *"abcd"), _function("z", *"cdef")]) == 0  # six inputs
    assert shared_sites([_function("y", *"abcd"), _function("z", *"bcde")]) == 1
    assert shared_sites([_function("y", *"abcde"), _function("z", *"abcdef"[1:])]) == 0
    assert shared_sites([_function("y", *"abcde"), _function("z", "a", "e"), _function("x", "a")]) == 1
    chain: tuple[str, dict[str, list[Hashable]]] = "CARRY4", {"S": [("y0", 0), ("y1", 0)]}
    assert shared_sites([*multiplexers, chain]) == 2  # what drives a carry chain stays alone
    delay: dict[str, list[Hashable]] = {"CE": ["1'1"], "A0": ["1'1"], "A1": ["1'0"], "A2": ["1'0"], "A3": ["1'0"]}
    assert shared_sites([("SRL16E", delay)] * 5) == 2
    found = cells_of(Counter({"LUT6": 3, "LUT4": 1, "INV": 1, "RAM64M8": 1, "RAMB18E2": 1, "SRL16E": 4, SHARED: 3}))
    assert found == Cells(bram36=0.5, lut=8 + 9, lut_sites=8 + 6)


def test_the_cascade_of_ultra_ram_is_no_lut() -> None:
    stream = MemoryUse("stream", "", 1, 2048, 12288, "uram", 0, 87, 0)
    assert cascade_luts(stream) == 2048  # of three blocks: one LUT a bit
    assert cascade_luts(replace(stream, depth=32768)) == 3 * 2048
    assert cascade_luts(replace(stream, depth=4096)) == cascade_luts(replace(stream, storage="bram")) == 0


LANES = 40
_LANE = """    logic [7:0] kept_{i}, sum_{i}, early_{i}, late_{i}, out_{i};
    always_ff @(posedge clock) begin
        if (~stall) kept_{i} <= data[{high}:{low}];
        sum_{i} <= kept_{i} + {{7'h0, data[{low}]}};
        early_{i} <= kept_{i};
        late_{i} <= early_{i};
        out_{i} <= late_{i};
    end
    assign found[{high}:{low}] = out_{i}[7] ? ~sum_{i} : out_{i};"""


def test_lanes_that_are_alike_are_mapped_once(tmp_path: Path) -> None:
    lanes = "\n".join(_LANE.format(i=i, high=8 * i + 7, low=8 * i) for i in range(LANES))
    width = f"[{8 * LANES - 1}:0]"
    head = f"module lanes (input wire clock, stall, input wire {width} data, output wire {width} found);"
    (tmp_path / "lanes.sv").write_text(f"{head}\n{lanes}\nendmodule\n")
    module = elaborate([tmp_path / "lanes.sv"], "lanes", tmp_path)["lanes"]
    alike = parts("lanes", module.text)
    assert [part.count for part in alike if "$add" in part.text] == [LANES]  # a lane with all its registers
    total = count([tmp_path / "lanes.sv"], "lanes", tmp_path).total
    # three registers one behind the other are shift registers, a LUT a bit; the enable has not an inverter a register
    assert total.ff == 16 * LANES
    assert total.lut % LANES == 0
    assert 16 * LANES <= total.lut <= 20 * LANES


def test_yosys_refuses_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "bad.sv").write_text("module bad (input wire a);\n    missing m (.a);\nendmodule\n")
    with pytest.raises(MoehlsError, match=r"yosys fails .*missing"):
        count([tmp_path / "bad.sv"], "bad", tmp_path / "build")
