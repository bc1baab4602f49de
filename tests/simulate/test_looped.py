"""Lanes as loops: what becomes an array, what is copied, what stays. Random programs run both ways (`tests/rtl`)."""

from __future__ import annotations

import re

from moehls.simulate.looped import looped

LANES = 4


def module(broken: int | None = None) -> str:
    """A sum and an accumulator a lane, and an output of all; lane `broken` subtracts."""
    lines = ["module m (", "    input  wire clock,"]
    lines += [f"    input  wire [7:0] in_{lane}," for lane in range(LANES)]
    lines += ["    output wire [31:0] out", ");", "    logic valid_1;", "    logic [7:0] scale;"]
    for lane in range(LANES):
        lines += [f"    wire [7:0] sum_{lane};", f"    logic [7:0] sum_{lane}_s1;", f"    logic [7:0] total_{lane};"]
    for lane in range(LANES):
        lines.append(f"    assign sum_{lane} = in_{lane} {'-' if lane == broken else '+'} scale;")
    lines.append("    assign out = {" + ", ".join(f"total_{lane}" for lane in range(LANES)) + "};")
    lines.append("    always_ff @(posedge clock) valid_1 <= 1'b1;")
    lines += ["    always_ff @(posedge clock) begin", "        if (valid_0) begin"]
    lines += [f"            sum_{lane}_s1 <= sum_{lane};" for lane in range(LANES)]
    lines += ["        end", "    end"]
    for lane in range(LANES):
        lines += ["    always_ff @(posedge clock) begin"]
        lines += [f"        if (valid_1) total_{lane} <= total_{lane} + sum_{lane}_s1;", "    end"]
    return "\n".join([*lines, "endmodule"]) + "\n"


def test_lanes_become_arrays_and_what_they_compute_loops() -> None:
    text = looped(module(), statements=8)
    assert text.count("for (int unsigned") == 2
    copied = re.search(r"(copied_\d+)\[0\] = in_0;", text)
    assert copied is not None
    assert f"{copied[1]}[lane__] + scale" in text  # what all lanes read is no array
    assert re.search(r"assign out = \{lanes_0_\d_total_0\[0\], .*total_0\[3\]\};", text)
    assert "sum_1" not in text


def test_operands_that_commute_are_alike_in_either_order() -> None:
    text = module().replace("in_2 + scale", "scale + in_2")
    assert looped(text, statements=8) == looped(module(), statements=8)
    text = module().replace("+ scale", "- scale").replace("in_2 - scale", "scale - in_2")
    assert re.search(r"copied_\d+\[2\] = scale;", looped(text, statements=8))


def test_a_register_that_others_read_is_written_at_the_end() -> None:
    text = looped(module(), statements=8)
    assert re.search(r"(lanes_0_\d_total_0) <= \1_next;", text)


def test_a_lane_that_computes_something_else_stays_as_it_is() -> None:
    text = looped(module(broken=2), least=3, statements=8)
    assert "sum_2 = in_2 - scale;" in text
    assert "total_2 <= total_2 + sum_2_s1;" in text
    assert "[3] = in_3" not in text  # three lanes, the last of them the fourth
    assert "[2] = in_3;" in text


def test_few_lanes_stay_statements() -> None:
    assert "for (" not in looped(module(), least=LANES + 1)
    assert "for (" not in looped(module())
