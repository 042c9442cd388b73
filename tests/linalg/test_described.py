"""A record in words: few lines, no wider than a terminal, nothing in them that a terminal or a page would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerhess.linalg import described
from layerhess.linalg.described import Described, Description, as_html, as_text, called, cut, plain


class Record(Described):
    def __init__(self, told: Description) -> None:
        self.told = told

    def _describe(self) -> Description:
        return self.told


class Broken(Described):
    def _describe(self) -> Description:
        raise ZeroDivisionError("by hand\x1b[2J")


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line)


@given(st.text(), st.lists(st.text(), max_size=9), st.text(max_size=300))
def test_whatever_is_told_fits_and_is_harmless(title: str, facts: list[str], alarm: str) -> None:
    told = Description(title, tuple(facts), alarm, ("name", "value"), tuple((fact, title) for fact in facts))
    lines = repr(Record(told)).split("\n")
    assert len(lines) <= 6 and all(columns(line) <= 100 for line in lines)
    assert all(line.isprintable() for line in lines)
    html = Record(told)._repr_html_()
    assert "\x1b" not in html and html.count("<script") == 0


def test_what_did_not_converge_is_said_however_long_the_title_is() -> None:
    for size in (10, 90, 99, 150, 400):
        text = as_text(Description("wide " * (size // 5), ("a fact",), "3 of 5 spectra NOT CONVERGED"))
        assert "3 of 5 spectra NOT CONVERGED" in " ".join(text.split()), size


def test_a_long_sentence_goes_on_below_and_what_is_left_out_is_marked() -> None:
    lines = as_text(Description("title", ("word " * 40, "word " * 200))).splitlines()
    assert len(lines) == 6 and lines[-1].endswith("…") and lines[1].startswith("  word") and lines[2].startswith("    ")


def test_a_table_has_a_row_for_each_up_to_twenty_and_says_how_many_are_left_out() -> None:
    html = as_html(Description("t", columns=("name", "value"), rows=tuple((f"n{i}", "<b>") for i in range(26)), more=5))
    assert html.count("<tr>") == 1 + described.MOST_ROWS + 1 and "… 11 more" in html
    assert "<td" in html and html.count("&lt;b&gt;") == 20 and "<table" not in as_html(Description("t"))


def test_a_record_that_cannot_be_shown_says_why_and_does_not_raise() -> None:
    assert repr(Broken()) == "Broken: CANNOT BE SHOWN\n  ZeroDivisionError: by hand\\x1b[2J"
    assert "ZeroDivisionError" in Broken()._repr_html_()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\u202egnp", "\\u202egnp"), ("\ud800", "\\ud800"), ("λ ± 1", "λ ± 1"), ("層", "層")],
)
def test_characters_that_a_terminal_obeys_are_written_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_names_lose_their_middle_and_wide_characters_count_twice() -> None:
    assert len(called("x" * 500)) == described.NAME and called("short") == "short"
    assert cut("層" * 60, 100) == "層" * 49 + "…" and cut("a" * 100, 100) == "a" * 100
