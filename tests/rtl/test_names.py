"""The emitted text: values have the names of the C++ variables they come from, and say where in the source they are made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moehls.rtl.generate import Generated, generate_modules
from tests.rtl.bench import SHIM
from tests.rtl.programs import PREAMBLE

SOURCE = """
struct Place { ap_uint<16> row, lane; };
void top(hls::stream<ap_uint<32>>& in, hls::stream<ap_uint<32>>& out) {
  Place place;
  place.row = 0;
  place.lane = 0;
  ap_uint<16> best[2];
  UNROLL
  for (int k = 0; k < 2; ++k) best[k] = 0;
  const ap_uint<32> count = in.read();
  for (ap_uint<32> n = 0; n < count; ++n) {
    const ap_uint<32> word = in.read();
    ap_uint<32> total = 0;
    UNROLL
    for (int k = 0; k < 2; ++k) {
      const ap_uint<16> half = word >> (16 * k);
      const ap_uint<32> product = half * best[k];
      total ^= product;
      if (half > best[k]) best[k] = half;
    }
    if (place.lane == 6) ++place.row;
    place.lane = place.lane == 6 ? 0 : int(place.lane) + 1;
    out.write(total + place.row);
  }
}
"""
OPERATION = re.compile(r"\b(add|sub|mul|mux|eq|ult|slt|and|or|not|xor|shl|lshr|ashr|rom)_\d+\b")
"""names that say nothing"""


def generate(folder: Path) -> Generated:
    source = folder / "top.cpp"
    source.write_text(PREAMBLE + SOURCE)
    return generate_modules([source], [SHIM], folder, "top")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return generate(tmp_path_factory.mktemp("names")).files["top_unbuffered.sv"]


@pytest.mark.parametrize("name", ["count", "n", "place_row", "place_lane", "best_0", "best_1"])
def test_a_register_is_its_variable(text: str, name: str) -> None:
    """Members of structs and elements of arrays too."""
    assert re.search(rf"logic \[\d+:0\] {name};", text)


def test_an_unrolled_loop_numbers_its_values(text: str) -> None:
    assert re.search(r"product_0 = .* \* ", text)
    assert re.search(r"product_1 = .* \* ", text)


def test_a_comparison_is_named_by_its_operands(text: str) -> None:
    assert "place_lane_is_6 = place_lane == " in text


def test_no_name_is_an_operation_and_a_number(text: str) -> None:
    assert not OPERATION.search(text)


def test_values_say_where_they_are_made(text: str) -> None:
    line = next(n for n, t in enumerate((PREAMBLE + SOURCE).splitlines(), 1) if "product = half" in t)
    assert re.search(rf"// top\.cpp:{line}\n *assign product_0 = ", text)
    assert "ap_int.h" not in text


def test_names_do_not_depend_on_where_it_is_built(text: str, tmp_path: Path) -> None:
    assert generate(tmp_path).files["top_unbuffered.sv"] == text
