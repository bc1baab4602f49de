"""A process of alike lanes gives the same values as it is and with its lanes as loops, and as the C++ does."""

from __future__ import annotations

from pathlib import Path

from moehls.simulate.looped import looped
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


def test_lanes_as_loops_compute_what_the_lanes_do(tmp_path: Path) -> None:
    designs = [
        Design(name, PREAMBLE + LANES.replace("NAME", name), (("in", 128),), (("out", 256),))
        for name in ("lanes0", "lanes1")
    ]
    files = generate(designs[1], tmp_path).files
    assert any("dsp_slice #" in text for text in files.values()), "DSPs are among the lanes"
    assert sum(looped(text, least=2, statements=4).count("for (int unsigned") for text in files.values()) > 5
    assert compare(designs, tmp_path) == []
