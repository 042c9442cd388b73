"""R' D R from rows in pieces: every way through it, against NumPy's dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.linalg.eigen.gram import Gram
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.eigen.row_sum import Decomposition, RowSum
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix

N = 12
WANTED = {
    "top": Wanted(top=3),
    "both ends": Wanted(top=2, bottom=2),
    "magnitude": Wanted(magnitude=4),
    "all": Wanted(N),
}
# Rows: fewer than columns (held), as many, more (summed up); one row; dependent rows; zero rows.
ROWS = {"few": 5, "one": 1, "as many": N, "more": 3 * N}


def draw(number: int) -> torch.Tensor:
    return random_unit(N, 0, "rows", number)


def rows_of(kind: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = np.random.default_rng(len(kind))
    return torch.from_numpy(rng.standard_normal((ROWS[kind], N)) * 10.0 ** rng.uniform(-1, 1, (ROWS[kind], 1))).to(
        dtype
    )


def decomposed(
    rows: torch.Tensor, signs: torch.Tensor, wanted: Wanted, piece: int = 4, by: float = 7.0
) -> Decomposition:
    summed = RowSum(N, rows.device)
    for start in range(0, len(rows), piece):
        summed.add(rows[start : start + piece], signs[start : start + piece])
    assert summed.count == len(rows) and summed.definite is bool((signs > 0).all())
    found = summed.decompose(wanted, by, draw)
    assert found is not None
    return found


def dense(rows: torch.Tensor, signs: torch.Tensor, by: float = 7.0) -> Matrix:
    r = rows.double().numpy()
    return (r.T * signs.double().numpy()) @ r / by


def assert_decomposes(found: Decomposition, matrix: Matrix, wanted: Wanted) -> None:
    size = np.abs(matrix).max()
    ascending = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(found.values, ascending, atol=1e-12 * size * N)
    np.testing.assert_allclose(found.diagonal.numpy(), np.diag(matrix), atol=1e-13 * size * N)
    np.testing.assert_allclose(found.probe.numpy(), draw(0).numpy(), rtol=0, atol=0)
    np.testing.assert_allclose(found.image.numpy(), matrix @ draw(0).numpy(), atol=1e-12 * size * N)
    vectors, theta = found.vectors.numpy(), found.values[wanted.indices(found.values)]
    assert vectors.shape == (len(theta), N)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(theta)), atol=1e-10)
    np.testing.assert_allclose(vectors @ matrix, theta[:, None] * vectors, atol=1e-9 * size)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("mixed", [False, True], ids=["positive", "mixed signs"])
@pytest.mark.parametrize("kind", ROWS)
def test_it_is_the_dense_matrix_of_its_rows(kind: str, mixed: bool, wanted: str) -> None:
    rows = rows_of(kind)
    signs = torch.ones(len(rows)).double()
    if mixed:
        signs[::2] = -1.0
    assert_decomposes(decomposed(rows, signs, WANTED[wanted]), dense(rows, signs), WANTED[wanted])


@pytest.mark.parametrize("wanted", WANTED)
def test_dependent_rows_have_the_null_space_too(wanted: str) -> None:
    rows = rows_of("few")
    rows[3] = rows[0] + rows[1]
    rows[4] = 0.0
    signs = torch.ones(5).double()
    found = decomposed(rows, signs, WANTED[wanted])
    assert_decomposes(found, dense(rows, signs), WANTED[wanted])
    assert (found.values >= 0.0).all() and (found.values[: N - 5] == 0.0).all()


def test_eigenvalues_of_a_definite_sum_are_not_negative() -> None:
    rows = torch.ones((2 * N, N)).double() * torch.linspace(1.0, 2.0, N)
    found = decomposed(rows, torch.ones(2 * N).double(), Wanted(top=1))
    assert (found.values >= 0.0).all() and found.values[-1] > 1.0
    mixed = decomposed(torch.cat([rows, 2.0 * rows]), torch.tensor([1.0] * 2 * N + [-1.0] * 2 * N), Wanted(bottom=1))
    assert mixed.values[0] < -1.0


def test_what_is_held_is_counted_until_as_many_rows_as_columns_have_come() -> None:
    summed = RowSum(N, torch.device("cpu"))
    rows = rows_of("more").float()
    summed.add(rows[: N - 1], torch.ones(N - 1))
    assert summed.nbytes == 4 * (N - 1) * N  # in their own precision
    summed.add(rows[N - 1 : N], torch.ones(1))
    assert summed.nbytes == 8 * N * N  # the matrix alone
    summed.add(rows[N : N + 2], torch.ones(2))
    assert summed.nbytes == 8 * N * N + 4 * 2 * N  # until there are enough for a product
    found = summed.decompose(Wanted(top=1), 1.0, draw)
    assert found is not None
    expected = dense(rows[: N + 2], torch.ones(N + 2), 1.0)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(expected), atol=1e-12 * np.abs(expected).max() * N)


@pytest.mark.parametrize("kind", ["few", "more"])
def test_rows_that_are_not_finite_have_no_decomposition(kind: str) -> None:
    rows = rows_of(kind)
    rows[1, 2] = torch.nan
    summed = RowSum(N, rows.device)
    summed.add(rows, torch.ones(len(rows)))
    assert summed.decompose(Wanted(top=1), 1.0, draw) is None


def test_no_rows_at_all_are_the_zero_matrix() -> None:
    found = RowSum(N, torch.device("cpu")).decompose(Wanted(top=2), 3.0, draw)
    assert found is not None
    assert (found.values == 0.0).all() and (found.image == 0.0).all() and (found.diagonal == 0.0).all()
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(2), atol=1e-12)


# -- the pairs proposed from it ----------------------------------------------------------------------------------------


def told(exact: bool, wanted: Wanted, off: float = 0.0) -> tuple[Gram, Matrix]:
    """The process after its one pass; ``off`` times a symmetric matrix is what the rows do not know of."""
    rows, signs = rows_of("few"), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]).double()
    matrix = dense(rows, signs)
    bent = matrix + off * np.abs(matrix).max() * np.eye(N)[::-1]
    gram = Gram(decomposed(rows, signs, wanted), wanted, exact)
    assert gram.n == N and not gram.proposes
    before = gram.candidates()
    assert np.isinf(before.residuals).all() and before.spectrum is None and before.steps == 0
    gram.tell(torch.from_numpy(gram.ask().numpy() @ bent))
    return gram, bent


@pytest.mark.parametrize("wanted", WANTED)
def test_pairs_come_with_their_residuals_gaps_and_the_whole_spectrum(wanted: str) -> None:
    gram, matrix = told(True, WANTED[wanted])
    found = gram.candidates()
    ascending = np.linalg.eigvalsh(matrix)
    keep = WANTED[wanted].indices(ascending)
    size = np.abs(ascending).max()
    np.testing.assert_allclose(found.values, ascending[keep], atol=1e-12 * size)
    assert gram.proposes and gram.complete and found.spectrum is not None
    np.testing.assert_allclose(found.spectrum, ascending[::-1], atol=1e-12 * size)
    assert found.norm == pytest.approx(size) and found.steps == min(N, len(keep) + 1)
    assert (found.residuals <= 1e-9 * size).all() and (found.residuals >= 0.0).all()
    for value, gap in zip(found.values, found.gaps, strict=True):
        nearest = np.sort(np.abs(ascending - value))[1]
        assert gap == pytest.approx(nearest, rel=1e-6) if nearest > 1e-9 * size else np.isnan(gap)
    np.testing.assert_allclose(gram.diagonal.numpy(), np.diag(matrix), atol=1e-12 * size)
    assert found.ends == WANTED[wanted].ends(len(keep))


@pytest.mark.parametrize(("exact", "off", "complete"), [(True, 1e-6, False), (False, 1e-6, True), (False, 1e-1, False)])
def test_rows_of_another_matrix_are_noticed_and_bounded_by_residuals(exact: bool, off: float, complete: bool) -> None:
    gram, bent = told(exact, Wanted(top=2, bottom=1), off)
    found = gram.candidates()
    assert gram.complete is complete and (found.spectrum is not None) is complete
    vectors = found.vectors.numpy()
    expected = np.linalg.norm(vectors @ bent - found.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, expected, rtol=1e-6)
    distances = np.abs(np.linalg.eigvalsh(bent)[None] - found.values[:, None]).min(axis=1)
    assert (distances <= found.residuals * (1 + 1e-9)).all()
