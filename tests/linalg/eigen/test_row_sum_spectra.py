"""The spectrum of a sum of signed squares of rows, from its Gram matrix or its own, whichever is smaller."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from driven_solver import draw
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.eigen.row_sum import RowSum


@pytest.mark.parametrize("wanted", [Wanted(top=1), Wanted(top=4, bottom=3), Wanted(bottom=5), Wanted(top=30)])
@pytest.mark.parametrize("signs", ["definite", "indefinite"])
@pytest.mark.parametrize("rows", [0, 1, 12, 29, 30, 31, 700])
def test_rows_of_any_number_give_the_whole_spectrum(rows: int, signs: str, wanted: Wanted) -> None:
    n = 30
    drawn = np.random.default_rng(rows)
    r = drawn.standard_normal((rows, n)) * np.exp(drawn.uniform(-9, 0, (rows, 1)))
    d = np.ones(rows) if signs == "definite" else drawn.choice([-1.0, 1.0], rows)
    matrix = (r.T * d) @ r / 7.0
    total = RowSum(n, torch.device("cpu"))
    for part in np.array_split(np.arange(rows), 5):
        total.add(torch.from_numpy(r[part]), torch.from_numpy(d[part]))
    found = total.decompose(wanted, 7.0, draw(n))
    assert found is not None
    norm = max(np.abs(matrix).max() * n, 1e-300)
    assert np.abs(found.values - np.linalg.eigvalsh(matrix)).max() <= 1e-13 * norm
    assert (found.values == 0.0).sum() >= n - rows
    keep = wanted.indices(found.values)
    v = found.vectors.numpy()
    assert v.shape == (len(keep), n) and np.allclose(v @ v.T, np.eye(len(keep)), atol=1e-10)
    assert np.abs(v @ matrix - found.values[keep][:, None] * v).max() <= 1e-13 * norm
    assert np.allclose(found.diagonal, np.diag(matrix), atol=1e-13 * norm)
    assert np.allclose(found.image, matrix @ found.probe.numpy(), atol=1e-13 * norm)


def test_rows_that_occur_twice_leave_orthonormal_vectors() -> None:
    """Half of the Gram matrix's eigenvalues are zero: its vectors say nothing about the block's there."""
    half = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).double()
    total = RowSum(40, torch.device("cpu"))
    for _ in range(2):
        total.add(half, torch.ones(8))
    found = total.decompose(Wanted(top=16), 1.0, draw(40))
    assert found is not None and (found.values >= 0.0).all()
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(16).double(), atol=1e-12)
    image = found.vectors @ (2.0 * half.T @ half)
    expected = torch.from_numpy(found.values[::-1][:16].copy())[:, None] * found.vectors
    assert torch.allclose(image, expected, atol=1e-12 * float(found.values[-1]))


@pytest.mark.parametrize("rows", [3, 50])
def test_rows_that_are_not_finite_give_nothing(rows: int) -> None:
    total = RowSum(20, torch.device("cpu"))
    bad = torch.ones(rows, 20)
    bad[1, 2] = torch.nan
    total.add(bad, torch.ones(rows))
    assert total.decompose(Wanted(top=1), 1.0, draw(20)) is None
