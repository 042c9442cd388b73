"""Functions of a spectrum from a density: within their errors, exact where all is known, refused where they must be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import layerhess as lh
from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.stochastic.density import Density, exact_density
from references.spectra import rotated

Floats = NDArray[np.float64]
SPECTRA: dict[str, Floats] = {
    "decaying": 10.0 ** np.linspace(1.0, -6.0, 240),
    "bulk and outliers": np.concatenate([[30.0, 11.0, 10.9, 4.0], np.linspace(-0.2, 1.0, 236)]),
    "double values": np.repeat(np.concatenate([[20.0, 7.0, 7.0], np.linspace(0.0, 1.0, 117)]), 2),
    "low rank": np.concatenate([np.geomspace(5.0, 0.05, 18), np.zeros(222)]),
    "one of many": np.concatenate([[3.0], np.zeros(239)]),
    "flat": np.linspace(1.0, 2.0, 240),
}
Case = tuple[Callable[[DensityEstimate], Any], Callable[[Floats], float]]


def cases(values: Floats) -> dict[str, Case]:
    top, low = float(values.max()), max(0.0, -1.05 * float(values.min()))
    made: dict[str, Case] = {"average": (lambda d: d.average(np.exp), lambda x: float(np.exp(x).mean()))}
    for scale in (1e-3, 0.1, 1.0):
        alpha, end = scale * top + low, scale * top
        made |= {
            f"dimension {scale}": (
                lambda d, a=alpha: d.effective_dimension(a), lambda x, a=alpha: float((x / (x + a)).sum())
            ),
            f"log det {scale}": (lambda d, a=alpha: d.log_det(a), lambda x, a=alpha: float(np.log(x + a).sum())),
            f"count {scale}": (lambda d, t=end: d.count(above=t), lambda x, t=end: float((x >= t - 1e-12 * top).sum())),
            f"share {scale}": (
                lambda d, t=end: d.share(above=t / 3, below=t),
                lambda x, t=end: float(((x >= t / 3) & (x <= t + 1e-12 * top)).mean()),
            ),
        }  # fmt: skip
    return made


@pytest.mark.parametrize("name", list(SPECTRA))
def test_they_are_within_their_errors_and_these_are_their_size(name: str) -> None:
    values, seeds = SPECTRA[name], 12
    matrix = rotated(values, 1)
    found = [lh.density(matrix, probes=6, steps=16, seed=seed) for seed in range(seeds)]
    within = []
    for case, (make, truth) in cases(values).items():
        estimates, expected = [make(d) for d in found], truth(values)
        off = np.array([e.value - expected for e in estimates])
        errors = np.array([e.standard_error for e in estimates])
        small = 1e-9 * max(1.0, abs(expected))
        within += list(np.abs(off) <= 4.0 * errors + small)
        assert np.all(np.abs(off) <= 5.0 * errors + small), (case, off / errors)
        if not case.endswith(" 1.0") or case.startswith(
            ("dim", "log")
        ):  # an end on an eigenvalue is a matter of rounding
            assert math.sqrt(np.mean(off**2)) <= 1.5 * math.sqrt(np.mean(errors**2)) + small, case
    assert np.mean(within) >= 0.99


def test_known_eigenvectors_leave_less_to_chance() -> None:
    """Sums over a few outliers: without them, ten vectors have a standard error of a fifth."""
    values = SPECTRA["low rank"]
    found = lh.density(rotated(values, 2))
    plain = replace(found, known=np.empty(0), known_bounds=np.empty(0), overlaps=np.empty((0, 0)))
    assert 10 <= len(found.known) <= 18
    np.testing.assert_allclose(found.known, np.sort(values)[-len(found.known) :], rtol=1e-4)
    assert found.overlaps.shape == (10, len(found.known))
    small, large = found.effective_dimension(5.0), plain.effective_dimension(5.0)
    assert small.standard_error < 0.1 * large.standard_error
    assert small.value == pytest.approx(float((values / (values + 5.0)).sum()), abs=4.0 * small.standard_error)


def test_copies_that_one_vector_cannot_see_are_left_to_the_others() -> None:
    values = np.concatenate([np.full(40, 2.0), np.zeros(200)])
    off = []
    for seed in range(40):
        found = lh.density(rotated(values, 3), probes=6, seed=seed)
        assert len(found.known) == 1  # one vector sees one copy
        off.append((found.count(above=1.0).value - 40.0) / found.count(above=1.0).standard_error)
    assert abs(np.mean(off)) < 0.5 and max(map(abs, off)) < 4.0


def test_of_a_known_spectrum_they_are_exact() -> None:
    values = SPECTRA["bulk and outliers"]
    found = exact_density(values, Density())
    for make, truth in cases(values).values():
        estimate = make(found)
        assert estimate.value == pytest.approx(truth(values), rel=1e-12) and estimate.standard_error == 0.0
        assert estimate.status == "exact: all 240 eigenvalues are known"
    rounded = replace(found, rounding=1e-6)
    assert 0.0 < rounded.log_det(1.0).standard_error < 1e-3
    assert rounded.count(above=11.0 + 1e-7).value == 2.0  # an end counts as met within the rounding
    assert rounded.count(above=11.0 + 1e-7).standard_error > 0.0 == rounded.count(above=10.95).standard_error


def test_ends_are_included() -> None:
    values = np.repeat([1.0, 2.0, 3.0], 40)
    exact = exact_density(values, Density())
    assert exact.count(above=2.0).value == exact.count(below=2.0).value == 80.0
    assert exact.count(above=2.0, below=2.0).value == 40.0 and exact.share(2.0, 2.0).value == pytest.approx(1 / 3)
    for ends, truth in (((2.0, math.inf), 80.0), ((-math.inf, 2.0), 80.0), ((2.0, 2.0), 40.0), ((1.5, 1.9), 0.0)):
        found = lh.density(rotated(values, 4)).count(*ends)
        assert abs(found.value - truth) <= 4.0 * found.standard_error + 1e-9
        assert found.standard_error < 25.0  # all of 40 copies lie at an end


def test_all_of_the_spectrum_is_all_of_it() -> None:
    found = lh.density(rotated(SPECTRA["flat"], 5), probes=3, steps=8)
    assert found.count().value == 240.0 and found.count().standard_error == 0.0
    assert found.share().value == 1.0 and found.count(above=50.0).value == 0.0
    assert found.count(above=50.0).standard_error < 1e-6


def test_a_single_vector_has_no_error() -> None:
    found = lh.density(rotated(SPECTRA["flat"], 6), probes=1)
    for estimate in (found.average(np.log), found.log_det(0.1), found.effective_dimension(0.1), found.count(above=1.5)):
        assert math.isfinite(estimate.value) and math.isnan(estimate.standard_error)
        assert "no error is known" in estimate.status and "unknown" in repr(estimate)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made() -> DensityEstimate:
    return lh.density(rotated(SPECTRA["bulk and outliers"], 7))


@pytest.mark.parametrize("method", ["effective_dimension", "log_det"])
def test_an_alpha_that_is_not_beyond_the_bottom_is_refused(made: DensityEstimate, method: str) -> None:
    lowest = float(made.nodes[made.weights > 0.0].min())
    for alpha in (-lowest, 0.5 * -lowest, 0.0, -1.0, -lowest * (1.0 + 1e-16)):
        with pytest.raises(lh.InputError, match=r"-alpha is not below the spectrum.*use an alpha above"):
            getattr(made, method)(alpha)
    assert getattr(made, method)(-1.01 * lowest).standard_error > 0.0
    deeper = replace(made, lowest=-5.0)  # as a solver knows it
    with pytest.raises(lh.InputError, match="the smallest eigenvalue -5.0"):
        getattr(deeper, method)(5.0)
    positive = lh.density(rotated(SPECTRA["flat"], 8))
    assert positive.log_det(0.0).value == pytest.approx(np.log(SPECTRA["flat"]).sum(), abs=1.0)
    for alpha in (math.nan, math.inf, "1", True, None, 1j, 10**400):
        with pytest.raises(lh.InputError, match="alpha is"):
            getattr(made, method)(alpha)


@pytest.mark.parametrize(
    ("f", "sentence"),
    [
        (np.log, r"f is nan at the node -0\.\d+ of random vector 1"),
        (lambda x: 1.0 / np.where(x > 20.0, 0.0, 1.0), r"f is inf at the node \d+\.\d+"),
        (lambda x: 1.0, r"f returns float64 of shape \(\) for \d+ eigenvalues"),
        (lambda x: x[:-1], "f returns float64 of shape"),
        (lambda x: x * 1j, "f returns complex128"),
        (math.exp, "f fails on an array of eigenvalues .TypeError"),
        (lambda x: x > 0.0, None),
    ],
)
def test_what_is_no_function_of_the_eigenvalues_is_refused(made: DensityEstimate, f: Any, sentence: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if sentence is None:
            assert 0.0 < made.average(f).value < 1.0
            return
        with pytest.raises(lh.InputError, match=sentence):
            made.average(f)


def test_swapped_ends_and_what_is_no_number_are_refused(made: DensityEstimate) -> None:
    for call in (made.count, made.share):
        with pytest.raises(lh.InputError, match="the ends are swapped: above is 2.0 and below is 1.0"):
            call(above=2.0, below=1.0)
        for wrong in (math.nan, "1", False, None, 10**400):
            with pytest.raises(lh.InputError, match="above is"):
                call(above=wrong)
        assert "infinite or more" in repr(call(above=math.inf)) and "infinite or less" in repr(call(below=-math.inf))


def test_one_that_was_stopped_early_or_has_no_dimension_is_refused(made: DensityEstimate) -> None:
    with pytest.raises(lh.InputError, match="stopped early"):
        replace(made, finished=False).average(np.exp)
    with pytest.raises(lh.InputError, match="dimension"):
        replace(made, numel=0).count(above=1.0)
