"""Wires computed where they alone are written: what moves, what stays. Random programs run both ways (`tests/rtl`)."""

from __future__ import annotations

import re

from moehls.simulate.gated import gated

MODULE = """module m (
    input  wire clock
);
    wire [7:0] sum;
    wire [7:0] doubled;
    wire odd;
    wire [7:0] shared;
    wire [7:0] shown;
    assign doubled = {sum[6:0], 1'b0};
    assign sum = a_s1 + b_s1;
    assign odd = a_s1[0];
    assign shared = a_s1 - b_s1;
    assign shown = shared ^ 8'h3;
    assign out_data = shown;
    always_ff @(posedge clock) begin
        if (valid_1) begin
            doubled_s2 <= doubled;
            shared_s2 <= shared;
        end
    end
    always_ff @(posedge clock) begin
        if (valid_1 & odd) total <= total + 8'h1;
    end
endmodule
"""


def test_what_one_write_reads_moves_into_it_in_the_order_of_the_data() -> None:
    text = gated(MODULE)
    called = re.search(r"if \(valid_1\) begin\n +(\w+)\(\);\n +end\n", text)
    assert called is not None
    block = text[text.index(f"task automatic {called[1]};") : text.index("doubled_s2 <=")]
    assert [line.strip() for line in block.splitlines()[1:-1]] == [
        "logic [7:0] sum;",
        "logic [7:0] doubled;",
        "sum = a_s1 + b_s1;",
        "doubled = {sum[6:0], 1'b0};",
    ]
    assert "assign sum" not in text


def test_conditions_outputs_and_what_several_read_stay_wires() -> None:
    text = gated(MODULE)
    for name in ("odd", "shared", "shown"):
        assert f"    assign {name} = " in text
        assert f" {name};" in text


def test_nothing_else_changes() -> None:
    kept = MODULE.replace("    wire [7:0] sum;\n", "").replace("    wire [7:0] doubled;\n", "")
    kept = kept.replace("    assign doubled = {sum[6:0], 1'b0};\n", "").replace("    assign sum = a_s1 + b_s1;\n", "")
    text = gated(MODULE)
    for name, body in re.findall(r"    task automatic (\w+);\n(.*?)    endtask\n", text, re.DOTALL):
        assert text.count(f"{name}();") == 1
        text = text.replace(f"            {name}();\n", "".join(f"    {line}\n" for line in body.splitlines()))
    lines = iter(text.splitlines())
    assert all(line in lines for line in kept.splitlines())


def test_a_single_write_becomes_a_call() -> None:
    single = MODULE.replace("begin\n            doubled_s2 <= doubled;", "doubled_s2 <= doubled;")
    single = single.replace("            shared_s2 <= shared;\n        end\n", "        shared_s2 <= shared;\n")
    text = gated(single)
    assert re.search(r"if \(valid_1\) region_\d+\(\);\n        shared_s2 <= shared;", text)
    assert text.index("doubled = {sum[6:0], 1'b0};") < text.index("doubled_s2 <= doubled;") < text.index("endtask")
