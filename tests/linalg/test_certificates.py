"""What is certified, number by number, against the formulas written out for candidates made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import betaincinv

from layerhess.linalg.bounds import (
    certify,
    missed_factor,
    random_bound,
    total_rounding,
    unit_rounding,
    zero_bound,
    zero_level,
)
from layerhess.linalg.eigen.missed import excludes, largest_share, missed, reach_outside
from layerhess.linalg.eigen.process import Candidates, Floats, Search

EPS = float(np.finfo(np.float64).eps)


def search(n: int, outside: float = 0.3, first: float = 0.4, among: int = 1) -> Search:
    """One vector, two Ritz values."""
    rows = np.array([[first, math.sqrt(1.0 - first**2)]])
    return Search(n, 2.0, -1.0, np.array([-1.0, 2.0]), rows, np.array([[0.1, outside]]), among)


def candidates(residuals: Floats, gaps: Floats, **changes: object) -> Candidates:
    given = {
        "values": np.array([10.0, 5.0, -0.5]), "vectors": torch.eye(3).double(), "residuals": residuals, "gaps": gaps,
        "ends": ("top", "top", "bottom"), "norm": 10.0, "spectrum": None, "searches": {}, "steps": 7,
    }  # fmt: skip
    return Candidates(**(given | changes))  # type: ignore[arg-type]


def test_bounds_are_the_residual_and_the_quadratic_one_each_with_the_rounding() -> None:
    found = certify(candidates(np.array([1e-2, 1e-3, 0.4]), np.array([2.0, np.nan, 0.1])), tol=1e-2, rounding=3e-3)
    np.testing.assert_allclose(found.error_bounds, [1.3e-2, 4e-3, 0.403], rtol=1e-12)
    # r^2 / gap; unknown without a gap; never more than the residual itself
    np.testing.assert_allclose(found.conditional_bounds, [1e-4 / 2 + 3e-3, np.nan, 0.403], rtol=1e-12)
    assert found.converged.tolist() == [True, True, False] and not found.limited_by_dtype
    assert found.rounding == 3e-3 and found.missed_probability == 0.01
    assert (found.missed_above, found.missed_below) == (math.inf, -math.inf)


def test_a_bound_within_tolerance_is_relative_to_its_value_or_to_a_tenth_of_the_norm() -> None:
    tolerated = np.array([0.1, 0.05, 0.01])  # 1e-2 of 10, of 5, and of a tenth of 10
    for factor, converged in ((0.999, True), (1.001, False)):
        found = certify(candidates(factor * tolerated, np.full(3, np.nan)), tol=1e-2, rounding=0.0)
        assert found.converged.tolist() == [converged] * 3


def test_what_is_down_to_its_rounding_has_converged_and_says_why() -> None:
    residuals = np.array([0.019, 0.021, 0.019])
    found = certify(candidates(residuals, np.full(3, np.nan)), tol=1e-6, rounding=0.02)
    assert found.converged.tolist() == [True, False, True] and found.limited_by_dtype
    assert not certify(
        candidates(np.array([0.01, 0.6, 0.6]), np.full(3, np.nan)), tol=1.0, rounding=0.5
    ).limited_by_dtype


@pytest.mark.parametrize("spectrum", [None, np.array([10.0, 5.0, -0.5])])
def test_a_bound_above_five_percent_is_no_number_whatever_rounding_allows(spectrum: np.ndarray | None) -> None:
    for share, converged in ((0.0499, True), (0.0501, False)):
        for i, scale in enumerate((10.0, 5.0, 1.0)):  # the last one: a tenth of the norm
            found = certify(
                candidates(np.zeros(3), np.full(3, np.nan), spectrum=spectrum), tol=1e-6, rounding=share * scale
            )
            assert bool(found.converged[i]) is converged


def test_the_strongest_search_counts_the_probability_is_shared_and_rounding_widens() -> None:
    one, other = search(40), search(40, outside=0.01)
    for searches in ((one,), (one, other), (other, one)):
        given = candidates(np.full(3, 1e-9), np.full(3, np.nan), searches={"top": searches, "bottom": searches[:1]})
        found = certify(given, tol=1e-6, rounding=0.25, p=0.02)
        above = min(missed(s, 0.02 / len(searches))[0] for s in searches) + 0.25
        below = missed(searches[0], 0.02)[1] - 0.25
        assert (found.missed_above, found.missed_below) == (above, below) and found.missed_probability == 0.02
        assert 2.25 < found.missed_above < math.inf and -math.inf < found.missed_below < -1.25


def test_a_known_spectrum_leaves_nothing_to_be_missed() -> None:
    given = candidates(
        np.zeros(3), np.ones(3), spectrum=np.array([10.0, 5.0, 1.0, -0.5]), searches={"top": (search(9),)}
    )
    found = certify(given, tol=1e-6, rounding=0.5)
    assert (found.missed_above, found.missed_below, found.missed_probability) == (10.0, -0.5, 0.0)


def test_small_formulas() -> None:
    assert (
        missed_factor(3.0, 2.0) == 1.5 and math.isnan(missed_factor(3.0, 0.0)) and math.isnan(missed_factor(3.0, -1.0))
    )
    assert zero_level(1e-7, 4.0) == pytest.approx(4e-5) and zero_level(0.01, 4.0) == pytest.approx(0.04)
    assert random_bound(2.0, 50, 0.04) == pytest.approx(2.0 * math.sqrt(2 * 50 / (math.pi * 0.04)))
    assert unit_rounding(1e-7, 1.0) == 2e-7 and unit_rounding(1e-7, 16.0**2 * 9.0) == pytest.approx(3e-7)
    assert total_rounding(5.0, 1e-7, 2.0, 1.0) == 5.0 + 16.0 * EPS * 2.0
    assert total_rounding(0.0, 1e-7, 2.0, 1.0) == pytest.approx(4e-7 + 16 * EPS * 2.0, rel=1e-12, abs=0)
    assert total_rounding(0.0, 0.0, 2.0, 1.0) == pytest.approx(32 * EPS, rel=1e-9, abs=0)


def test_a_block_is_zero_below_the_level_and_where_that_can_be_told() -> None:
    assert zero_bound(1.0, 0.0, 10) == 1.0
    assert zero_bound(1.0, 1.01, 10) is None
    norm = 10.0 / random_bound(1.0, 1000)  # its bound is ten times the level
    assert zero_bound(1.0, 0.999 * norm, 1000) == pytest.approx(9.99) and zero_bound(1.0, 1.001 * norm, 1000) is None


# -- what a random start proves ----------------------------------------------------------------------------------------


def share(searched: Search, x: float) -> float:
    """max |F c|^2 over |c|^2 + |z|^2 = 1, c = (x - theta)^-1 L' z, as a generalised eigenproblem."""
    map_ = (searched.outside / (x - searched.values)).T  # z to c
    form = map_.T @ searched.first.T @ searched.first @ map_
    weight = map_.T @ map_ + np.eye(map_.shape[1])
    return float(np.linalg.eigvals(np.linalg.solve(weight, form)).real.max())


@pytest.mark.parametrize("x", [2.1, 3.0, 100.0, -1.5])
def test_the_largest_share_is_that_of_the_generalised_eigenproblem(x: float) -> None:
    rng = np.random.default_rng(0)
    wide = Search(50, 2.0, -1.0, np.array([-1.0, 0.5, 2.0]), rng.standard_normal((2, 3)), rng.standard_normal((2, 3)))
    narrow = Search(50, 2.0, -1.0, np.array([-1.0, 0.5, 2.0]), rng.standard_normal((1, 3)), rng.standard_normal((1, 3)))
    for searched in (wide, narrow, search(30)):
        assert largest_share(searched, x) == pytest.approx(share(searched, x), rel=1e-10)


def test_shares_at_the_edges() -> None:
    assert largest_share(search(30), 2.0) == 1.0  # x is a Ritz value: nothing is known
    whole = Search(30, 2.0, -1.0, np.array([-1.0, 2.0]), np.eye(2), np.zeros((1, 2)))
    assert largest_share(whole, 5.0) == 0.0 and missed(whole, 0.01) == (2.0, -1.0)


@pytest.mark.parametrize(("width", "among"), [(1, 1), (3, 1), (2, 2), (4, 3)])
def test_a_value_is_excluded_where_its_share_is_improbable(width: int, among: int) -> None:
    rng = np.random.default_rng(width)
    n, p = 60, 0.02
    searched = Search(
        n, 2.0, -1.0, np.linspace(-1.0, 2.0, 6), rng.standard_normal((width, 6)), 5e-3 * np.ones((1, 6)), among
    )
    if among == 1:
        limit = betaincinv(width / 2, (n - width) / 2, p)
    else:
        limit = betaincinv(0.5, (n - width) / 2, p / (among * width)) / width
    for x in 2.0 + np.geomspace(1e-3, 1e3, 200):
        assert excludes(searched, float(x), p) is bool(share(searched, float(x)) <= limit * (1 + 1e-12))
    above, below = missed(searched, p)
    for edge, found in ((2.0, above), (-1.0, below)):  # the nearest excluded value, to one part in fifteen
        assert (found - edge) * edge > 0.0 and share(searched, found) <= limit
        assert share(searched, edge + 0.9 * (found - edge)) > limit


def test_as_many_random_vectors_as_dimensions_exclude_nothing_but_what_is_seen() -> None:
    searched = Search(2, 2.0, -1.0, np.array([-1.0, 2.0]), np.eye(2), np.array([[0.1, 0.3]]))
    assert excludes(searched, 2.5, 1e-9)  # a share is never above 1
    assert not math.isinf(missed(searched, 1e-9)[0])


def test_what_lies_outside_has_the_inner_products_of_the_rest() -> None:
    rng = np.random.default_rng(1)
    last = rng.standard_normal((2, 5))
    rest = torch.from_numpy(rng.standard_normal((2, 7)))
    form = (rest @ rest.T).numpy()
    found = reach_outside(form, last, 1e-12)
    np.testing.assert_allclose(found.T @ found, last.T @ form @ last, atol=1e-12)
    single = reach_outside(form[:1, :1], last[:1], 1e-12)
    np.testing.assert_allclose(single, float(rest[0].norm()) * last[:1], rtol=1e-12)
    assert not reach_outside(form, last, float(rest.norm()) * 1.001).any()
    assert reach_outside(form, last, float(rest.norm()) * 0.999).any()
