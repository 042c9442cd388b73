"""Searches that begin with given vectors beside random ones: quicker with good ones, and never wrong with bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.linalg.bounds import certify
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.missed import BEYOND, largest_share, missed
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix, rotated

N = 300


def eigenvectors(matrix: Matrix, count: int) -> torch.Tensor:
    """The largest first, by NumPy."""
    vectors = np.linalg.eigh(matrix)[1][:, ::-1][:, :count]
    return torch.from_numpy(np.ascontiguousarray(vectors.T))


def search(
    matrix: Matrix, starts: torch.Tensor | None, *, seed: int = 0, width: int = 4, top: int = 1, tol: float = 1e-3
) -> tuple[Lanczos, int]:
    """Run to its proposal; with the number of times that it asked."""
    rows = torch.from_numpy(matrix)
    process = Lanczos(
        len(matrix), Wanted(top=top), tol, lambda i: random_unit(len(matrix), seed, "x", i), width=width, starts=starts
    )
    asked = 0
    while not process.proposes and asked < 200:
        process.tell(process.ask() @ rows)
        asked += 1
    assert process.proposes
    return process, asked


def network_like(seed: int, spread: float = 0.0) -> Matrix:
    rng = np.random.default_rng(seed)
    values = np.concatenate([[10.0, 7.0, 6.0, 4.0, 3.0], 2.0 * rng.uniform(0.0, 1.0, N - 5) ** 4])
    noise = rng.standard_normal((N, N)) * spread / np.sqrt(N)
    return rotated(values, seed) + noise + noise.T


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_vectors_of_a_similar_matrix_save_passes_and_the_bounds_hold(seed: int, top: int) -> None:
    a = network_like(seed)
    given, few = search(a, eigenvectors(network_like(seed, 0.02), top + 5), seed=seed, top=top)
    _, many = search(a, None, seed=seed, top=top)
    assert few < many
    truth = np.linalg.eigvalsh(a)[::-1][:top]
    certificate = certify(given.candidates(), tol=1e-3, rounding=0.0)
    assert np.all(np.abs(given.candidates().values - truth) <= certificate.error_bounds)
    assert certificate.converged.all()


@pytest.mark.parametrize("kind", ["unrelated", "the smallest", "one vector many times"])
def test_useless_vectors_cost_passes_and_nothing_else(kind: str) -> None:
    a = network_like(2)
    starts = {
        "unrelated": eigenvectors(network_like(3), 6),
        "the smallest": eigenvectors(-a, 6),
        "one vector many times": eigenvectors(a, 1).repeat(6, 1),
    }[kind]
    process, asked = search(a, starts, tol=1e-6, top=2)
    np.testing.assert_allclose(process.candidates().values, np.linalg.eigvalsh(a)[::-1][:2], rtol=1e-8)
    assert asked <= 2 * search(a, None, tol=1e-6, top=2)[1]


@pytest.mark.parametrize("second", [9.0, pytest.param(9.5, marks=pytest.mark.slow), 9.9])
def test_the_second_eigenvector_as_a_start_does_not_hide_the_first(second: float) -> None:
    """Its residual is nothing at the first step; of 100 random starts the stated 1 % may miss what was excluded."""
    a = np.diag(np.concatenate([np.linspace(0.0, 5.0, N - 2), [second, 10.0]]))
    starts = torch.zeros(1, N, dtype=torch.float64)
    starts[0, N - 2] = 1.0
    wrong = beyond = 0
    for seed in range(100):
        found = search(a, starts, seed=seed)[0].candidates()
        wrong += abs(found.values[0] - 10.0) > 0.01
        beyond += missed(found.searches["top"][0], 0.01)[0] < 10.0
    assert beyond <= 4
    assert wrong <= (6 if (1.0 + BEYOND) * second > 10.0 else 0)


@pytest.mark.parametrize("width", [1, 4])
def test_what_is_excluded_is_worked_out_from_the_random_vectors_alone(width: int) -> None:
    """Every eigenvector of the matrix has at most the stated share in them, whatever else the search was told."""
    a = np.diag(np.sort(np.random.default_rng(4).uniform(-0.5, 1.0, N)))
    process = Lanczos(
        N, Wanted(top=1), 1e-12, lambda i: random_unit(N, 7, "x", i), width=width,
        starts=eigenvectors(a + 0.01 * network_like(5), 5),
    )  # fmt: skip
    frame = np.linalg.qr(np.stack([random_unit(N, 7, "x", i).numpy() for i in range(width)]).T)[0].T
    assert len(process.ask()) == width + 5
    for _ in range(4):
        process.tell(process.ask() @ torch.from_numpy(a))
        found = process.reach.searched()
        assert found.first.shape[0] == width
        shares = np.array([largest_share(found, float(x)) for x in np.diag(a)])
        assert np.all(np.sum(frame**2, axis=0) <= shares * (1.0 + 1e-8))
