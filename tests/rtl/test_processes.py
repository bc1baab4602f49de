"""What single processes become: their interval, their interlocks, and where the generator refuses, with the C++ line."""

from __future__ import annotations

from pathlib import Path

import pytest

from moehls.errors import MoehlsError
from moehls.rtl.generate import LIBRARY, Generated, generate_modules
from moehls.simulate.verilator import lint
from tests.rtl.bench import SHIM
from tests.rtl.programs import PREAMBLE

HEAD = PREAMBLE.count("\n")
SIGNATURE = "void top(hls::stream<ap_uint<32>>& in, hls::stream<ap_uint<32>>& out)"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rtl")


def make(cache: Path, body: str, before: str = "", signature: str = SIGNATURE) -> Generated:
    source = cache / "top.cpp"
    source.write_text(f"{PREAMBLE}{before}\n{signature} {{\n{body}\n}}\n")
    return generate_modules([source], [SHIM], cache, "top")


def test_a_loop_with_work_in_it_starts_a_step_a_cycle(cache: Path) -> None:
    made = make(
        cache,
        """ap_uint<32> sum = 0;
        for (ap_uint<32> n = 0; n < 100; ++n) {
          ap_uint<32> x = in.read();
          sum += ap_uint<32>((x * x) >> 7);
          out.write(sum);
        }""",
    )
    (process,) = made.report.processes
    assert [loop.reached for loop in process.loops] == [1]
    assert process.stages > 2, "the product has stages of its own"
    assert made.report.missed() == []
    assert "sum" in made.files["top_unbuffered.sv"], "names of the source stay"


def test_a_recurrence_through_a_memory_misses_its_interval(cache: Path) -> None:
    made = make(
        cache,
        """static ap_uint<32> next[300];
        ap_uint<32> at = in.read();
        for (int n = 0; n < 50; ++n) at = next[ap_uint<8>(at)];
        out.write(at);""",
    )
    (line,) = made.report.missed()
    assert "top" in line
    assert "instead of 1" in line


def test_an_update_in_place_is_interlocked_not_slowed(cache: Path) -> None:
    made = make(
        cache,
        """static ap_uint<32> count[256];
        for (int n = 0; n < 50; ++n) {
          ap_uint<8> a = in.read();
          count[a] = count[a] + 1;
        }
        for (int n = 0; n < 256; ++n) out.write(count[n]);""",
    )
    (process,) = made.report.processes
    assert made.report.missed() == []
    assert "count.0" in process.interlocks


def test_reads_and_writes_of_one_port_twice_are_steps_of_their_own(cache: Path) -> None:
    made = make(cache, "for (int n = 0; n < 5; ++n) { ap_uint<32> a = in.read(), b = in.read(); out.write(a + b); }")
    unit = made.units.units["@" + next(f for f in made.units.units)[1:]]
    assert unit.process is not None
    assert sum(a.port == "in" for a in unit.process.accesses) == 2
    assert len({a.step for a in unit.process.accesses if a.port == "in"}) == 2


def test_generated_modules_have_no_warning(cache: Path) -> None:
    made = make(cache, "for (int n = 0; n < 5; ++n) out.write(in.read() * 3);")
    folder = cache / "lint"
    folder.mkdir(exist_ok=True)
    for name, text in made.files.items():
        (folder / name).write_text(text)
    assert lint([LIBRARY / "waivers.vlt", *(folder / name for name in sorted(made.files))], "top") == []


@pytest.mark.parametrize(
    ("body", "line", "what"),
    [
        ("ap_uint<32> x = in.read();\nout.write(x / in.read());", 2, "udiv"),
        (
            "static ap_uint<32> m[4][300];\nfor (int i = 0; i < 9; ++i) out.write(m[ap_uint<2>(in.read())][i]);",
            2,
            "one word of one bank",
        ),
        ("ap_uint<32> x = in.read();\nin.write(x);\nout.write(x);", 2, "both read and written"),
    ],
)  # fmt: skip
def test_what_lies_outside_the_subset_is_refused_by_line(cache: Path, body: str, line: int, what: str) -> None:
    with pytest.raises(MoehlsError, match=what) as raised:
        make(cache, body)
    assert f":{HEAD + 2 + line}:" in str(raised.value) or ".h:" in str(raised.value)


def test_a_region_whose_streams_lead_back_is_refused(cache: Path) -> None:
    before = """typedef hls::stream<ap_uint<32>, 2> link;
    void a(hls::stream<ap_uint<32>>& in, link& back, link& forth) { forth.write(in.read() + back.read()); }
    void b(link& forth, link& back, hls::stream<ap_uint<32>>& out) {
      ap_uint<32> x = forth.read();
      back.write(x);
      out.write(x);
    }"""
    with pytest.raises(MoehlsError, match="leads back"):
        make(cache, "DATAFLOW\nlink forth, back;\na(in, back, forth);\nb(forth, back, out);", before)


def test_cpp_that_does_not_compile_says_why(cache: Path) -> None:
    with pytest.raises(MoehlsError, match="undeclared identifier"):
        make(cache, "out.write(nothing);")


def test_same_source_same_text(cache: Path) -> None:
    body = "for (int n = 0; n < 5; ++n) { ap_uint<32> x = in.read(); out.write(x * x + n); }"
    assert make(cache, body).files == make(cache, body).files
