"""Eigenvalues of any symmetric operator by one call: the ends, their order, what is accepted and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

import layerhess as lh
from driven_solver import expected
from references.spectra import FAMILIES, rotated


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("family", ["gaussian", "network-like", "low rank", "multiple"])
def test_every_end_of_the_spectrum_is_found_in_the_promised_order(family: str, k: int, which: str) -> None:
    matrix = rotated(FAMILIES[family](90, np.random.default_rng(k)), seed=k)
    pairs = lh.eigsh(matrix, k=k, which=which, tol=1e-9)
    assert pairs.converged.all()
    want = expected(matrix, which, k)
    key = np.abs if which == "LM" else np.asarray  # equal moduli may come in either order
    np.testing.assert_allclose(key(pairs.values), key(want), rtol=0, atol=2e-8 * np.linalg.norm(matrix, 2))
    vectors = pairs.vectors.numpy()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-12)
    residuals = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    assert (residuals <= pairs.error_bounds).all()


def test_wanting_more_than_half_of_a_matrix_gives_all_of_it() -> None:
    matrix = rotated(np.arange(60.0), seed=0)
    pairs = lh.eigsh(matrix, k=60)
    assert pairs.complete
    np.testing.assert_allclose(pairs.values, np.arange(60.0)[::-1], atol=1e-10)


def test_a_scipy_operator_and_an_array_give_the_same() -> None:
    matrix = rotated(FAMILIES["gaussian"](70, np.random.default_rng(0)), seed=0)
    a, b = lh.eigsh(matrix, k=3), lh.eigsh(aslinearoperator(matrix), k=3)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-12)


def test_the_same_seed_gives_the_same_bits_and_another_seed_the_same_answer() -> None:
    matrix = rotated(FAMILIES["network-like"](200, np.random.default_rng(5)), seed=5)
    first, again, other = (lh.eigsh(matrix, k=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.vectors, again.vectors)
    assert np.all(np.abs(first.values - other.values) <= first.error_bounds + other.error_bounds)


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(lh.InputError, match="NaN or infinite"):
        lh.eigsh(np.full((40, 40), np.nan))


def test_max_passes_ends_a_search_as_not_converged() -> None:
    pairs = lh.eigsh(rotated(np.linspace(0.0, 1.0, 200), 0), k=1, tol=1e-10, max_passes=3)
    assert not pairs.converged.any()


@pytest.mark.parametrize("k", [0, -1, 11, 1.5, True])
def test_a_bad_k_is_refused(k: object) -> None:
    with pytest.raises(lh.InputError, match="k is"):
        lh.eigsh(np.eye(10), k=k)  # type: ignore[arg-type]


def test_a_thing_that_is_no_operator_is_refused() -> None:
    for thing in (3, "matrix", np.ones((2, 3))):
        with pytest.raises(lh.InputError, match="operator"):
            lh.eigsh(thing)


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(lh.InputError, match="which"):
        lh.eigsh(np.eye(10), which="XX")


def test_a_search_that_cannot_keep_all_rows_ends_after_as_many_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerhess.analysis.waves.LARGEST_WHOLE", 10)
    values = np.logspace(-8.0, 0.0, 400)
    pairs = lh.eigsh(np.diag(values), k=4, which="SA", tol=1e-12, max_passes=5000, exclude=1e-9)
    assert 390 < pairs.products <= 400 and pairs.status != "converged" and not pairs.converged.all()
    distances = np.abs(values - pairs.values[:, None]).min(axis=1)
    assert (distances <= pairs.error_bounds).all()
