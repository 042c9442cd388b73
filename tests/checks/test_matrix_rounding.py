"""The error of a matrix from the errors of a few products: against NumPy's norms of errors that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from layerhess.checks.matrix_rounding import MatrixRounding, RowRounding, directions, of_errors
from references.small_networks import Exact

CPU = torch.device("cpu")


def measured(E: Tensor, name: str, count: int = 8) -> MatrixRounding:
    z = directions(len(E), name, count, CPU)
    return of_errors(z, z @ E.T, 3.0)


def truths(E: Tensor) -> tuple[float, float, float, float]:
    A = E.numpy()
    return np.linalg.norm(A, 2), abs(np.trace(A)), np.abs(np.diag(A)).max(), np.linalg.norm(A)


def found(m: MatrixRounding) -> tuple[float, float, float, float]:
    return m.spectral, m.trace, m.entry, m.frobenius


@pytest.mark.parametrize("n", [1, 2, 8])
def test_small_matrices_are_looked_at_column_by_column(n: int) -> None:
    E = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    spectral, trace, entry, frobenius = found(measured(E, "b"))
    _, true_trace, _, true_frobenius = truths(E)
    assert frobenius == pytest.approx(3.0 * true_frobenius) and trace == pytest.approx(3.0 * true_trace)
    assert spectral == frobenius and entry == pytest.approx(3.0 * float(E.norm(dim=1).max()))


@pytest.mark.parametrize("kind", ["random", "rank one", "one entry", "scaled", "one row", "diagonal"])
@pytest.mark.parametrize("count", [8, 4])
def test_no_error_of_many_random_matrices_is_larger_than_said(kind: str, count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    n, worse, wide = 24, np.zeros(4), []
    for number in range(200):
        a, b = torch.randn(2, n, dtype=torch.float64, generator=generator)
        E = torch.randn(n, n, dtype=torch.float64, generator=generator)
        if kind == "rank one":
            E = torch.outer(a, b)
        elif kind == "scaled":
            E = 0.1 * torch.outer(a, a)
        elif kind in ("one entry", "one row"):
            E[1:] = 0.0
            E[0, (1 if kind == "one entry" else n) :] = 0.0
        elif kind == "diagonal":
            E = torch.diag(a)
        said, true = np.array(found(measured(E, f"{kind} {number}", count))), np.array(truths(E))
        worse += true > said
        wide.append(said / true)
    assert (worse <= 1).all()  # of 200: by luck, one of a thousand
    assert np.median(np.array(wide)[:, [0, 3]], axis=0).max() < 24.0


def test_an_error_seen_in_one_direction_is_the_least() -> None:
    assert MatrixRounding(1.0, 4.0, 2.0, 3.0).at_least(2.5) == MatrixRounding(2.5, 4.0, 2.5, 3.0)


def test_rows_of_a_block_have_the_norm_of_their_part() -> None:
    rows = RowRounding(1e-3, {"a": torch.tensor([3.0, 4.0]).double(), "b": torch.tensor([[12.0]]).double()})
    assert rows.of(["a"]) == 5.0 and rows.of(["a", "b"]) == 13.0 and rows.of(["c"]) == 0.0
    assert RowRounding().of(["a"]) == 0.0


class Shifted(nn.Module):
    """tanh units behind a large offset, which float32 rounds away, as much as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.first(x)
        return self.out(torch.tanh((z + 3e4) - 3e4))  # type: ignore[no-any-return]


def totals(z: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return ((z - y) ** 2).sum(), z.numel()


@pytest.mark.parametrize("seed", range(2))
def test_every_number_of_a_matrix_read_whole_in_float32_is_within_its_rounding(seed: int) -> None:
    torch.manual_seed(seed)
    model, x, y = Shifted(), torch.randn(9, 3), torch.randn(9, 2)
    made = lh.analyze(
        lh.Objective(model, (x, y), nn.MSELoss()), top=0, bottom=1, trace=True, diagonal=True, coupling=True,
        blocks="parameter", density=True,
    )  # fmt: skip
    exact = Exact(model, [(x, y)], totals)
    H, seen = exact.matrix("hessian"), []
    for spectrum in made.spectra():
        rows = exact.index(spectrum.parameters)
        A = H[np.ix_(rows, rows)]
        assert spectrum.spectrum is not None and spectrum.trace is not None and spectrum.diagonal is not None
        off = np.abs(spectrum.spectrum - np.linalg.eigvalsh(A)[::-1]).max()
        seen.append(off / np.linalg.norm(A, 2))
        assert off <= spectrum.rounding <= 0.05 * np.linalg.norm(A, 2)
        assert spectrum.top is not None and abs(spectrum.top[0] - np.linalg.eigvalsh(A)[-1]) <= spectrum.top[1]
        assert abs(spectrum.trace.value - np.trace(A)) <= spectrum.trace.rounding
        flat = np.concatenate([spectrum.diagonal.value[name].numpy().ravel() for name in spectrum.parameters])
        assert np.abs(flat - np.diag(A)).max() <= spectrum.diagonal.rounding
        assert spectrum.density is not None
        assert abs(spectrum.density.mean - np.trace(A) / len(A)) <= spectrum.density.mean_error
        assert abs(spectrum.density.second - np.sum(A * A) / len(A)) <= spectrum.density.second_error
    assert max(seen) > 1e-5  # the case shows something
    coupling = made.coupling
    assert coupling is not None
    places = [exact.index(made.blocks[name].parameters) for name in coupling.blocks]
    true = np.array([[np.linalg.norm(H[np.ix_(a, b)]) for b in places] for a in places])
    assert (np.abs(coupling.value - true) <= coupling.standard_error).all()
    assert np.abs(coupling.value - true).max() > 0.0
    inside = sum(true[i, i] ** 2 for i in range(len(places)))
    assert abs(coupling.off_diagonal_share - (1.0 - inside / np.sum(true**2))) <= coupling.share_error < 0.1


def test_a_search_that_comes_to_read_the_whole_matrix_is_measured_in_all_directions_then() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(99, 12), torch.randn(99, 2)
    found = lh.analyze(
        lh.Objective(model, (x, y), nn.MSELoss()), blocks="parameter", top=2, density=True, path="exact",
        full=False,
    ).blocks["0.weight"]  # fmt: skip
    exact = Exact(model, [(x, y)], totals)
    rows = exact.index(["0.weight"])
    A = exact.matrix("hessian")[np.ix_(rows, rows)]
    assert found.path == "lanczos" and found.spectrum is not None and found.density is not None
    assert np.abs(found.spectrum - np.linalg.eigvalsh(A)[::-1]).max() <= found.rounding
    assert 0.0 < abs(found.density.mean - np.trace(A) / len(A)) <= found.density.mean_error
