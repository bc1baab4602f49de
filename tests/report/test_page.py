"""The report page: one file without others, every text escaped, every drawing there once its figures are."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from moehls.project import Project
from moehls.report.page import render_page
from moehls.report.summary import with_vendor_reports, with_verification
from moehls.report.vendor import VendorReports
from moehls.samples import read_samples
from moehls.simulate.simulators import simulator
from moehls.simulate.verify import Level, Verification, verify
from tests.conftest import DIGITS

VOID = {"meta", "polyline", "rect", "br"}


class Checker(HTMLParser):
    """Fails on a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def well_formed(page: str) -> list[str]:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker.tags


@pytest.fixture(scope="module")
def verification(digits: Project) -> Verification:
    samples = read_samples(DIGITS / "test.npz", digits.network).first(4)
    return verify(
        digits.network, digits.integer, digits.program, samples, {"csim": simulator(digits, "csim")},
        fidelity=True, progress=lambda text, share: None,
    )  # fmt: skip


def test_before_verification_it_says_what_is_missing(digits: Project) -> None:
    page = render_page(digits.summary(), digits.manifest)
    well_formed(page)
    assert "Not verified yet" in page
    assert "not run" in page


def test_after_verification_everything_is_drawn(digits: Project, verification: Verification) -> None:
    page = render_page(with_verification(digits.summary(), verification), digits.manifest)
    tags = well_formed(page)
    titles = (
        "The recognised model",
        "Fidelity by stage",
        "Cycles and utilisation",
        "Which experts",
        "memory map",
        "Approximation of the activation",
    )
    assert all(title in page for title in titles)
    assert "equal in every bit" in page
    assert tags.count("svg") == 8 + len([m for m in digits.manifest["memories"] if m["values"]])
    assert len(re.findall(r"<rect[^>]*class=\"k-", page)) >= len(digits.summary()["steps"])


def test_it_needs_no_other_file_and_no_network(digits: Project, verification: Verification) -> None:
    page = render_page(with_verification(digits.summary(), verification), digits.manifest)
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script|<link|<iframe", page)


def test_text_from_the_graph_is_escaped(digits: Project, verification: Verification) -> None:
    summary = with_verification(digits.summary(), verification)
    attack = "</title><script>alert(1)</script>"
    summary["model"] = summary["recognised"]["outputs"][0]["name"] = summary["steps"][3]["name"] = attack
    page = render_page(summary, digits.manifest)
    well_formed(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3


def test_a_level_that_differs_is_shown(digits: Project, verification: Verification) -> None:
    summary = with_verification(digits.summary(), verification)
    summary["verification"]["levels"][1] |= {
        "exact": False,
        "difference": "sample 0, output <digit>: expected 1, found 2",
    }
    page = render_page(summary, digits.manifest)
    assert "output &lt;digit&gt;: expected 1, found 2" in page


def test_the_vendor_tools_own_counts_are_shown(digits: Project) -> None:
    counts = {"dsp": 1000.0, "bram36": 100.5, "uram": 8.0, "lut": 90000.0, "ff": 100000.0}
    reports = VendorReports(counts, 2.4, 9000, None, None, None)
    page = render_page(with_vendor_reports(digits.summary(), reports), digits.manifest)
    assert "1,000 of 1,728" in page
    assert "vitis" in page


def test_measured_cycles_take_the_place_of_estimates(digits: Project) -> None:
    steps = len(digits.summary()["steps"])
    level = Level("rtl", 1, 0, 1.0, None, 7 * steps, (7,) * steps, (3,) * steps)
    summary = with_verification(digits.summary(), Verification((level,), None))
    assert summary["cycles_rtl"] == 7 * steps
    assert summary["latency_ms"] == pytest.approx(7 * steps / summary["clock_mhz"] / 1e3)
    assert summary["bit_exact"] == {"csim": None, "rtl": True}
    assert {step["cycles_rtl"] for step in summary["steps"]} == {7}
    assert {step["read_bytes_rtl"] for step in summary["steps"]} == {48}
    page = render_page(summary, digits.manifest)
    assert "as measured on the RTL" in page
    assert "an image, RTL" in page
