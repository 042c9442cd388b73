"""Sums over long rows, piece by piece, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.linalg import long_rows
from layerhess.linalg.long_rows import combined, inner, lengths, norms_of, pieces, rounded, subtract

N = 3 * (1 << 12) + 7  # three whole pieces and one that is not


@pytest.fixture(params=[torch.float32, torch.float64])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(long_rows, "PIECE", 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, N, generator=generator, dtype=torch.float64).to(request.param)


def test_pieces_cover_all_columns_once(rows: torch.Tensor) -> None:
    assert [i for p in pieces(N, 4, rows.device) for i in range(N)[p]] == [*range(N)]
    assert len([*pieces(N, 4, rows.device)]) == 4


def test_they_agree_with_numpy(rows: torch.Tensor) -> None:
    exact = rows.double().numpy()
    coefficients = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = coefficients.numpy().T @ exact
    np.testing.assert_allclose(inner(rows[:1], rows), exact[:1] @ exact.T, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(lengths(rows), np.linalg.norm(exact, axis=1), rtol=1e-13)
    np.testing.assert_allclose(combined(coefficients, rows), made, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(norms_of(coefficients, rows), np.linalg.norm(made, axis=1), rtol=1e-13)
    less = norms_of(coefficients, rows, (coefficients[:1], rows[:1]))
    np.testing.assert_allclose(less, np.linalg.norm(coefficients.numpy()[1:].T @ exact[1:], axis=1), rtol=1e-13)
    rest = torch.ones((2, N), dtype=torch.float64)
    subtract(rest, coefficients, rows)
    np.testing.assert_allclose(rest, 1.0 - made, rtol=1e-12, atol=1e-13)
    stored = combined(coefficients, rows, rows.dtype)
    assert stored.dtype == rows.dtype
    lost = np.linalg.norm(made - stored.double().numpy())
    assert rounded(torch.from_numpy(made), stored) == pytest.approx(lost if rows.dtype == torch.float32 else 0.0)


def test_the_length_of_a_long_float32_row_is_not_a_float32_sum() -> None:
    row = torch.full((1, 1 << 22), 0.1, dtype=torch.float32)
    assert float(lengths(row)) == pytest.approx(float(row[0, 0].double()) * 2.0**11, rel=1e-11)
