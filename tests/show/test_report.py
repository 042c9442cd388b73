"""The report: self-contained, complete, and safe whatever the model's parts are called."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

import fabricated
from layerhess.analysis.result import Analysis
from layerhess.results.record import Check
from layerhess.show import figures
from layerhess.show.numbers import rounded_up, with_bound
from layerhess.show.report import as_html

NASTY = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """The page as a browser would take it: tags with their attributes, text, and whether the tags balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.by_id: dict[str, str] = {}
        self.rows: list[tuple[dict[str, str | None], list[str]]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append((dict(attributes), []))
        if tag in {"td", "th"} and self.rows:
            self.rows[-1][1].append("")
        if tag not in VOID:
            self._open.append(tag)
            self._last = dict(attributes).get("id")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.words.append(data)
        if self._open and self._last:
            self.by_id[self._last] = self.by_id.get(self._last, "") + data
            self._last = None
        if self.rows and ("td" in self._open or "th" in self._open) and self.rows[-1][1]:
            self.rows[-1][1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(params=[False, True], ids=["good", "bad"], scope="module")
def made(request: pytest.FixtureRequest) -> Analysis:
    return fabricated.analysis(bad=request.param)


@pytest.fixture(scope="module")
def html(made: Analysis) -> str:
    return as_html(made)


def test_nothing_is_fetched_from_anywhere(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value is not None and value.startswith(("#", "data:")), (tag, name, value)
            assert not name.startswith("on"), "handlers are attached by the script, none is inline"
    assert not re.search(r"https?:|//\w|@import|fetch\(|XMLHttp|import\(", html.replace("// ", ""))
    for address in re.findall(r"url\(([^)]*)\)", html):
        assert address.startswith("#")
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and "default-src 'none'" in policy


def test_every_reference_inside_the_page_has_its_target(html: str) -> None:
    page = Page(html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)), "no id twice"
    targets = re.findall(r"url\(#([^)]*)\)", html) + [a["href"][1:] for _, a in page.tags if a.get("href")]
    assert targets and set(targets) <= set(ids)


def test_all_numbers_are_there(made: Analysis, html: str) -> None:
    page = Page(html)
    cells = {cell.strip() for _, row in page.rows for cell in row}
    for s in made.spectra():
        for value, bound, conditional in zip(s.eigenvalues, s.error_bounds, s.conditional_bounds, strict=True):
            assert repr(float(value)) in cells
            assert rounded_up(float(bound)) in cells
            assert math.isnan(conditional) or rounded_up(float(conditional)) in cells
    for s in made.blocks.values():
        if s.top is not None and s.bottom is not None:
            assert with_bound(*s.top) in cells and with_bound(*s.bottom) in cells
            assert f"{s.top[0] * s.weight_norm_squared:.4g}" in cells
    text = page.text
    for number in (made.counts.passes, made.counts.products, made.counts.forwards, made.counts.full_products):
        assert f"{number:,}" in text
    for sentence in (*made.notes, *(c.detail for c in made.checks), *made.frozen, *made.versions.values()):
        assert sentence in text
    for key, value in made.settings.items():
        assert key in text and ("not set" if value is None else str(value)) in text


def test_the_first_screen_says_what_matters() -> None:
    made = fabricated.analysis()
    page = Page(as_html(made))
    assert page.by_id["step"] == f"{2 / made.full.eigenvalues[0]:.4g}"
    assert page.by_id["negative"] == f"{made.full.eigenvalues[-1]:.4g}"
    assert page.by_id["loss"] == f"{made.loss:.4g}"
    assert page.by_id["examples"] == "1,437"
    assert page.by_id["converged"] == "8 of 8"
    head = page.text[: page.text.index("Eigenvalues, layer by layer")]
    assert "Everything converged" in head and "gradient descent" in head and with_bound(*made.full.top) in head


def test_a_partial_result_is_clearly_partial() -> None:
    page = Page(as_html(fabricated.analysis(bad=True)))
    head = page.text[: page.text.index("Eigenvalues, layer by layer")]
    for sentence in ("NOT CONVERGED", "REFUSED", "interrupted (Ctrl-C) after 12 passes", "weight_norm in fc", "6 of 8"):
        assert sentence in head
    assert "Everything converged" not in page.text
    bad = [cells[0].strip() for attributes, cells in page.rows if attributes.get("class") == "bad" and cells]
    assert "stem.weight" in bad and "head.weight" in bad


def test_the_table_can_be_sorted_by_the_three_measures(made: Analysis, html: str) -> None:
    page = Page(html)
    offered = {a["data-key"] for tag, a in page.tags if tag == "button"}
    assert {"top", "sensitivity", "numel"} <= offered
    rows = [attributes for attributes, _ in page.rows if "data-order" in attributes]
    assert len(rows) == len(made.blocks)
    for row, s in zip(rows, made.blocks.values(), strict=True):
        assert float(row["data-numel"] or "nan") == pytest.approx(s.numel / made.total_numel)
        if s.top is None:
            assert "data-top" not in row and "data-sensitivity" not in row
        else:
            assert float(row["data-top"] or "nan") == s.top[0]
            assert float(row["data-sensitivity"] or "nan") == s.top[0] * s.weight_norm_squared


def test_names_and_sentences_cannot_break_out() -> None:
    block = dataclasses.replace(fabricated.unconverged(fabricated.spectrum(NASTY)), status=f"not converged: {NASTY}")
    made = fabricated.analysis(
        blocks={NASTY: block},
        full_mass=[{NASTY: 1.0}] * 3,
        model=NASTY,
        partial=NASTY,
        notes=(NASTY,),
        checks=(Check(NASTY, False, NASTY, NASTY, NASTY),),
        frozen=(NASTY,),
        uncovered=(NASTY,),
        settings={NASTY: {NASTY: [NASTY]}, "function": NASTY},
        versions={NASTY: NASTY},
        seconds={NASTY: 1.0},
        created=NASTY,
    )
    plain = Page(as_html(fabricated.analysis()))
    page = Page(as_html(made))
    assert [t for t, _ in page.tags].count("script") == [t for t, _ in plain.tags].count("script") == 1
    assert "img" not in {t for t, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(1)") >= 12, "shown as text"


def test_an_empty_and_a_full_less_analysis_have_reports_too() -> None:
    empty = Page(as_html(fabricated.analysis(blocks={}, full=None, full_mass=[], checks=(), notes=(), settings={})))
    assert "svg" not in {t for t, _ in empty.tags}
    blocks_only = Page(as_html(fabricated.analysis(full=None, full_mass=[])))
    assert "≤" in blocks_only.by_id["step"] and "interlacing" not in blocks_only.text


def test_numbers_that_are_not_finite_do_not_break_it() -> None:
    block = fabricated.spectrum(
        "w",
        eigenvalues=np.array([1.0, 0.0, -1.0]),
        error_bounds=np.array([np.inf, np.nan, 1e-3]),
        weight_norm_squared=float("nan"),
        missed_factor=float("inf"),
    )
    made = fabricated.analysis(blocks={"w": block}, gradient_norm=float("nan"), loss=float("inf"))
    assert "± unknown" in Page(as_html(made)).text


def test_the_pictures_follow_the_pages_colours() -> None:
    html = as_html(fabricated.analysis())
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 2
    for drawing in drawings:
        assert "var(--ink)" in drawing and "var(--top)" in drawing
        fixed = set(re.findall(r"#[0-9a-f]{6}\b", drawing))
        assert fixed <= {"#ffffff", "#000000"}, fixed
    assert "prefers-color-scheme: dark" in html


def test_the_same_analysis_gives_the_same_page() -> None:
    assert as_html(fabricated.analysis()) == as_html(fabricated.analysis())


def test_a_thousand_blocks_make_a_page_that_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = {f"layer.{i}.weight": fabricated.spectrum(f"layer.{i}.weight", (2,), i) for i in range(1000)}
    monkeypatch.setattr(figures, "MOST_ROWS", 30)
    html = as_html(fabricated.analysis(blocks=blocks, full_mass=[]))
    assert len(html) < 6_000_000
    assert "more are in analysis.json" in html
