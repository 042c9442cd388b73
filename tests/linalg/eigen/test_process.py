"""What solvers share: which pairs are wanted, their gaps and tolerances, and the basis they work in, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.linalg.eigen.dense import CHUNK, Dense
from layerhess.linalg.eigen.krylov_basis import Basis, frame
from layerhess.linalg.eigen.power import Power
from layerhess.linalg.eigen.process import Wanted, dense_eigh, graded_eigh, known_gaps, neighbours, tolerated
from layerhess.linalg.eigen.zero_test import ZeroTest
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix, rotated

ASCENDING = np.array([-5.0, -1.0, 0.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("wanted", "places", "ends"),
    [
        (Wanted(top=1), [4], "t"),
        (Wanted(top=2), [4, 3], "tt"),
        (Wanted(bottom=1), [0], "b"),
        (Wanted(bottom=2), [1, 0], "bb"),
        (Wanted(top=2, bottom=2), [4, 3, 1, 0], "ttbb"),
        (Wanted(top=3, bottom=3), [4, 3, 2, 1, 0], "tttbb"),
        (Wanted(top=9), [4, 3, 2, 1, 0], "ttttt"),
        (Wanted(bottom=9), [4, 3, 2, 1, 0], "bbbbb"),
        (Wanted(magnitude=1), [0], "m"),
        (Wanted(magnitude=3), [4, 3, 0], "mmm"),
        (Wanted(), [], ""),
    ],
)
def test_wanted_places_run_from_the_largest_value_down(wanted: Wanted, places: list[int], ends: str) -> None:
    assert wanted.indices(ASCENDING) == places
    names = {"t": "top", "b": "bottom", "m": "magnitude"}
    assert wanted.ends(len(places)) == tuple(names[end] for end in ends)
    assert wanted.total == wanted.top + wanted.bottom + wanted.magnitude


def test_wanted_of_fewer_values_are_all_of_them() -> None:
    assert Wanted(top=2, bottom=2).indices(ASCENDING[:3]) == [2, 1, 0]
    assert Wanted(top=2).indices(ASCENDING[:1]) == [0] and Wanted(top=2).indices(ASCENDING[:0]) == []


def test_the_nearest_other_value() -> None:
    assert neighbours(np.array([-5.0, -1.0, 0.0, 2.5, 4.0]), [4, 3, 2, 1, 0]) == [3, 4, 1, 2, 1]
    assert neighbours(ASCENDING[:1], [0]) == [0] and neighbours(ASCENDING, []) == []


def test_a_gap_is_known_less_the_neighbours_residual_and_beyond_the_pairs_own() -> None:
    gaps = known_gaps(
        np.array([1.0, 1.0, 1.0, 1.0]), np.array([0.1, 0.75, 0.8, 0.0]), np.array([0.25, 0.25, 0.25, 1.0])
    )
    np.testing.assert_array_equal(gaps, [0.75, np.nan, np.nan, np.nan])


def test_the_tolerance_is_relative_to_the_value_and_to_a_tenth_of_the_norm() -> None:
    np.testing.assert_allclose(tolerated(np.array([-4.0, 0.3, 2.0]), 10.0, 1e-2), [4e-2, 1e-2, 2e-2], rtol=1e-14)


def test_both_decompositions_are_lapacks() -> None:
    matrix = rotated(np.array([3.0, -1.0, 0.5, 2.0]), seed=1)
    for eigh in (dense_eigh, graded_eigh):
        values, vectors = eigh(torch.from_numpy(matrix))
        np.testing.assert_allclose(values, [-1.0, 0.5, 2.0, 3.0], atol=1e-14)
        np.testing.assert_allclose(matrix @ vectors.numpy(), vectors.numpy() * values, atol=1e-13)
    graded = np.diag(10.0 ** np.arange(-12.0, 1.0)) + np.diag(np.full(12, 1e-16), 1) + np.diag(np.full(12, 1e-16), -1)
    np.testing.assert_allclose(graded_eigh(torch.from_numpy(graded))[0], 10.0 ** np.arange(-12.0, 1.0), rtol=1e-7)


# -- the basis ---------------------------------------------------------------------------------------------------------

N = 9
MATRIX = rotated(np.array([7.0, 5.0, 3.0, 1.0, 0.5, 0.0, -1.0, -2.0, -6.0]), seed=3)


def products(rows: torch.Tensor, matrix: Matrix = MATRIX) -> torch.Tensor:
    return torch.from_numpy(rows.numpy() @ matrix)


def draw(number: int) -> torch.Tensor:
    return random_unit(N, 1, "basis", number)


def basis_of(*sizes: int) -> tuple[Basis, torch.Tensor]:
    """Appended in parts of these sizes; the basis, and the last rest."""
    rows = frame(torch.stack([draw(i) for i in range(sum(sizes))]))
    basis, start, rest = Basis(N, torch.device("cpu")), 0, rows[:0]
    for size in sizes:
        rest = basis.append(rows[start : start + size], products(rows[start : start + size]))
        start += size
    return basis, rest


def test_a_frame_is_orthonormal_with_the_same_span() -> None:
    for count in (1, 3):
        rows = torch.stack([2.0 * draw(i) for i in range(count)])
        made = frame(rows)
        np.testing.assert_allclose(made @ made.T, np.eye(count), atol=1e-14)
        np.testing.assert_allclose(rows @ made.T @ made, rows, atol=1e-13)


@pytest.mark.parametrize("sizes", [(1,), (1, 1, 1), (2, 3), (4, 1), (3, 6)])
def test_a_basis_has_the_projected_matrix_and_the_rest_of_the_products(sizes: tuple[int, ...]) -> None:
    basis, rest = basis_of(*sizes)
    q = basis.q.numpy()
    assert basis.size == sum(sizes) == len(q)
    np.testing.assert_allclose(q @ q.T, np.eye(len(q)), atol=1e-13)
    np.testing.assert_allclose(basis.w.numpy(), q @ MATRIX, atol=1e-13)
    np.testing.assert_allclose(basis.t.numpy(), q @ MATRIX @ q.T, atol=1e-13)
    last = q[-sizes[-1] :] @ MATRIX
    np.testing.assert_allclose(rest.numpy(), last - last @ q.T @ q, atol=1e-13)


@pytest.mark.parametrize("step", [1, 5, 13])
def test_a_basis_that_grows_keeps_what_it_has(step: int) -> None:
    n = 60
    matrix = rotated(np.linspace(-2.0, 3.0, n), seed=4)
    rows = np.linalg.qr(np.random.default_rng(0).standard_normal((n, 52)))[0].T.copy()
    basis = Basis(n, torch.device("cpu"))
    for start in range(0, 52, step):
        part = torch.from_numpy(rows[start : start + step])
        basis.append(part, products(part, matrix))
    np.testing.assert_array_equal(basis.q.numpy(), rows)
    np.testing.assert_allclose(basis.w.numpy(), rows @ matrix, atol=1e-13)
    np.testing.assert_allclose(basis.t.numpy(), rows @ matrix @ rows.T, atol=1e-13)


def test_ritz_pairs_and_their_residuals_are_numpys() -> None:
    basis, _ = basis_of(2, 3)
    q = basis.q.numpy()
    values, coefficients = basis.ritz()
    np.testing.assert_allclose(values, np.linalg.eigvalsh(q @ MATRIX @ q.T), atol=1e-13)
    vectors = coefficients.numpy().T @ q
    np.testing.assert_allclose(basis.vectors(coefficients).numpy(), vectors, atol=1e-14)
    np.testing.assert_allclose(basis.images(basis.vectors(coefficients)).numpy(), vectors @ MATRIX, atol=1e-13)
    residuals = vectors @ MATRIX - values[:, None] * vectors
    lengths = np.linalg.norm(residuals, axis=1)
    np.testing.assert_allclose(basis.residual_norms(values, coefficients), lengths, atol=1e-13)
    one = basis.residual(values[1], coefficients[:, [1]])
    np.testing.assert_allclose(one.numpy(), residuals[[1]], atol=1e-13)
    part, _ = basis.ritz(2, 4)
    np.testing.assert_allclose(part, np.linalg.eigvalsh((q @ MATRIX @ q.T)[2:4, 2:4]), atol=1e-13)
    leading = basis.ritz(stop=2)[1]
    np.testing.assert_allclose(basis.vectors(leading).numpy(), leading.numpy().T @ q[:2], atol=1e-14)


def test_a_basis_can_go_over_to_part_of_its_span_and_grow_again() -> None:
    basis, _ = basis_of(2, 3)
    _, coefficients = basis.ritz()
    vectors = basis.vectors(coefficients[:, [0, 4]]).numpy()
    basis.replace(coefficients[:, [0, 4]])
    assert basis.size == 2
    np.testing.assert_allclose(basis.q.numpy(), vectors, atol=1e-14)
    np.testing.assert_allclose(basis.t.numpy(), vectors @ MATRIX @ vectors.T, atol=1e-13)
    added = basis.outside(draw(50)[None], 7.0, draw, 60)
    basis.append(added, products(added))
    q = basis.q.numpy()
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-13)
    np.testing.assert_allclose(basis.t.numpy(), q @ MATRIX @ q.T, atol=1e-13)


def test_rows_outside_are_orthonormal_and_keep_their_new_direction() -> None:
    basis, _ = basis_of(3)
    q = basis.q.numpy()
    rows = torch.stack([100.0 * draw(20), 1e-6 * draw(21)])
    made = basis.outside(rows.clone(), 7.0, draw, 30).numpy()
    both = np.concatenate([q, made])
    np.testing.assert_allclose(both @ both.T, np.eye(5), atol=1e-13)
    left = rows.numpy() - rows.numpy() @ q.T @ q
    np.testing.assert_allclose(left @ both.T @ both, left, atol=1e-12)  # nothing of them is lost


@pytest.mark.parametrize("kind", ["in the span", "zero", "rounding"])
def test_a_row_without_a_new_direction_is_replaced_by_a_random_one(kind: str) -> None:
    basis, _ = basis_of(3)
    row = {"in the span": basis.q[1], "zero": torch.zeros(N).double(), "rounding": 1e-15 * draw(40)}[kind]
    made = basis.outside(row[None].clone(), 7.0, draw, 30).numpy()
    q = basis.q.numpy()
    random = draw(30).numpy()
    random = random - random @ q.T @ q
    np.testing.assert_allclose(np.abs(made[0] @ random), np.linalg.norm(random), rtol=1e-12)


def test_nothing_is_outside_of_the_whole_space() -> None:
    basis, _ = basis_of(8)
    made = basis.outside(torch.stack([draw(20), draw(21)]), 7.0, draw, 30)
    assert made.shape == (1, N)
    basis.append(made, products(made))
    assert basis.outside(draw(22)[None], 7.0, draw, 31).shape == (0, N)
    np.testing.assert_allclose(basis.ritz()[0], np.linalg.eigvalsh(MATRIX), atol=1e-13)


# -- dense, power, zero ------------------------------------------------------------------------------------------------


def test_the_dense_solver_reads_every_column_once_and_asks_for_nothing_more() -> None:
    n = CHUNK + 7
    matrix = rotated(np.linspace(-3.0, 5.0, n), seed=2)
    process = Dense(n, Wanted(top=2, bottom=1))
    shapes, asked = [], []
    assert not process.proposes and len(process.candidates().values) == 0
    while not process.proposes:
        rows = process.ask()
        shapes.append(len(rows))
        asked.append(rows)
        process.tell(torch.from_numpy(rows.numpy() @ matrix))
        assert len(shapes) <= 2
        if len(shapes) == 1:
            assert not len(process.candidates().residuals) and process.candidates().spectrum is None
    assert shapes == [CHUNK, 7]
    np.testing.assert_array_equal(torch.cat(asked).numpy(), np.eye(n))
    np.testing.assert_allclose(process.matrix.numpy(), matrix, rtol=0, atol=0)
    found = process.candidates()
    step = 8.0 / (n - 1)
    np.testing.assert_allclose(found.values, [5.0, 5.0 - step, -3.0], atol=1e-12)
    np.testing.assert_allclose(found.gaps, [step, step, step], rtol=1e-8)
    np.testing.assert_allclose(found.spectrum, np.linspace(5.0, -3.0, n), atol=1e-12)
    assert found.steps == n and found.norm == pytest.approx(5.0) and found.ends == ("top", "top", "bottom")
    assert (found.residuals < 1e-12).all()


def test_the_dense_solvers_residual_is_that_of_the_matrix_as_read() -> None:
    process = Dense(4, Wanted(top=1))
    read = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    read[3, 1] = 0.6  # the product of the last unit vector; that of the second does not know of it
    process.tell(read)
    symmetric = (read + read.T).numpy() / 2
    values, vectors = np.linalg.eigh(symmetric)
    found = process.candidates()
    assert found.values[0] == pytest.approx(values[-1])
    off = np.linalg.norm(vectors[:, -1] @ read.numpy() - values[-1] * vectors[:, -1])
    assert found.residuals[0] == pytest.approx(off) and off > 0.2


@pytest.mark.parametrize("top", [3.0, 0.5], ids=["positive dominant", "negative dominant"])
def test_power_iteration_finds_the_largest_eigenvalue_with_its_residual(top: float) -> None:
    values = np.array([top, 0.2, 0.1, 0.0, -1.0])
    matrix = rotated(values, seed=5)
    process = Power(5, 1e-6, lambda number: random_unit(5, 0, "power", number))
    assert process.n == 5 and not process.proposes and process.relative_residual == 0.0
    start = process.candidates()  # of one who is stopped before the first product
    assert start.values.tolist() == [0.0] and start.residuals.tolist() == [np.inf] and start.norm == start.steps == 0
    np.testing.assert_allclose(start.vectors.numpy(), process.ask().numpy())
    steps = 0
    while not process.proposes:
        v = process.ask().numpy()
        assert np.linalg.norm(v) == pytest.approx(1.0)
        process.tell(torch.from_numpy(v @ matrix))
        steps += 1
        found = process.candidates()
        theta = float(v[0] @ matrix @ v[0])
        if np.isfinite(found.residuals[0]):
            assert found.values[0] == pytest.approx(theta) and found.steps == steps
            assert found.residuals[0] == pytest.approx(np.linalg.norm(v[0] @ matrix - theta * v[0]), abs=1e-14)
            assert process.relative_residual == pytest.approx(found.residuals[0] / found.norm)
        assert steps < 500
    found = process.candidates()
    assert found.values[0] == pytest.approx(top, rel=1e-6)
    assert found.residuals[0] <= 1e-6 * max(top, 0.1 * found.norm)
    assert found.norm == pytest.approx(max(top, 1.0), rel=1e-6) and found.ends == ("top",) and np.isnan(found.gaps[0])
    assert found.spectrum is None and not found.searches


def test_power_iteration_takes_off_the_rounding_that_was_measured() -> None:
    process = Power(5, 1e-3, lambda number: random_unit(5, 0, "power", number))
    matrix = rotated(np.array([2.0, 0.2, 0.1, 0.0, -1.0]), seed=5)
    while not process.proposes:
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
        assert process.candidates().steps < 500
    residual = process.candidates().residuals[0]
    for rounding, left in ((0.0, 2e-3), (0.9e-3, 1.1e-3), (1.1e-3, 1.1e-3), (5e-3, 5e-3)):
        process.rounding = rounding
        assert bool(process.proposes) is bool(residual <= left), rounding


def test_power_iteration_goes_on_from_a_random_vector_where_a_product_vanishes() -> None:
    process = Power(5, 1e-6, lambda number: random_unit(5, 0, "power", number))
    process.tell(torch.zeros((1, 5)).double())
    np.testing.assert_allclose(process.ask()[0], random_unit(5, 0, "power", 2), rtol=0)
    assert process.proposes and process.candidates().values[0] == 0.0


def test_the_zero_test_reports_the_larger_of_two_random_products() -> None:
    matrix = rotated(np.array([1.0, 0.0, 0.0, 0.0, -2.0]), seed=5)
    process = ZeroTest(5, lambda number: random_unit(5, 0, "zero", number), torch.device("cpu"))
    rows = process.ask().numpy()
    assert rows.shape == (2, 5) and np.isnan(process.norm) and abs(rows[0] @ rows[1]) < 0.999
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0)
    process.tell(torch.from_numpy(rows @ matrix))
    assert process.norm == pytest.approx(np.linalg.norm(rows @ matrix, axis=1).max())


def test_a_single_direction_is_tested_once() -> None:
    process = ZeroTest(1, lambda number: random_unit(1, 0, "zero", number), torch.device("cpu"))
    assert process.ask().abs().tolist() == [[1.0]]
    process.tell(-3.0 * process.ask())
    assert process.norm == 3.0
