"""Lanczos on NumPy matrices: it knows vectors, nothing about networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import layerhess as lh
from driven_solver import expected, lanczos
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import rotated


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
    assert process.reach.restarted
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


def test_an_asymmetric_operator_ends_as_not_converged_even_when_its_space_is_exhausted() -> None:
    assert not lh.eigsh(np.triu(np.ones((40, 40))), k=1).converged.any()


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_in_modulus_is_found_where_the_other_end_is_isolated_and_easy(seed: int) -> None:
    values = np.concatenate([[1.0], np.linspace(-1.02, 0.0, 200)])
    pairs = lh.eigsh(rotated(values, seed), k=1, which="LM", tol=1e-2, seed=seed)
    assert pairs.values[0] == pytest.approx(-1.02, abs=1e-2)


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 10))])
def test_copies_are_found_though_the_search_for_them_may_stop_early(seed: int, width: int) -> None:
    values = np.concatenate([[2.0, 2.0, 1.9, 1.9, 1.9], np.linspace(-0.5, 0.8, 200)])
    n = len(values)
    process = Lanczos(n, Wanted(top=5, bottom=2), 1e-6, lambda i: random_unit(n, seed, "copies", i), width=width)
    while not process.proposes:
        process.tell(process.ask() * torch.from_numpy(values))
    assert np.allclose(process.candidates().values[:5], [2.0, 2.0, 1.9, 1.9, 1.9], atol=1e-5)
    assert np.allclose(process.candidates().values[5:], np.sort(values)[[1, 0]], atol=1e-5)


def test_two_vectors_need_no_search_for_copies_where_all_wanted_differ() -> None:
    values = np.concatenate([[2.0, 1.5, 1.2, 1.0], np.linspace(-0.2, 0.5, 300)])
    n = len(values)
    steps = {}
    for width in (1, 2):
        process = Lanczos(n, Wanted(top=4), 1e-3, lambda i: random_unit(n, 0, "apart", i), width=width)
        while not process.proposes:
            process.tell(process.ask() * torch.from_numpy(values))
        assert np.allclose(process.candidates().values, values[:4], atol=1e-3)
        assert len(process.candidates().searches["top"]) == 2
        assert process._locked == (4 if width == 1 else 0)
        steps[width] = process.steps
    assert steps[2] <= 1.25 * steps[1]


def test_a_wide_start_shrinks_where_the_basis_has_no_room_for_it() -> None:
    values = np.concatenate([[2.0], np.linspace(-0.2, 1.9, 300)])
    n = len(values)
    process = Lanczos(n, Wanted(top=1), 1e-6, lambda i: random_unit(n, 0, "room", i), basis_limit=14, width=8)
    assert len(process.ask()) == 2
    while not process.proposes:
        process.tell(process.ask() * torch.from_numpy(values))
    assert process.candidates().values[0] == pytest.approx(2.0, abs=1e-5)
