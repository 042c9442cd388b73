"""Rows spread over devices, against NumPy and against whole rows: they stay where they are, vectors come to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from layerhess.linalg import long_rows
from layerhess.linalg.eigen.krylov_basis import Basis
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Candidates
from layerhess.linalg.long_rows import Space, combined, inner, lengths, norms_of, replace, rounded, subtract
from layerhess.linalg.random_vectors import random_unit
from layerhess.linalg.spread_rows import SpreadRows
from references.spectra import rotated
from second_device import THERE, Far, TwoDevices
from sliced_bases import ASKED, SPECTRA, N

HERE = torch.device("cpu")
SIZES = (5000, 9000, 300)  # of stretches: here, there, here; pieces have 4,096 columns at most
M = 5


class Moved(TwoDevices):
    """Two devices, and the shapes of what moves from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = super().__torch_dispatch__(func, types, args, kwargs)
        source = args[1] if func.name().startswith("aten::copy_") else args[0] if args else None
        if (
            isinstance(source, Tensor)
            and isinstance(made, Tensor)
            and source.device != made.device
            and source.ndim == 2
        ):
            self.shapes.append(source.shape)
        return made


@pytest.fixture(params=[torch.float32, torch.float64])
def exact(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr(long_rows, "PIECE", 1)
    monkeypatch.setattr(long_rows, "LARGE_PIECE", 1)
    return torch.randn(M, sum(SIZES), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(request.param)


def spread(rows: Tensor) -> SpreadRows:
    first, second, third = torch.split(rows.clone(), SIZES, dim=1)
    return SpreadRows([first, Far(second), third], HERE)


def test_they_agree_with_numpy(exact: Tensor) -> None:
    rows, a = spread(exact), exact.double().numpy()
    coefficients = torch.randn(M, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = coefficients.numpy()
    with TwoDevices():
        np.testing.assert_allclose(rows.whole(), exact)
        assert rows.shape == (M, sum(SIZES)) and rows.dtype == exact.dtype
        np.testing.assert_allclose(inner(exact[:1], rows), a[:1] @ a.T, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(inner(rows[1:3], rows), a[1:3] @ a.T, rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(lengths(rows), np.linalg.norm(a, axis=1), rtol=1e-13)
        np.testing.assert_allclose(combined(coefficients, rows), c.T @ a, rtol=1e-12, atol=1e-12)
        less = norms_of(coefficients, rows, (coefficients[:1], rows[:1]))
        np.testing.assert_allclose(less, np.linalg.norm(c[1:].T @ a[1:], axis=1), rtol=1e-13)
        rest = torch.ones((2, sum(SIZES)), dtype=torch.float64)
        subtract(rest, coefficients, rows)
        np.testing.assert_allclose(rest, 1.0 - c.T @ a, rtol=1e-12, atol=1e-12)
        kept, lost = rows.clone(), replace(rows, coefficients.T)
        np.testing.assert_allclose(kept.whole(), exact)
        np.testing.assert_array_equal(rows[2:].whole(), exact[2:])
        stored = rows[:2].whole()
        np.testing.assert_allclose(stored, c.T @ a, rtol=1e-6, atol=1e-6)
        off = np.linalg.norm(c.T @ a - stored.double().numpy()) if exact.dtype == torch.float32 else 0.0
        assert [lost, rounded(torch.from_numpy(c.T @ a), rows[:2])] == pytest.approx([off] * 2, rel=1e-6)


def test_rows_stay_and_a_few_vectors_come_to_them(exact: Tensor) -> None:
    rows = spread(exact)
    with Moved() as moved:
        made = inner(exact[:1], rows)
        rest = combined(made.T, rows)
        subtract(rest, made.T, rows)
        rows[1:2] = rest
        replace(rows, torch.eye(M, dtype=torch.float64)[:2])
    vectors = [shape for shape in moved.shapes if shape[1] > M]
    assert vectors and all(shape[0] == 1 for shape in vectors), "anything else is coefficients"


PLACES = {"two": ((100, HERE), (201, THERE)), "between": ((40, THERE), (200, HERE), (61, THERE))}


def solved(values: np.ndarray, question: str, space: Space) -> tuple[Candidates, Lanczos]:
    matrix = torch.from_numpy(rotated(values, seed=1))
    wanted, options = ASKED[question]
    given = {"tol": 1e-8, **options}
    solver = Lanczos(N, wanted, given.pop("tol"), lambda i: random_unit(N, 0, "s", i), space=space, **given)
    while not solver.proposes:
        solver.tell(solver.ask().double() @ matrix)
        assert solver.steps < 3 * N
    return solver.candidates(), solver


def searches() -> list[Any]:
    """Those of many steps are slow on the second device, which is made of Python."""
    every = [(spectrum, question) for spectrum in SPECTRA for question in ASKED]
    long = {("powers", "both ends"), ("powers", "largest")}
    return [pytest.param(*one, marks=[pytest.mark.slow] if one in long else []) for one in every]


@pytest.mark.parametrize(("spectrum", "question"), searches())
def test_a_search_over_spread_rows_is_the_one_over_whole_rows(spectrum: str, question: str) -> None:
    expected, whole = solved(SPECTRA[spectrum], question, Space(N))
    for places in PLACES.values():
        with TwoDevices():
            found, solver = solved(SPECTRA[spectrum], question, Space(N, places=places))
        for rows in (solver.basis.q, solver.basis.w):
            assert isinstance(rows, SpreadRows)
            assert [(part.shape[1], part.device) for part in rows.parts] == list(places)
        close = 1e-4 if question == "few float32 rows" else 1e-9  # of copies vectors may be turned
        np.testing.assert_allclose(found.values, expected.values, rtol=close, atol=close)
        assert found.vectors.device == HERE and found.stored == pytest.approx(expected.stored, rel=0.2, abs=0.0)
        assert abs(solver.steps - whole.steps) <= 0.1 * whole.steps, "the same search, but for the last digits"


def test_a_process_holds_its_slice_of_every_stretch() -> None:
    with TwoDevices():
        for here, expected in [
            (slice(0, 90), [(90, HERE)]),
            (slice(90, 200), [(10, HERE), (100, THERE)]),
            (slice(200, 301), [(101, THERE)]),
        ]:
            basis = Basis(Space(N, here=here, places=PLACES["two"]), HERE)
            vector = torch.ones((1, 301), dtype=torch.float64)[:, here] / 17.0
            basis.append(vector, vector)
            assert [(part.shape[1], part.device) for part in basis.q.parts] == expected  # type: ignore[union-attr]
            assert float(basis.t) == pytest.approx(vector.numel() / 289.0)
