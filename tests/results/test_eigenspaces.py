"""Which eigenspaces are determined, and the angles between two of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import fabricated
from layerhess.results.eigenspaces import compared_spaces
from layerhess.results.spectrum import Spectrum


def spectrum(vectors: np.ndarray, values: list[float], bound: float = 1e-6, **changes: Any) -> Spectrum:
    """Top eigenvalues with these vectors of a parameter and a bias, of a spectrum that goes on at 0.1."""
    k, n = vectors.shape
    rows = torch.from_numpy(vectors)
    return dataclasses.replace(
        fabricated.spectrum(),
        numel=n,
        eigenvalues=np.array(values),
        error_bounds=np.full(k, bound),
        conditional_bounds=np.array([bound**2 / (values[-1] - 0.1)] * k),
        converged=np.ones(k, dtype=bool),
        end=("top",) * k,
        rounding=0.0,
        missed_above=1.04 * values[0],
        eigenvectors=[{"w": row[: n - 1].reshape(-1, 1), "b": row[n - 1 :]} for row in rows],
        sampling_errors=np.empty(0),
        **changes,
    )


def closed(made: Spectrum) -> Spectrum:
    """The same, with nothing left open beyond its last eigenvalue."""
    return dataclasses.replace(made, missed_above=0.2)


def orthonormal(k: int, n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0].T.copy()


def test_angles_are_those_of_scipy_over_all_parameters_together() -> None:
    a, b = orthonormal(2, 8, 0), orthonormal(2, 8, 1)
    found = compared_spaces(closed(spectrum(a, [3.0, 2.0])), closed(spectrum(b, [5.0, 1.0])))
    truth = np.sort(subspace_angles(a.T, b.T))
    assert found.angles == pytest.approx(truth, abs=1e-12)
    assert found.overlap == pytest.approx(np.mean(np.cos(truth) ** 2))
    assert found.status == "the spaces of the 2 first eigenvectors" and 0.0 < found.bound < 1e-5


def test_the_order_of_vectors_within_a_space_does_not_matter() -> None:
    a = orthonormal(2, 8, 0)
    turned = np.array([[0.6, 0.8], [-0.8, 0.6]]) @ a
    found = compared_spaces(closed(spectrum(a, [3.0, 2.0])), closed(spectrum(turned, [2.5, 2.4])))
    assert found.overlap == pytest.approx(1.0) and found.angles.max() <= found.bound + 1e-7


def test_a_space_whose_last_eigenvalue_is_not_told_apart_from_the_next_is_left_out() -> None:
    """The second and third are within their bounds: the first is compared alone, in both."""
    a, b = orthonormal(3, 9, 0), orthonormal(3, 9, 1)
    close = spectrum(a, [3.0, 2.0, 2.0 - 1e-7])
    close = dataclasses.replace(close, conditional_bounds=np.full(3, np.nan))
    found = compared_spaces(close, spectrum(b, [5.0, 1.0, 0.5]))
    assert len(found.angles) == 1 and found.status == "the first eigenvector"
    assert math.cos(found.angles[0]) == pytest.approx(abs(a[0] @ b[0]))


def test_the_angle_bound_covers_vectors_that_are_as_wrong_as_their_residual() -> None:
    """diag(2, 1): a vector turned by t has Rayleigh quotient 2 - sin^2 t and residual sin t cos t."""
    for t in (1e-3, 0.05, 0.3):
        vector = np.array([[math.cos(t), math.sin(t), 0.0, 0.0]])
        theta, residual = 2.0 - math.sin(t) ** 2, math.sin(t) * math.cos(t)
        whole = np.array([theta, 1.0, 0.0, 0.0])
        turned = spectrum(vector, [theta], residual, complete=True, spectrum=whole)
        true = spectrum(np.eye(1, 4), [2.0], 0.0, complete=True, spectrum=np.array([2.0, 1.0, 0.0, 0.0]))
        found = compared_spaces(turned, true)
        assert found.angles[0] == pytest.approx(t) and found.angles[0] <= found.bound <= 2.0 * t


def test_a_space_that_is_all_there_is_has_no_angle() -> None:
    found = compared_spaces(
        spectrum(orthonormal(3, 3, 0), [3.0, 2.0, 2.0]), spectrum(orthonormal(3, 3, 1), [1.0, 1.0, 1.0])
    )
    assert found.overlap == pytest.approx(1.0) and found.angles == pytest.approx(np.zeros(3), abs=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eigenvectors": []}, "were not kept in the second"),
        ({"status": "zero: why"}, "zero, so that every vector is an eigenvector in the second"),
        ({"converged": np.array([False])}, "has converged in the second"),
        ({"conditional_bounds": np.array([np.nan])}, "not known, in the second"),
        ({"error_bounds": np.array([3.0]), "conditional_bounds": np.array([3.0])}, "below the bound"),
        ({"complete": True, "spectrum": np.array([3.0, 3.0, 0.0, 0.0])}, "below the bound"),
        ({"eigenvectors": [{"w": torch.ones(4)}]}, "differ in name or shape"),
        ({"eigenvectors": [{"w": torch.zeros(3, 1).double(), "b": torch.zeros(1).double()}]}, "dependent"),
    ],
)
def test_a_space_that_is_not_determined_has_no_overlap_and_a_reason(changes: dict[str, Any], said: str) -> None:
    good = spectrum(orthonormal(1, 4, 0), [3.0])
    found = compared_spaces(good, dataclasses.replace(good, **changes))
    assert math.isnan(found.overlap) and np.isnan(found.angles).all() and said in found.status
    assert not math.isnan(compared_spaces(good, good).overlap)


def test_what_is_excluded_beyond_the_last_eigenvalue_determines_its_space() -> None:
    good = spectrum(orthonormal(2, 6, 0), [3.0, 2.0])
    excluded = dataclasses.replace(good, conditional_bounds=np.full(2, np.nan), missed_above=1.5)
    assert len(compared_spaces(excluded, excluded).angles) == 2
    assert len(compared_spaces(dataclasses.replace(excluded, missed_above=2.1), excluded).angles) == 1
    unchecked = dataclasses.replace(excluded, status="converged: up to multiplicity, since ...")
    assert compared_spaces(unchecked, excluded).status.endswith("would tell)")


def test_a_gap_that_a_further_copy_would_close_is_taken_last_and_said() -> None:
    """Of two eigenvalues the second shows that the first is single; of one alone nothing does."""
    two = spectrum(orthonormal(2, 6, 0), [3.0, 2.0])
    assert compared_spaces(two, two).status == "the first eigenvector"
    one = spectrum(orthonormal(1, 6, 0), [3.0])
    found = compared_spaces(one, one)
    assert found.overlap == pytest.approx(1.0) and "if the last eigenvalue has no further copy" in found.status
