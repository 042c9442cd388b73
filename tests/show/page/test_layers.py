"""The rows of the report's table: what they say of each kind of spectrum, and how they are grouped."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

import fabricated
from layerhess.show.numbers import number
from layerhess.show.page.layers import table


def row(made: object, name: str):
    (found,) = [row for row in table(made, []).rows if row.block == name]
    return found


def test_a_number_without_an_error_is_right_to_its_last_digit() -> None:
    for seed in range(200):
        value = 10.0 ** np.random.default_rng(seed).uniform(-9, 9)
        bound = value * 10.0 ** np.random.default_rng(seed + 1000).uniform(-12, 0)
        spectrum = fabricated.spectrum(
            "w", eigenvalues=np.array([value, 0.5 * value, -value]), error_bounds=np.full(3, bound)
        )
        text = row(fabricated.one(spectrum), "w").top
        if "±" not in text:
            shown = float(text)
            unit = 10.0 ** (math.floor(math.log10(shown)) - 3)
            assert abs(shown - value) <= 0.5001 * unit and bound <= 0.5001 * unit * 10
        else:
            numbers = re.fullmatch(r"\(?([\d.]+) ± ([\d.e+-]+)\)?(e[+-]\d+)?", text)
            assert numbers is not None, text
            factor = float(f"1{numbers[3]}") if numbers[3] else 1.0
            low, high = (float(numbers[1]) + sign * float(numbers[2]) for sign in (-1, 1))
            assert low * factor <= (value - bound) * (1 + 1e-9) and (value + bound) * (1 - 1e-9) <= high * factor


def test_a_sampling_error_stands_beside_the_value_where_it_is_larger_than_the_bound() -> None:
    spectrum = fabricated.spectrum(
        "w", eigenvalues=np.array([2.0, 1.0, -1.0]), sampling_errors=np.array([0.1, 0.1, 0.1])
    )
    made = table(fabricated.one(spectrum), [])
    assert made.sampled and made.rows[0].top == "2.00 ± 0.10"


def test_what_has_not_converged_says_so_and_has_no_sensitivity() -> None:
    found = row(fabricated.analysis(bad=True), "stem.weight")
    assert found.tags == ("NOT CONVERGED",) and not found.ok and found.sensitivity is None
    assert "±" in found.top and 'class="open"' in found.marks and 'class="known"' in found.marks
    refused = row(fabricated.analysis(bad=True), "head.weight")
    assert refused.top == "REFUSED" and not refused.marks


def test_only_eigenvalues_that_are_surely_negative_are_shown_as_such() -> None:
    near = fabricated.spectrum("w", eigenvalues=np.array([2.0, 1.0, -1e-9]), error_bounds=np.full(3, 1e-8))
    made = table(fabricated.one(near), [])
    assert not made.negative and not made.rows[0].bottom and "below" not in made.rows[0].marks
    sure = dataclasses.replace(near, error_bounds=np.full(3, 1e-10))
    made = table(fabricated.one(sure), [])
    assert made.negative and made.rows[0].bottom and 'class="pt below"' in made.rows[0].marks


def test_marks_lie_at_their_logarithms_on_one_axis() -> None:
    made = table(fabricated.analysis(), [])
    tops = {s.name: float(s.eigenvalues[0]) for s in fabricated.analysis().spectra() if s.status != "zero"}
    places = {r.block: float(re.search(r'class="pt" cx="([\d.]+)%"', r.marks)[1]) for r in made.rows if r.block in tops}
    logs = np.log(list(tops.values()))
    shown = np.array([places[name] for name in tops])
    slope = (shown[0] - shown[1]) / (logs[0] - logs[1])
    assert slope > 0 and np.allclose(shown - shown[0], slope * (logs - logs[0]), atol=0.02)


@pytest.mark.parametrize(
    ("names", "began"),
    [
        (["stem.weight", "block1.conv1.weight", "block1.conv2.weight", "head.weight"], [False, True, False, True]),
        (["h.0.a.weight", "h.0.b.weight", "h.1.a.weight", "h.1.b.weight"], [False, False, True, False]),
        (["0.weight", "0.bias", "2.weight"], [False, False, False]),
    ],
)  # fmt: skip
def test_rows_are_grouped_by_the_module_path(names: list[str], began: list[bool]) -> None:
    blocks = {name: fabricated.spectrum(name) for name in names}
    made = table(fabricated.analysis(blocks=blocks, full=None, full_mass=[]), [])
    assert [r.first for r in made.rows] == began


def test_shares_of_an_eigenvector_that_has_not_converged_are_not_shown() -> None:
    made = fabricated.analysis()
    assert table(made, []).shares
    assert made.full is not None
    stopped = table(dataclasses.replace(made, full=fabricated.unconverged(made.full)), [])
    assert not stopped.shares and all(row.share is None for row in stopped.rows)
    told = [text for row in stopped.rows for term, text in row.details if term.startswith("share of")]
    assert told and not any(f"eigenvalue {number(float(made.full.eigenvalues[0]))}" in text for text in told)


def test_a_largest_eigenvalue_that_is_negative_has_no_dot_among_the_positive_ones() -> None:
    spectrum = fabricated.spectrum("w", eigenvalues=np.array([-0.4, -0.5, -0.6]), error_bounds=np.full(3, 1e-9))
    made = table(fabricated.one(spectrum), [])
    assert "<circle" not in made.rows[0].marks and "below" in made.rows[0].marks
    assert made.rows[0].top == "-0.4" and made.whole_at is None
