"""The solvers on NumPy matrices: they know vectors, nothing about networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator

import layerhess as lh
from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.power import Power
from layerhess.linalg.eigen.process import Process, Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import FAMILIES, Matrix, rotated


def run(process: Process, matrix: Matrix, limit: int = 2000) -> int:
    """Drive a process with a NumPy matrix; returns the number of tells."""
    for step in range(1, limit + 1):
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
        if process.proposes:
            return step
    raise AssertionError("the solver did not finish")


def lanczos(matrix: Matrix, wanted: Wanted, tol: float = 1e-8, seed: int = 0, **options: int) -> Lanczos:
    n = len(matrix)
    process = Lanczos(n, wanted, tol, lambda number: random_unit(n, seed, "test", number), **options)
    run(process, matrix)
    return process


def expected(matrix: Matrix, which: str, k: int) -> Matrix:
    """NumPy's eigenvalues in the order eigsh promises."""
    ascending = np.linalg.eigvalsh(matrix)
    if which == "LA":
        return ascending[::-1][:k]
    if which == "SA":
        return ascending[:k]
    if which == "LM":
        return ascending[np.argsort(-np.abs(ascending), kind="stable")][:k]
    return np.concatenate([ascending[::-1][: k - k // 2], ascending[: k // 2]])


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


@pytest.mark.parametrize("copies", [2, 3, 9, 20])
@pytest.mark.parametrize("end", ["top", "bottom"])
def test_an_eigenvalue_is_found_as_often_as_it_occurs(copies: int, end: str) -> None:
    values = np.concatenate([np.full(copies, 5.0), np.linspace(-1.0, 4.0, 100 - copies)])
    if end == "bottom":
        values = -values
    matrix = rotated(values, seed=copies)
    pairs = lh.eigsh(matrix, k=copies + 2, which="LA" if end == "top" else "SA", tol=1e-8)
    np.testing.assert_allclose(pairs.values, expected(matrix, "LA" if end == "top" else "SA", copies + 2), atol=1e-6)


def test_one_wanted_eigenvalue_does_not_look_for_copies() -> None:
    values = np.concatenate([np.full(9, 5.0), np.linspace(0.0, 1.0, 91)])
    assert lh.eigsh(rotated(values, 1), k=1).products < 12


def test_a_thick_restart_keeps_converging_with_a_small_basis() -> None:
    values = np.concatenate([[1.001, 1.0], np.linspace(-1.0, 0.99, 298)])
    matrix = rotated(values, seed=3)
    process = lanczos(matrix, Wanted(top=2, bottom=1), tol=1e-6, basis_limit=14)
    assert process._restarted
    np.testing.assert_allclose(process.candidates().values, [1.001, 1.0, -1.0], atol=1e-7)


def test_an_exhausted_krylov_space_is_left_by_a_random_vector() -> None:
    matrix = rotated(np.concatenate([[3.0, 2.0], np.zeros(78)]), seed=0)
    pairs = lh.eigsh(matrix, k=4, which="LA", tol=1e-8)
    np.testing.assert_allclose(pairs.values, [3.0, 2.0, 0.0, 0.0], atol=1e-9)


def test_the_identity_and_the_zero_matrix_converge_at_once() -> None:
    for value in (1.0, 0.0):
        pairs = lh.eigsh(value * np.eye(100), k=2, which="LA")
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.values, value, atol=1e-12)


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


def test_an_asymmetric_operator_ends_as_not_converged_even_when_its_space_is_exhausted() -> None:
    assert not lh.eigsh(np.triu(np.ones((40, 40))), k=1).converged.any()


def test_a_product_that_is_not_finite_is_refused() -> None:
    with pytest.raises(lh.InputError, match="NaN or infinite"):
        lh.eigsh(np.full((40, 40), np.nan))


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_in_modulus_is_found_where_the_other_end_is_isolated_and_easy(seed: int) -> None:
    values = np.concatenate([[1.0], np.linspace(-1.02, 0.0, 200)])
    pairs = lh.eigsh(rotated(values, seed), k=1, which="LM", tol=1e-2, seed=seed)
    assert pairs.values[0] == pytest.approx(-1.02, abs=1e-2)


def test_max_passes_ends_a_search_as_not_converged() -> None:
    pairs = lh.eigsh(rotated(np.linspace(0.0, 1.0, 200), 0), k=1, tol=1e-10, max_passes=3)
    assert not pairs.converged.any()


def test_dense_reads_the_whole_spectrum_and_sees_asymmetry_in_its_residuals() -> None:
    matrix = rotated(np.linspace(-2.0, 3.0, 30), seed=0)
    process = Dense(30, Wanted(top=2, bottom=1))
    run(process, matrix)
    spectrum = process.candidates().spectrum
    assert spectrum is not None
    np.testing.assert_allclose(spectrum, np.linspace(3.0, -2.0, 30), atol=1e-12)
    assert process.candidates().residuals.max() < 1e-13
    skewed = Dense(30, Wanted(top=1))
    run(skewed, matrix + 0.1 * np.triu(np.ones((30, 30)), 1))
    assert skewed.candidates().residuals.max() > 1e-3


def test_dense_in_chunks_reads_every_column_once() -> None:
    matrix = rotated(np.linspace(0.0, 1.0, 150), seed=0)
    process = Dense(150, Wanted(top=1))
    assert run(process, matrix) == 4  # three chunks of columns, and the eigenvector once more
    assert process.candidates().steps == 151


@pytest.mark.parametrize("values", [[4.0, 1.0, 0.5], [-4.0, 3.0, 0.5], [-1.0, -2.0, -3.0]])
def test_power_iteration_finds_the_largest_even_where_a_negative_one_dominates(values: list[float]) -> None:
    matrix = rotated(np.array(values), seed=1)
    process = Power(3, 1e-8, lambda number: random_unit(3, 0, "power", number))
    run(process, matrix)
    assert process.candidates().values[0] == pytest.approx(max(values), abs=1e-6)
    assert process.candidates().residuals[0] <= 1e-8 * 4.0


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
