"""What is not excluded beyond a bound is shown; and nothing that has not converged makes a headline."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import fabricated
from layerhess.analysis.result import Analysis
from layerhess.results import json_format
from layerhess.results.record import SpectrumRecord
from layerhess.results.spectrum import Spectrum
from layerhess.show import summary
from layerhess.show.frame import to_frame
from layerhess.show.page.answers import sharpest
from layerhess.show.report import as_html
from layerhess.show.table import as_text


def spectrum(name: str, top: float, bottom: float, bound: float, **changes: object) -> Spectrum:
    given: dict[str, object] = {
        "name": name, "operator": "hessian", "parameters": (name,), "numel": 50, "status": "converged",
        "eigenvalues": np.array([top, bottom]), "error_bounds": np.full(2, bound), "end": ("top", "bottom"),
        "conditional_bounds": np.full(2, np.nan), "converged": np.ones(2, dtype=bool), "missed_factor": 1.02,
        "missed_above": 1.02 * top, "missed_below": 1.03 * bottom, "missed_probability": 0.01,
    }  # fmt: skip
    return Spectrum(**(given | changes))  # type: ignore[arg-type]


def analysis(full: Spectrum | None, *blocks: Spectrum) -> Analysis:
    made = fabricated.analysis()
    return dataclasses.replace(made, blocks={s.name: s for s in blocks}, full=full, full_mass=[])


OPEN = {"converged": np.zeros(2, dtype=bool), "status": "not converged: bound so far 1"}


def test_an_interval_reaches_to_what_is_not_excluded() -> None:
    found = spectrum("w", 1.1236, -2.0, 0.0008, missed_above=1.14553, missed_below=-2.3)
    np.testing.assert_allclose(found.interval, [[1.1228, 1.14553], [-2.3, -1.9992]])
    assert (found.highest, found.deepest) == (1.14553, -2.3)
    inside = dataclasses.replace(found, missed_above=0.9, missed_below=-1.0)
    np.testing.assert_allclose(inside.interval, [[1.1228, 1.1244], [-2.0008, -1.9992]])
    whole = dataclasses.replace(found, complete=True, spectrum=np.array([1.1236, -2.0]))
    np.testing.assert_allclose(whole.interval, inside.interval)
    several = spectrum(
        "w", 3.0, -2.0, 0.1, eigenvalues=np.array([3.0, 1.0, -2.0]), error_bounds=np.full(3, 0.1),
        conditional_bounds=np.full(3, np.nan), converged=np.ones(3, dtype=bool), end=("top", "top", "bottom"),
        missed_above=1.5,
    )  # fmt: skip
    np.testing.assert_allclose(several.interval, [[2.9, 3.1], [0.9, 1.5], [-2.1, -1.9]])
    empty = spectrum("w", 1.0, -1.0, 0.1, eigenvalues=np.empty(0), error_bounds=np.empty(0), end=(), converged=[])
    assert empty.interval.shape == (0, 2) and math.isnan(empty.highest) and math.isnan(empty.deepest)


def test_table_frame_report_and_file_show_the_reach() -> None:
    made = analysis(spectrum("(full)", 1.1236, -2.0, 0.0008, missed_above=1.14553), spectrum("w", 1.0, -1.0, 0.5))
    text = as_text(made)
    assert "1.12360 ± 0.00080, up to 1.146" in text and "down to -2.06" in text
    assert text.count("up to 1.") == 2, "in the table and behind 2/lambda_max; what the bound covers is not repeated"
    assert "up to 1.146" in as_html(made)
    frame = to_frame(made)
    np.testing.assert_allclose(frame[["lower", "upper"]].to_numpy()[2:], made.full.interval)
    blocks = to_frame(made, "blocks").iloc[-1]
    assert (blocks["lambda_max_upper"], blocks["lambda_min_lower"]) == (1.14553, -2.06)
    document, _ = json_format.encode(made)
    assert document["full"]["interval"] == made.full.interval.tolist()


def test_an_open_largest_eigenvalue_gives_an_interval_and_no_step() -> None:
    """The Ritz value 0.003 of a stopped search once gave a largest stable step of 634.3."""
    full = spectrum("(full)", 0.003, -0.01, 0.59, missed_above=40.0, **OPEN)
    step = summary.stable_step(analysis(full))
    assert step.value == "≥ 0.05" and "has not converged" in step.sentence and "at most 40" in step.sentence
    assert summary.stable_step(analysis(dataclasses.replace(full, missed_above=math.inf))).value == "unknown"
    block = spectrum("w", 8.0, -0.1, 0.01)
    assert summary.stable_step(analysis(full, block)).value == "0.05 to 0.2503"
    assert summary.stable_step(analysis(dataclasses.replace(full, missed_above=math.inf), block)).value == "≤ 0.2503"
    assert summary.stable_step(analysis(None, dataclasses.replace(block, **OPEN))).value == "≤ 0.2503"
    done = dataclasses.replace(full, converged=np.array([True, False]), eigenvalues=np.array([10.0, -0.01]))
    assert summary.stable_step(analysis(done)).value == "0.2"


def test_an_open_smallest_eigenvalue_is_not_none_found() -> None:
    full = spectrum("(full)", 3.0, -0.01, 0.59, missed_below=-9.0, **OPEN)
    assert summary.most_negative(analysis(full)).value == "unknown"
    block = spectrum("w", 2.0, -1.9, 0.1)
    fact = summary.most_negative(analysis(full, block))
    assert fact.value == "≤ -1.8" and "at least -9" in fact.sentence and "not converged: full model" in fact.sentence
    converged = dataclasses.replace(
        full, converged=np.ones(2, dtype=bool), status="converged", error_bounds=np.zeros(2)
    )
    assert summary.most_negative(analysis(converged, block)).value == "≤ -1.8", "no block lies below the whole"
    assert summary.most_negative(analysis(None, block, dataclasses.replace(full, name="v"))).value == "≤ -1.8"
    assert summary.most_negative(analysis(None, block)).value == "-1.9"
    assert summary.most_negative(analysis(spectrum("(full)", 3.0, 0.1, 0.01))).value == "none found"


def test_open_blocks_are_not_compared() -> None:
    open_one = spectrum("v", 90.0, -1.0, 80.0, **OPEN)
    made = analysis(spectrum("(full)", 12.0, -3.0, 0.01), spectrum("w", 10.0, -2.0, 0.01), open_one)
    assert "of v" not in summary.interlacing(made) and "of w" in summary.interlacing(made)
    page = as_html(analysis(made.full, *made.blocks.values(), spectrum("u", 1.0, -2.0, 0.01)))
    assert "1 layer not converged or refused: they may be sharper" in page
    found = sharpest(analysis(made.full, *made.blocks.values(), spectrum("u", 1.0, -2.0, 0.01)))
    assert found is not None and found.names == ["w"]


@pytest.mark.parametrize(("end", "index"), [("top", 0), ("bottom", -1)])
def test_each_end_is_settled_on_its_own(end: str, index: int) -> None:
    half = np.array([False, False])
    half[index] = True
    found: SpectrumRecord = spectrum("w", 1.0, -1.0, 0.1, converged=half, status="not converged: open")
    assert found.settled(end) and not found.settled("bottom" if end == "top" else "top") and not found.solved


def test_unchecked_copies_are_mentioned_where_exclusion_is() -> None:
    made = analysis(spectrum("(full)", 1.0, -2.0, 0.1))
    assert "copies" not in summary.missed_overall(made)
    unchecked = dataclasses.replace(made, settings=made.settings | {"copies": "unchecked"})
    assert "Further copies of the eigenvalues found were not looked for." in summary.missed_overall(unchecked)
