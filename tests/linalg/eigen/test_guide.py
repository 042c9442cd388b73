"""Searches that a cheaper operator guides: what it proposes, and that wrong advice does no harm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from layerhess.linalg.bounds import certify
from layerhess.linalg.eigen.guide import BEYOND, POWERS, Guide
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.missed import largest_share, missed
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix, rotated

N = 300


def _multiply(matrix: Matrix) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows @ torch.from_numpy(matrix)


def _guide(matrix: Matrix, count: int) -> Guide:
    """Of a matrix whose eigenvectors NumPy knows."""
    vectors = np.linalg.eigh(matrix)[1][:, ::-1][:, :count]
    return Guide(_multiply(matrix), torch.from_numpy(np.ascontiguousarray(vectors.T)))


def _search(
    matrix: Matrix, guide: Guide | None, *, seed: int = 0, width: int = 4, top: int = 1, tol: float = 1e-3
) -> tuple[Lanczos, int]:
    """Run to its proposal; with the number of times that it asked."""
    n = len(matrix)
    process = Lanczos(n, Wanted(top=top), tol, lambda i: random_unit(n, seed, "x", i), width=width, guide=guide)
    asked = 0
    while not process.proposes and asked < 200:
        process.tell(_multiply(matrix)(process.ask()))
        asked += 1
    assert process.proposes
    return process, asked


def _network_like(seed: int, spread: float = 0.0) -> Matrix:
    rng = np.random.default_rng(seed)
    values = np.concatenate([[10.0, 7.0, 6.0, 4.0, 3.0], 2.0 * rng.uniform(0.0, 1.0, N - 5) ** 4])
    matrix = rotated(values, seed)
    noise = rng.standard_normal((N, N)) * spread / np.sqrt(N)
    return matrix + noise + noise.T


def test_rows_ahead_are_powers_of_the_guide_less_the_span() -> None:
    a, b = _network_like(0), _network_like(0, 0.05)
    basis = Basis(N, torch.device("cpu"))
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((N, 4)))[0].T
    basis.append(torch.from_numpy(q.copy()), torch.from_numpy(q @ a))
    values, coefficients = basis.ritz()
    found = Guide(_multiply(b), torch.zeros(0, N)).ahead(
        basis, values[-2:], coefficients[:, -2:], np.array([0.0, 1e9]), 50
    )
    outside = np.eye(N) - q.T @ q
    row, want = (coefficients[:, -2].numpy() @ q) @ (a - values[-2] * np.eye(N)), []
    for _ in range(POWERS):
        row = outside @ (b @ row)
        want.append(row / np.linalg.norm(row))
    np.testing.assert_allclose(found.numpy(), np.stack(want), atol=1e-12)


def test_rows_ahead_keep_to_their_room_and_leave_out_what_is_not_finite() -> None:
    basis = Basis(N, torch.device("cpu"))
    q = torch.eye(N, dtype=torch.float64)[:5]
    basis.append(q, _multiply(_network_like(0))(q))
    values, coefficients = basis.ritz()
    guide, allowed = _guide(_network_like(1), 1), np.zeros(5)
    assert [len(guide.ahead(basis, values, coefficients, allowed, room)) for room in (-1, 0, 3, 5, 11, 99)] == [
        0, 0, 3, 5, 10, 5 * POWERS,
    ]  # fmt: skip
    asked: list[int] = []
    counting = Guide(lambda rows: (asked.append(len(rows)), rows)[1], torch.zeros(0, N))
    assert len(counting.ahead(basis, values, coefficients, np.full(5, 1e9), 99)) == 0 and not asked
    silent = Guide(lambda rows: None, torch.zeros(0, N))
    assert len(silent.ahead(basis, values, coefficients, allowed, 99)) == 0
    broken = Guide(lambda rows: rows * torch.nan, torch.zeros(0, N))
    assert len(broken.ahead(basis, values, coefficients, allowed, 99)) == 0


@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_good_advice_saves_a_third_of_the_passes_and_the_bounds_hold(seed: int, top: int) -> None:
    a = _network_like(seed)
    guided, few = _search(a, _guide(_network_like(seed, 0.02), top + 5), seed=seed, top=top)
    _, many = _search(a, None, seed=seed, top=top, width=8)
    assert 3 * few <= 2 * many
    truth = np.linalg.eigvalsh(a)[::-1][:top]
    certificate = certify(guided.candidates(), tol=1e-3, rounding=0.0)
    assert np.all(np.abs(guided.candidates().values - truth) <= certificate.error_bounds)
    assert certificate.converged.all()


@pytest.mark.parametrize("kind", ["unrelated", "zero", "negative", "huge"])
def test_bad_advice_costs_passes_and_nothing_else(kind: str) -> None:
    a = _network_like(2)
    b = {"unrelated": _network_like(3), "zero": 0.0 * a, "negative": -a, "huge": 1e200 * a}[kind]
    process, asked = _search(a, _guide(b, 6), tol=1e-6, top=2)
    np.testing.assert_allclose(process.candidates().values, np.linalg.eigvalsh(a)[::-1][:2], rtol=1e-8)
    assert asked <= 2 * _search(a, None, tol=1e-6, top=2)[1]


@pytest.mark.parametrize("second", [9.0, 9.5, 9.9])
def test_a_guide_that_knows_the_second_eigenvector_alone_does_not_hide_the_first(second: float) -> None:
    """The residual is nothing at the first step; of 200 random starts the stated 1 % may miss what was excluded."""
    a = np.diag(np.concatenate([np.linspace(0.0, 5.0, N - 2), [second, 10.0]]))
    b = np.diag(np.concatenate([np.linspace(0.0, 5.0, N - 2), [second, 0.0]]))
    guide = _guide(b, 6)
    wrong = beyond = 0
    for seed in range(200):
        process, _ = _search(a, guide, seed=seed)
        found = process.candidates()
        wrong += abs(found.values[0] - 10.0) > 0.01
        beyond += missed(found.searches["top"][0], 0.01)[0] < 10.0
    assert beyond <= 6
    assert wrong <= (8 if (1.0 + BEYOND) * second > 10.0 else 0)  # a search from one vector: 7 and 0


@pytest.mark.parametrize("width", [1, 4])
def test_the_random_vectors_of_a_guided_search_are_the_ones_it_excludes_with(width: int) -> None:
    """Every eigenvector of the matrix has at most the stated share in them, whatever else the search was told."""
    a = np.diag(np.sort(np.random.default_rng(4).uniform(-0.5, 1.0, N)))
    process = Lanczos(
        N, Wanted(top=1), 1e-12, lambda i: random_unit(N, 7, "x", i), width=width,
        guide=_guide(a + 0.01 * _network_like(5), 5),
    )  # fmt: skip
    frame = np.linalg.qr(np.stack([random_unit(N, 7, "x", i).numpy() for i in range(width)]).T)[0].T
    assert len(process.ask()) == width + 5
    for _ in range(4):
        process.tell(_multiply(a)(process.ask()))
        search = process._searched(N)
        assert search.first.shape[0] == width
        shares = np.array([largest_share(search, float(x)) for x in np.diag(a)])
        assert np.all(np.sum(frame**2, axis=0) <= shares * (1.0 + 1e-8))
