"""`moehls explore`, its files, and `moehls compile --point`."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from moehls.project import open_project
from tests.cli.support import MODEL, Outcome, call, tree

Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *arguments: call(capsys, monkeypatch, *arguments)


def test_a_point_becomes_a_project(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "front.json"
    done = run("explore", MODEL, "-o", file, "--set", "block=8")
    assert done.code == 0 and "cycles, logarithmic" in done.out
    points = json.loads(file.read_text())["points"]
    drawing = ElementTree.parse(file.with_suffix(".svg")).getroot()
    assert len(drawing.findall(".//{*}rect")) == 3 * len(points)
    number = len(points) // 2
    assert run("compile", MODEL, "-o", tmp_path / "p", "--point", f"{file}:{number}").code == 0
    chosen, shape = points[number - 1], open_project(tmp_path / "p").plan.shape
    settings = {key: value for key, value in chosen["settings"].items() if key != "hidden_parts"}
    assert {key: str(getattr(shape, key)) for key in settings} == settings
    assert open_project(tmp_path / "p").summary()["hidden_parts"] == int(chosen["settings"]["hidden_parts"])
    assert open_project(tmp_path / "p").summary()["dsp"]["value"] == chosen["dsp"]


def test_json_is_what_the_file_holds(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "front.json"
    run("explore", MODEL, "-o", file, "--set", "block=8", "--board", "kv260")
    shown = run("explore", MODEL, "--json", "--set", "block=8", "--board", "kv260")
    assert json.loads(shown.out) == json.loads(file.read_text())
    assert {"model", "board", "clock_mhz", "precision", "points"} <= json.loads(shown.out).keys()


@pytest.mark.parametrize(
    ("point", "options", "message"),
    [
        ("front.json:99", (), "has the points 1 … 1"),
        ("front.json:0", (), "has the points 1 … 1"),
        ("missing.json", (), "No such file"),
        ("other.json", (), "is not a file of moehls explore"),
        ("front.json", ("--board", "kv260"), "was made with --board zcu104"),
        ("front.json:1", ("--clock-mhz", "200"), "--clock-mhz 300"),
    ],
)
def test_a_wrong_point_is_one_error(
    run: Run, tmp_path: Path, point: str, options: tuple[str, ...], message: str
) -> None:
    found = {"board": "zcu104", "precision": "w8a8", "clock_mhz": 300.0, "points": [{"settings": {"block": "8"}}]}
    (tmp_path / "front.json").write_text(json.dumps(found))
    (tmp_path / "other.json").write_text(json.dumps([1]))
    before = tree(tmp_path)
    done = run("compile", MODEL, "-o", tmp_path / "p", "--point", tmp_path / point, *options)
    assert done.code == 2 and message in done.err
    assert tree(tmp_path) == before


def test_an_output_that_cannot_be_written_is_one_error(run: Run, tmp_path: Path) -> None:
    for output in (tmp_path / "nowhere" / "front.json", tmp_path / "front.svg"):
        done = run("explore", MODEL, "-o", output)
        assert done.code == 2 and "wanted is a .json file" in done.err
    assert not tree(tmp_path)
