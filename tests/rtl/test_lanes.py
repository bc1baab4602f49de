"""Processes of alike lanes give the same values as they are and with their lanes as loops, and as the C++ does."""

from __future__ import annotations

from pathlib import Path

from moehls.simulate.alike import groups_of
from moehls.simulate.copies import parts_of, windows_of
from moehls.simulate.looped import looped
from moehls.simulate.statements import read
from tests.rtl.bench import Design, compare, generate
from tests.rtl.programs import PREAMBLE

LANES = """
void NAME(hls::stream<ap_uint<128>>& in, hls::stream<ap_uint<256>>& out) {
  static const ap_uint<6> squares[16] = {0, 1, 4, 9, 16, 25, 36, 49, 60, 61, 62, 63, 7, 5, 3, 2};
  ap_int<32> totals[8];
  ap_int<8> weights[8];
  for (ap_uint<8> n = 0; n < 40; ++n) {
    const ap_uint<128> word = in.read();
    ap_uint<256> result = 0;
    UNROLL
    for (int lane = 0; lane < 8; ++lane) {
      const ap_int<8> a = ap_int<8>(word >> (8 * lane));
      const ap_int<8> b = ap_int<8>(word >> (64 + 8 * lane));
      const ap_int<8> c = ap_int<8>(word >> (8 * ((lane + 3) % 8)));
      const bool first = (n & 7) == 0;
      if (first) weights[lane] = b;
      const ap_int<20> sum = a * b + weights[lane] * c + a;
      const ap_int<20> limited = sum > 4000 ? ap_int<20>(4000) : sum;
      totals[lane] = (first ? ap_int<32>(0) : totals[lane]) + limited + ap_int<8>(squares[ap_uint<4>(b)]);
      const ap_uint<32> shown = ap_uint<32>(totals[lane]) ^ ap_uint<32>(ap_uint<20>(sum) >> ap_uint<3>(a));
      result |= ap_uint<256>(shown) << (32 * lane);
    }
    out.write(result);
  }
}
"""


SUMS = """
void NAME(hls::stream<ap_uint<128>>& in, hls::stream<ap_uint<256>>& out) {
  for (ap_uint<8> n = 0; n < 40; ++n) {
    const ap_uint<128> word = in.read();
    ap_uint<256> result = 0;
    UNROLL
    for (int column = 0; column < 4; ++column) {
      ap_int<20> terms[8];
      UNROLL
      for (int k = 0; k < 8; ++k) {
        const ap_int<8> a = ap_int<8>(word >> (7 * k));
        const ap_int<8> c = ap_int<8>(word >> (7 * k + 2));
        const ap_uint<2> b = ap_uint<2>(word >> (60 + 16 * column + 2 * k));
        terms[k] = (b[0] ? a : ap_int<8>(0)) ^ (b[1] ? c : ap_int<8>(0));
      }
      UNROLL
      for (int half = 4; half > 0; half /= 2)
        UNROLL
        for (int k = 0; k < half; ++k) terms[k] = terms[k] + terms[k + half];
      result |= ap_uint<256>(ap_uint<20>(terms[0])) << (64 * column);
    }
    out.write(result);
  }
}
"""


def test_lanes_as_loops_compute_what_the_lanes_do(tmp_path: Path) -> None:
    designs = [
        Design(name, PREAMBLE + text.replace("NAME", name), (("in", 128),), (("out", 256),))
        for name, text in (("lanes0", LANES), ("lanes1", LANES), ("sums", SUMS))
    ]
    files = generate(designs[1], tmp_path).files
    assert any("dsp_slice #" in text for text in files.values()), "DSPs are among the lanes"
    assert sum(looped(text, least=2, statements=4).count("for (int unsigned") for text in files.values()) > 5
    groups = groups_of(read(generate(designs[2], tmp_path).files["sums_unbuffered.sv"]), 4, 64)
    assert max(len(lanes) for lanes in groups) == 32, "the terms of a sum are lanes, in all columns"
    assert compare(designs, tmp_path) == []


def test_parts_of_a_word_are_copied_together() -> None:
    low = parts_of((("x", "x[3:0]"), ("x", "x[12:9]"), ("y", "y[4:1]")))
    sign = parts_of((("x", "{{2{x[7]}}, x[7:4]}"), ("x", "{{2{x[16]}}, x[16:13]}"), ("y", "{{2{y[8]}}, y[8:5]}")))
    far = parts_of((("x", "x[40]"), ("x", "x[49]"), ("y", "y[41]")))
    assert low and sign and far
    assert windows_of([far, sign, low]) == {(("x", "x", "y"), (0, 9, 1)): [(0, 7), (40, 40)]}
    assert low.within("a", 0, 7) == "a[3:0]"
    assert sign.within("a", 0, 7) == "{{2{a[7]}}, a[7:4]}"
    assert far.within("a", 40, 40) == "a"
    assert parts_of((("x", "x[3:0]"), ("x", "x[5:1]"))) is None
    assert parts_of((("x", "x"), ("y", "y"))) is None
