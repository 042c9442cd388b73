"""Comparisons as people see them: the table, the notebook's cell, the plot and the page."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser

import pytest
from matplotlib.colors import to_hex

import fabricated
import layerhess as lh
from compared_by_hand import found
from layerhess.show.comparison import figures as comparison_figures
from layerhess.show.comparison.page import as_html
from layerhess.show.comparison.table import as_text, cells
from layerhess.show.style import MUTED, TOP

NASTY = "</td></script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&"


class Page(HTMLParser):
    """The page as a browser would take it: tags with their attributes, and the cells of each row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append((dict(attributes), []))
        if tag in {"td", "th"}:
            self.rows[-1][1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1] += data


def bad() -> lh.Comparison:
    return lh.compare([fabricated.analysis(), fabricated.analysis(bad=True)])


def test_a_row_has_the_numbers_of_its_block() -> None:
    block = found().blocks["stem.weight"]
    row = cells(block)
    assert row["log ratio"] == f"{block.log_ratio:.3g}" and row["s.e."] == f"{block.standard_error:.2g}"
    assert row["verdict"] == "different" and cells(bad().blocks["stem.weight"])["verdict"] == "NOT COMPARED"
    small = dataclasses.replace(block, standard_error=1.234e-5)
    assert cells(small)["s.e."] == "1.3e-05", "errors are rounded up"


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_fits_the_width_and_keeps_log_ratio_and_verdict(width: int) -> None:
    text = as_text(found().pairs, width)
    assert max(map(len, text.splitlines())) <= width
    (head,) = (line for line in text.splitlines() if line.startswith("block "))
    assert "log ratio" in head and "s.e." in head and "verdict" in head
    assert any(line.startswith("full model") for line in text.splitlines())
    assert ("scale-free" in head, "second" in head) == {60: (False, False), 80: (True, False), 140: (True, True)}[width]
    assert f"1 of 7 spectra differ; most: stem.weight, {100 * (math.exp(1.0) - 1):.2g} % more." in text


def test_a_block_that_differs_against_its_weights_alone_is_mentioned() -> None:
    comparison = found()
    block = dataclasses.replace(comparison.blocks["stem_bn.weight"], scale_free_significant=True)
    text = as_text([dataclasses.replace(comparison, blocks={**comparison.blocks, "stem_bn.weight": block})], 100)
    assert "alone (scale-free) different: stem_bn.weight" in text.replace("\n", " ")
    assert cells(block)["scale-free"].endswith(" *") and cells(comparison.blocks["stem.weight"])["scale-free"].endswith(
        " *"
    )
    assert "scale-free) different" not in as_text(comparison.pairs)


def test_what_has_not_converged_cannot_be_overlooked() -> None:
    text = as_text(bad().pairs)
    assert "! stem.weight: not compared: it has not converged in the second" in text.replace("\n", " ")
    assert "! head.weight: not compared: it was refused in the second" in text.replace("\n", " ")
    assert "stopped early" in text and "No block could be tested" in text


def test_a_cell_of_a_notebook_shows_every_block_and_escapes_names() -> None:
    html = found(NASTY)._repr_html_()
    assert "<script>" not in html and html.count("<tr") == 1 + len(found().blocks)
    assert "font-weight:600" in html


def test_the_plot_marks_what_differs_and_draws_its_interval() -> None:
    comparison = found()
    (axes,) = comparison.plot().axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [*list(comparison.blocks)[:-1], "full model"]
    by_row = {int(c.lines[0].get_ydata()[0]): c for c in axes.containers}  # type: ignore[union-attr]
    block = comparison.blocks["stem.weight"]
    marks = by_row[labels.index("stem.weight")]
    assert marks.lines[0].get_xdata()[0] == block.log_ratio
    assert to_hex(marks.lines[0].get_markerfacecolor()) == TOP
    assert to_hex(by_row[labels.index("stem_bn.weight")].lines[0].get_color()) == MUTED
    ends = marks.lines[2][0].get_segments()[0][:, 0]
    assert ends[1] - ends[0] == pytest.approx(2 * comparison_figures.half_width(block))
    assert comparison_figures.half_width(block) > 2.04 * block.standard_error  # 95 %, 30 degrees of freedom


def test_further_analyses_have_panels_with_one_scale() -> None:
    one = fabricated.analysis()
    figure = lh.compare([one, one, one]).plot()
    assert len(figure.axes) == 2 and figure.axes[0].get_xlim() == figure.axes[1].get_xlim()


def test_the_page_is_self_contained_and_has_every_block() -> None:
    comparison = bad()
    html = as_html(comparison.pairs)
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form", "script"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href"}:
                assert value is not None and value.startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    rows = {attributes["data-block"]: words for attributes, words in page.rows if "data-block" in attributes}
    assert list(rows) == list(comparison.blocks)
    assert "it was refused in the second" in rows["head.weight"][1]
    assert "prefers-color-scheme: dark" in html and "Content-Security-Policy" in html
    assert all(attributes.get("lang") == "en" for tag, attributes in page.tags if tag == "html")


def test_names_on_the_page_may_contain_anything() -> None:
    page = Page(as_html(found(NASTY).pairs))
    assert "script" not in {tag for tag, _ in page.tags} and "img" not in {tag for tag, _ in page.tags}
    assert any(attributes.get("data-block") == NASTY for _, attributes in page.tags)


def test_a_name_cannot_turn_around_the_numbers_that_follow_it() -> None:
    name = "a\u202eb"
    html = as_html(found(name).pairs)
    assert html.count("\u202e") == html.count(f'data-block="{name}"') > 0 and "a\\u202eb" in html
