"""The delay model: loads count, control counts, and what is too long is listed by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moehls.rtl import delay
from moehls.rtl.fanout import loads
from moehls.rtl.generate import Generated, generate_modules
from moehls.rtl.report import read_report
from moehls.rtl.schedule import live_nodes
from tests.rtl.bench import SHIM
from tests.rtl.programs import PREAMBLE

SIGNATURE = "void top(hls::stream<ap_uint<32>>& in, hls::stream<ap_uint<32>>& out)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timing")


def make(cache: Path, body: str, signature: str = SIGNATURE) -> Generated:
    source = cache / "top.cpp"
    source.write_text(f"{PREAMBLE}\n{signature} {{\n{body}\n}}\n")
    return generate_modules([source], [SHIM], cache, "top")


def test_a_product_in_a_recurrence_is_listed_by_its_signals(cache: Path) -> None:
    made = make(
        cache,
        """ap_uint<32> total = 1;
        for (ap_uint<32> n = 0; n < 100; ++n) {
          total = ap_uint<32>(ap_uint<16>(total) * ap_uint<16>(in.read())) + (total >> 3) + n;
          out.write(total);
        }""",
    )
    slow = made.report.slow()
    assert slow, "a product and a sum are longer than the clock"
    assert any("total" in line and "_mul" in line for line in slow), slow
    assert slow[0] in made.report.table()
    (process,) = made.report.processes
    assert process.longest_path > made.report.budget
    assert process.path.split(" → ")[0].startswith("total")


def test_what_fits_has_an_empty_list(cache: Path) -> None:
    made = make(cache, "for (ap_uint<32> n = 0; n < 100; ++n) { ap_uint<32> x = in.read(); out.write(x * x + n); }")
    assert made.report.slow() == []
    assert "300 MHz): none" in made.report.table()
    (process,) = made.report.processes
    assert 0 < process.longest_path <= made.report.budget < made.report.period


def test_a_condition_over_a_wide_word_is_later_than_one_over_a_bit(cache: Path) -> None:
    wide = "void top(hls::stream<ap_uint<512>>& in, hls::stream<ap_uint<512>>& out)"
    body = """ap_uint<512> kept = 0;
        for (ap_uint<16> n = 0; n < 100; ++n) {
          ap_uint<512> x = in.read();
          out.write(ap_uint<9>(x) == 5 ? x : kept);
          kept = x;
        }"""
    made = make(cache, body, wide)
    (unit,) = made.units.units.values()
    assert unit.process is not None
    nodes = live_nodes(unit.process)
    found = loads(unit.process, nodes)
    choice = next(n for n in nodes if n.op == "eq" and n.args[0].width == 9)
    assert found[choice.id] == 512
    text = "".join(made.files.values())
    assert "(* max_fanout" in text, "what drives so much has copies"
    assert delay.net(1) == 0 < delay.net(64) == delay.copied(512) < delay.driven(512) < delay.net(512)


def test_nothing_stops_a_pipeline_behind_its_front(cache: Path) -> None:
    made = make(cache, "for (ap_uint<32> n = 0; n < 100; ++n) { ap_uint<32> x = in.read(); out.write(x * x * n + 3); }")
    (unit,) = made.units.units.values()
    assert unit.flow is not None
    assert unit.schedule is not None
    assert unit.flow.front == 0 < unit.schedule.stages - 1
    text = made.files["top_unbuffered.sv"]
    assert "stall_1" not in text
    assert "valid_1 <= advance_0;" in text
    slack = unit.flow.slack(unit.schedule, "out")
    assert slack == unit.schedule.port["out"] > 0
    assert f".SLACK({slack})" in made.files["top.sv"], "a FIFO takes what is under way"


def test_a_step_waits_for_an_older_write_before_it_starts(cache: Path) -> None:
    made = make(
        cache,
        """static ap_uint<32> count[256];
        for (int n = 0; n < 50; ++n) {
          ap_uint<8> a = in.read();
          count[a] = count[a] + 1;
        }
        for (int n = 0; n < 256; ++n) out.write(count[n]);""",
    )
    (unit,) = made.units.units.values()
    assert unit.flow is not None
    assert {c.read.port for c in unit.flow.conflicts} == {"count.0.read"}
    assert all(c.gap > 0 for c in unit.flow.conflicts)


def test_the_report_is_read_again_as_it_was_written(cache: Path) -> None:
    report = make(cache, "for (int n = 0; n < 5; ++n) out.write(in.read() * 3);").report
    path = cache / "rtl.json"
    path.write_text(json.dumps(report.as_json()))
    assert read_report(path) == report
