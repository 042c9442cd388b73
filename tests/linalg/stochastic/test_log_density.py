"""Densities on a logarithmic axis: both signs and what lies under the floor, together of mass 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import trapezoid

import layerhess as lh
from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.stochastic.density import Density, exact_density
from layerhess.linalg.stochastic.divergence import divergences
from references.spectra import rotated

Floats = NDArray[np.float64]
SPECTRA: dict[str, Floats] = {
    "six decades": 10.0 ** np.linspace(-5.0, 1.0, 300),
    "both signs": np.concatenate([10.0 ** np.linspace(-4.0, 1.0, 200), -(10.0 ** np.linspace(-3.0, -1.0, 100))]),
    "with zeros": np.concatenate([10.0 ** np.linspace(-3.0, 1.0, 60), np.zeros(240)]),
    "negative": -(10.0 ** np.linspace(-2.0, 0.0, 300)),
    "one value": np.full(300, 3.0),
    "nothing": np.zeros(300),
}


def masses(found: DensityEstimate) -> tuple[float, float, float]:
    across = np.log10(found.grid)
    positive, negative = (float(trapezoid(curve, across)) for curve in (found.value, found.value_negative))
    return positive, negative, found.below_floor


@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_mass_is_one_and_each_part_is_the_share_of_its_eigenvalues(name: str) -> None:
    values = SPECTRA[name]
    exact = exact_density(values, Density(axis="log"))
    estimated = lh.density(rotated(values, 1), axis="log", probes=6)
    for found in (exact, estimated):
        assert found.axis == "log" and (np.diff(found.grid) > 0.0).all() and found.grid[0] > 0.0
        assert sum(masses(found)) == pytest.approx(1.0, abs=1e-6)
        for value, low, high in (
            (found.value, found.low, found.high),
            (found.value_negative, found.low_negative, found.high_negative),
        ):
            assert len(value) == len(found.grid) and (low <= value).all() and (value <= high).all()
    size = np.abs(values).max()
    assert exact.floor == pytest.approx(1e-8 * size) or not size
    shares = [np.mean(values >= exact.floor), np.mean(-values >= exact.floor), np.mean(np.abs(values) < exact.floor)]
    np.testing.assert_allclose(masses(exact), shares, atol=1e-6)
    if name != "with zeros":  # whose zeros are nodes of the size of rounding
        np.testing.assert_allclose(masses(estimated), shares, atol=0.15)


def test_the_curve_is_the_eigenvalues_smoothed_in_decades() -> None:
    values, width = SPECTRA["both signs"], 0.25
    found = exact_density(values, Density(axis="log", bandwidth=width))
    assert found.bandwidth == width
    for curve, side in ((found.value, values[values > 0.0]), (found.value_negative, -values[values < 0.0])):
        off = (np.log10(found.grid)[:, None] - np.log10(side)) / width
        expected = np.exp(-0.5 * off**2).sum(axis=1) / (len(values) * width * np.sqrt(2.0 * np.pi))
        np.testing.assert_allclose(curve, expected, atol=1e-12)


def test_a_floor_of_ones_own() -> None:
    values = SPECTRA["six decades"]
    found = exact_density(values, Density(axis="log", floor=1e-2))
    assert found.floor == 1e-2 and found.below_floor == pytest.approx(np.mean(values < 1e-2))
    assert found.share(-1e-2, 1e-2).value == pytest.approx(np.mean(values <= 1e-2))


def test_the_axis_changes_nothing_but_the_curve() -> None:
    """Nodes, moments, functions, the resolution that other numbers rest on, and distances between densities."""
    matrix = rotated(SPECTRA["both signs"], 2)
    plain, log = lh.density(matrix, seed=1), lh.density(matrix, seed=1, axis="log")
    for name in ("nodes", "weights", "known", "overlaps"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(log, name))
    assert (plain.mean, plain.second_error) == (log.mean, log.second_error)
    assert plain.resolution == plain.bandwidth == log.resolution != log.bandwidth
    assert plain.log_det(1.0) == log.log_det(1.0)
    other = lh.density(rotated(SPECTRA["six decades"], 2))
    np.testing.assert_array_equal(divergences([plain, other])[0], divergences([log, other])[0])
    assert plain.below_floor == 0.0 and not len(plain.value_negative)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"axis": "logarithmic"}, "there is no axis 'logarithmic'.*use 'linear' or 'log'"),
        ({"axis": ["log"]}, "there is no axis"),
        ({"axis": None}, "there is no axis"),
        ({"axis": "log", "floor": 0.0}, "floor is 0.0"),
        ({"axis": "log", "floor": "small"}, "floor is 'small'"),
        ({"floor": 1e-3}, "a linear axis has no floor"),
    ],
)
def test_an_axis_that_there_is_not_is_refused(options: dict[str, Any], sentence: str) -> None:
    for make in (Density, lambda **given: lh.density(np.eye(3), **given)):
        with pytest.raises(lh.InputError, match=sentence):
            make(**options)
