"""The emitted C++: the same bytes every time, no impossible shape, no warning, only pragmas that Vitis knows."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from moehls.emit.hls import emit_hls, render_hls
from moehls.errors import MoehlsError
from moehls.plan.shape import Shape
from moehls.simulate.verilator import compiler
from tests.csim.conftest import SHAPES, Accelerator

VITIS_PRAGMAS = {
    "ALLOCATION", "ARRAY_PARTITION", "BIND_STORAGE", "DATAFLOW", "DEPENDENCE", "INTERFACE", "PIPELINE",
}  # fmt: skip


def test_the_same_shape_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        paths = emit_hls(SHAPES["w8a8"], ("exact",), tmp_path / folder)
    assert {Path("include/model.hpp"), Path("src/engine.cpp"), Path("csim/harness.cpp")} <= set(paths)
    for path in paths:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_the_gelu_form_changes_its_table_alone() -> None:
    exact, tanh = (render_hls(SHAPES["w8a8"], (form,)) for form in ("exact", "tanh"))
    assert [a.path for a, b in zip(exact, tanh, strict=True) if a != b] == [Path("include/tables.hpp")]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (replace(SHAPES["w8a8"], block=12), "block is 12"),
        (replace(SHAPES["w8a8"], block=32), "8192 bits"),
        (replace(SHAPES["w8a8"], token_parallel=9), "token_parallel is 9"),
        (replace(SHAPES["w8a8"], epilogue_lanes=3), "epilogue_lanes is 3"),
        (replace(SHAPES["w8a8"], ports=3), "ports is 3"),
    ],
)
def test_an_impossible_shape_is_refused(shape: Shape, message: str, tmp_path: Path) -> None:
    with pytest.raises(MoehlsError, match=message):
        emit_hls(shape, ("exact",), tmp_path)
    assert not list(tmp_path.iterdir())


def test_clang_has_no_warning(accelerator: Accelerator) -> None:
    assert (accelerator.library.path.parent / "compile.log").read_text() == ""


def test_vitis_sees_its_pragmas_and_no_other(accelerator: Accelerator, tmp_path: Path) -> None:
    """Seen by a preprocessor; the vendor's headers would add nothing to it."""
    for header in ("ap_int.h", "hls_stream.h"):
        (tmp_path / header).touch()
    includes = [f"-I{accelerator.project / 'include'}", f"-I{tmp_path}"]
    text = ""
    for source in sorted((accelerator.project / "src").glob("*.cpp")):
        command = [*compiler(), "-std=c++14", "-E", "-D__SYNTHESIS__", *includes, str(source)]
        text += subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pragmas = re.findall(r"#pragma HLS ([A-Z_]+)(.*)", text)
    assert {name for name, _ in pragmas} == VITIS_PRAGMAS
    heads = ("for (ap_uint<32> n", "while (more)")
    loops = sum(source.text.count(head) for source in render_hls(accelerator.shape, ("exact",)) for head in heads)
    # with other heads: read_parameters, of a context too, copy_tokens, the counts of enqueue; request, choose, keep of sections
    others = 4 + 3 * (accelerator.shape.experts == "prefetched")
    assert sum(name == "PIPELINE" for name, _ in pragmas) == loops + others
    assert not re.search(r"_STORAGE\b", "".join(options for _, options in pragmas))
