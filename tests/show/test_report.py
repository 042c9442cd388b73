"""The report: self-contained, complete, and safe whatever the model's parts are called."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

import fabricated
from html_page import Page
from layerhess.analysis.result import Analysis
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.results.record import Check
from layerhess.show.numbers import rounded_up
from layerhess.show.report import as_html

NASTY = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


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
    links = re.findall(r"url\(#([^)]*)\)", html) + [a["href"][1:] for _, a in page.tags if a.get("href")]
    told = [a[name] for _, a in page.tags for name in ("aria-controls", "aria-labelledby") if name in a]
    assert len(told) > 8 and {*links, *told} <= set(ids)


def test_all_numbers_are_there(made: Analysis, html: str) -> None:
    page = Page(html)
    text = page.text
    for s in made.spectra():
        for value, bound, conditional in zip(s.eigenvalues, s.error_bounds, s.conditional_bounds, strict=True):
            assert f"{float(value)!r} ± {rounded_up(float(bound))}" in text
            assert math.isnan(conditional) or f"r²/gap {rounded_up(float(conditional))}" in text
    for s in made.blocks.values():
        assert s.status in text
        if s.top is not None and s.settled("top"):
            assert f"‖W‖² = {s.top[0] * s.weight_norm_squared:.4g}" in text
    for number in (made.counts.passes, made.counts.products, made.counts.forwards, made.counts.full_products):
        assert f"{number:,}" in text
    for sentence in (*made.notes, *(c.detail for c in made.checks), *made.frozen, *made.versions.values()):
        assert sentence in text
    for key, value in made.settings.items():
        assert key in text and ("not set" if value is None else str(value)) in text
    assert repr(made.loss) in text


def answers_of(page: Page) -> str:
    """What stands above the table."""
    return page.text[: page.text.index("Every layer’s largest eigenvalue")]


def test_the_first_screen_says_what_matters() -> None:
    made = fabricated.analysis()
    head = answers_of(Page(as_html(made)))
    assert f"Learning rate below {2 / made.full.eigenvalues[0]:.3g}" in head and "plain gradient descent" in head
    assert f"most negative eigenvalue is {made.full.eigenvalues[-1]:.3g}" in head
    assert "Yes, for these 1,437 examples" in head and "8 of 8 spectra converged" in head
    sharpest = max(made.blocks, key=lambda name: made.blocks[name].eigenvalues[0])
    assert sharpest.removesuffix(".weight") in head


def test_a_partial_result_is_clearly_partial() -> None:
    page = Page(as_html(fabricated.analysis(bad=True)))
    head = answers_of(page)
    for sentence in ("NOT CONVERGED", "REFUSED", "interrupted (Ctrl-C) after 12 passes", "weight_norm in fc", "6 of 8"):
        assert sentence in head
    assert "Yes, for" not in page.text and "2 layers not converged or refused: they may be sharper" in head
    bad = {a["data-block"] for a, _ in page.rows if "bad" in (a.get("class") or "").split() and "data-block" in a}
    assert bad == {"stem.weight", "head.weight"}


def test_the_table_can_be_sorted_by_its_measures(made: Analysis, html: str) -> None:
    page = Page(html)
    offered = {a["data-key"] for tag, a in page.tags if tag == "button" and "data-key" in a}
    assert {"order", "top", "bottom", "share", "sensitivity", "numel"} <= offered
    rows = {a["data-block"]: a for a, _ in page.rows if "data-order" in a}
    assert list(rows) == ["(full)", *made.blocks]
    for name, s in made.blocks.items():
        row = rows[name]
        assert float(row["data-numel"] or "nan") == s.numel
        assert ("data-top" in row) == (s.top is not None)
        assert ("data-sensitivity" in row) == (s.top is not None and s.settled("top"))
        if s.top is not None:
            assert float(row["data-top"] or "nan") == s.top[0]
        if "data-sensitivity" in row:
            assert s.top is not None and float(row["data-sensitivity"] or "nan") == s.top[0] * s.weight_norm_squared
        assert float(row["data-share"] or "nan") == made.full_mass[0][name]


def test_every_mark_of_a_block_has_its_name() -> None:
    made = fabricated.estimated(fabricated.analysis())
    page = Page(as_html(made))
    for name in made.blocks:
        named = [tag for tag, a in page.tags if a.get("data-block") == name]
        assert {"tr", "svg", "li", "path"} <= set(named), (name, named)
    assert {a["data-block"] for _, a in page.tags if "data-block" in a} == {"(full)", *made.blocks}


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
    drawn = fabricated.estimated(made)
    assert [t for t, _ in Page(as_html(drawn)).tags].count("script") == 1, "of one block there are no pairs"
    assert "img" not in {t for t, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(1)") >= 12, "shown as text"


def test_a_name_cannot_turn_around_or_break_what_follows_it() -> None:
    made = fabricated.analysis()
    name = "a\u202eb\x1b[31m\nc"
    sharp = dataclasses.replace(made.blocks["stem.weight"], name=name, eigenvalues=np.array([99.0, 1.0, -0.1]))
    html = as_html(dataclasses.replace(made, blocks={**made.blocks, name: sharp}, model="M\u202e"))
    page = Page(html)
    assert "\u202e" not in " ".join(page.words) and "\x1b" not in " ".join(page.words)
    assert any("a\\u202eb\\x1b[31m\\nc" in word for word in page.words)
    assert any(attributes.get("data-block") == name for _, attributes in page.tags), "marks keep the true name"


def test_parts_of_names_are_not_taken_for_formulas() -> None:
    made = fabricated.analysis()
    name = "proj_bc.loss_bce_cc"
    sharp = dataclasses.replace(made.blocks["stem.weight"], name=name, eigenvalues=np.array([99.0, 1.0, -0.1]))
    html = as_html(dataclasses.replace(made, blocks={**made.blocks, name: sharp}))
    assert f">{name}</p>" in html and "H<sub>bb</sub>" in html


def test_a_long_block_scheme_does_not_push_the_answers_down() -> None:
    made = fabricated.analysis()
    scheme = str({f"group {i}": f"layers.{i}.*" for i in range(50)})
    html = as_html(dataclasses.replace(made, settings={**made.settings, "blocks": scheme}))
    assert "(blocks of your own)" in html and html.count("layers.49.*") == 1


def test_an_empty_and_a_full_less_analysis_have_reports_too() -> None:
    empty = Page(as_html(fabricated.analysis(blocks={}, full=None, full_mass=[], checks=(), notes=(), settings={})))
    assert "table" not in {t for t, _ in empty.tags}
    blocks_only = Page(as_html(fabricated.analysis(full=None, full_mass=[])))
    assert "alone; the whole model may need less" in blocks_only.text and "interlacing" not in blocks_only.text
    assert "whole model" not in [cells[0] for _, cells in blocks_only.rows if cells]


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


def test_the_page_has_one_set_of_colours_for_light_and_one_for_dark() -> None:
    html = as_html(fabricated.estimated(fabricated.analysis()))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) > 8 and not [d for d in drawings if re.search(r"#[0-9a-f]{3,6}\b", d)]
    assert "prefers-color-scheme: dark" in html


def test_the_same_analysis_gives_the_same_page() -> None:
    made = fabricated.estimated(fabricated.analysis())
    assert as_html(made) == as_html(made)


def test_many_layers_make_a_page_that_can_be_opened() -> None:
    names = [f"transformer.h.{i // 8}.part{i % 8}.weight" for i in range(200)]
    blocks = {name: fabricated.spectrum(name, (40,), seed) for seed, name in enumerate(names)}
    made = fabricated.estimated(fabricated.analysis(blocks=blocks, full_mass=[dict.fromkeys(names, 1 / 200)] * 3))
    html = as_html(made)
    assert len(html.encode()) < 3_000_000 and len(Page(html).tags) < 15_000


def test_of_a_thousand_layers_the_pairs_are_told_not_drawn() -> None:
    names = [f"layer.{i}.weight" for i in range(1000)]
    blocks = {name: fabricated.spectrum(name, (2,), seed) for seed, name in enumerate(names)}
    values = np.full((1000, 1000), 0.5)
    coupling = CouplingEstimate(tuple(names), values, 0.0 * values, 0.5, 0.0, 0, "exact")
    html = as_html(fabricated.analysis(blocks=blocks, full_mass=[], coupling=coupling))
    assert len(html) < 6_000_000 and "Pairs of 1000 layers are not drawn" in html
