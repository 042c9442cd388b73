"""Bases in float32: what their rounding costs is in the certificate; float64 references of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.linalg.bounds import certify
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix, rotated

N = 4000
SPECTRA = {
    "powers": 10.0 / np.arange(1, N + 1),
    "a few beyond a bulk": np.concatenate([[5.0, 4.9, 4.5], np.random.default_rng(0).standard_normal(N - 3) * 0.1]),
    "close": np.concatenate([[1.01], np.linspace(-1.0, 1.0, N - 1)]),
    "of low rank": np.concatenate([[3.0, 2.0, 1.0], np.zeros(N - 3)]),
}


def solved(values: Matrix, dtype: torch.dtype, rows: int, wanted: Wanted, seed: int, **options: float) -> Lanczos:
    """With products that are rounded as those of a model of this dtype."""
    n, a = len(values), torch.from_numpy(values)
    process = Lanczos(
        n, wanted, 1e-3, lambda i: random_unit(n, seed, "stored", i), basis_limit=rows, dtype=dtype,
        exclude=options.get("exclude"),
    )  # fmt: skip
    while not process.proposes:
        asked = process.ask()
        assert asked.dtype == dtype
        process.tell(asked.double() * a)
        assert process.steps < n
    return process


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("wanted", [Wanted(top=1), Wanted(top=2)])
def test_twelve_float32_rows_do_the_work_of_160_float64_ones(name: str, wanted: Wanted) -> None:
    values = SPECTRA[name]
    many = solved(values, torch.float64, 160, wanted, 0)
    few = solved(values, torch.float32, 12, wanted, 0)
    found = few.candidates()
    certificate = certify(found, tol=1e-3, rounding=0.0)
    error = np.abs(found.values - np.sort(values)[::-1][: wanted.total])
    assert certificate.converged.all() and np.all(error <= certificate.error_bounds)
    assert 0.0 < found.stored <= 2e-5 * found.norm and certificate.rounding == found.stored
    assert many.candidates().stored == 0.0
    assert found.vectors.dtype == torch.float32
    assert few.steps <= 2.0 * many.steps
    assert few.basis.q.dtype == few.basis.w.dtype == torch.float32


@pytest.mark.parametrize("name", SPECTRA)
def test_what_few_float32_rows_leave_open_is_excluded_by_further_starts(name: str) -> None:
    values = SPECTRA[name]
    process = solved(values, torch.float32, 12, Wanted(top=1), 1, exclude=0.05)
    found = certify(process.candidates(), tol=1e-3, rounding=0.0, exclude=0.05)
    top = float(values.max())
    assert found.converged.all() and found.excluded.all()
    assert top <= found.missed_above <= 1.05 * top * (1.0 + 1e-6)


def test_the_error_of_a_stored_basis_is_no_smaller_than_it_is() -> None:
    """Many restarts: the products drift away from those of the vectors, and the bound follows."""
    n = 300
    matrix = rotated(np.linspace(-1.0, 2.0, n), seed=2)
    basis = Basis(n, torch.device("cpu"), torch.float32)
    frontier = random_unit(n, 0, "drift", 0)[None].float()
    for step in range(200):
        rest = basis.append(frontier, frontier.double() @ torch.from_numpy(matrix))
        frontier = basis.outside(rest, 2.0, lambda i: random_unit(n, 0, "drift", i), step)
        if basis.size == 12:
            basis.replace(basis.ritz()[1][:, [0, 3, 7, 10, 11]])
        q, w = basis.q.double().numpy(), basis.w.double().numpy()
        off = float(np.linalg.norm(w - q @ matrix)) + 2.0 * float(np.linalg.norm(q @ q.T - np.eye(len(q))))
        assert off <= basis.error(2.0) <= 30.0 * off
    assert basis.error(2.0) > 1e-6


@pytest.mark.parametrize("limit", [12, 23, 40])
def test_a_basis_takes_no_more_room_than_it_was_given(limit: int) -> None:
    process = solved(SPECTRA["close"], torch.float32, limit, Wanted(top=1), 0, exclude=0.05)
    assert process.reach.restarted
    assert len(process.basis._q) == len(process.basis._w) == limit


@pytest.mark.parametrize("limit", [12, 23, 40, 160, 161])
def test_the_copies_made_in_growing_stay_within_the_limit(limit: int) -> None:
    n = 400
    basis = Basis(n, torch.device("cpu"), limit=limit)
    for row in torch.eye(n, dtype=torch.float64)[:limit]:
        before = len(basis._q)
        basis.append(row[None], row[None])
        if before != len(basis._q) and before:  # one of the two grows at a time
            assert 2 * before + len(basis._q) <= 2 * limit + 2
    assert len(basis._q) == limit
