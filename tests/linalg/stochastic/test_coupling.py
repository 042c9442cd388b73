"""Couplings between blocks from column products, on matrices whose couplings can be read off."""

from __future__ import annotations

import numpy as np
import pytest

from layerhess.errors import InputError
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.linalg.stochastic.coupling import Coupling, CouplingSamples, exact_coupling
from references.spectra import FAMILIES, Matrix, rotated

SIZES = (12, 30, 7, 51)
NAMES = ("a", "b", "c", "d")


def squared_norms(matrix: Matrix, sizes: tuple[int, ...] = SIZES) -> Matrix:
    """||H_cb||_F^2 of all blocks, entry by entry."""
    edges = np.cumsum([0, *sizes])
    return np.array(
        [
            [np.sum(matrix[edges[c] : edges[c + 1], edges[b] : edges[b + 1]] ** 2) for b in range(len(sizes))]
            for c in range(len(sizes))
        ]
    )


def sampled(
    matrix: Matrix, probes: int, seed: int, sizes: tuple[int, ...] = SIZES, exact: tuple[int, ...] = ()
) -> CouplingEstimate:
    """Drive the accumulator with a NumPy matrix; the blocks in ``exact`` are read column by column."""
    rng = np.random.default_rng(seed)
    edges = np.cumsum([0, *sizes])
    samples = CouplingSamples(sizes)

    def squares(column: Matrix) -> list[float]:
        return [float(np.sum(column[edges[c] : edges[c + 1]] ** 2)) for c in range(len(sizes))]

    for b, size in enumerate(sizes):
        h = matrix[:, edges[b] : edges[b + 1]]
        if b in exact:
            for column in h.T:
                samples.add_exact(b, squares(column))
            continue
        for _ in range(probes):
            samples.add(b, squares(h @ rng.choice([-1.0, 1.0], size)))
    return samples.result([f"block {b}" for b in range(len(sizes))])


def share_of(squares: Matrix) -> float:
    return float(1.0 - np.trace(squares) / squares.sum())


@pytest.fixture(scope="module")
def matrix() -> Matrix:
    made = rotated(FAMILIES["network-like"](sum(SIZES), np.random.default_rng(4)), seed=4)
    weak = np.ones(sum(SIZES))
    weak[:12] = 0.1  # a block that is coupled less
    return made * weak[:, None] * weak


# -- exact -------------------------------------------------------------------------------------------------------------


def test_the_two_layer_linear_net_of_the_concepts_page_by_hand() -> None:
    """f = V W x with V = [2, 1], W = [[2, 3], [4, 1]], x = (1, 1), loss (f - 14)^2; parameters W (row by row), then V.

    f = 2 (2 + 3) + (4 + 1) = 15, so the residual is 1. df/dW_ij = V_i x_j = (2, 2, 1, 1), df/dV_i = (W x)_i = (5, 5),
    d2f / dW_ij dV_i = x_j = 1. Hessian: 2 grad grad' + 2 * 1 * second derivatives.
    """
    gradient = np.array([2.0, 2.0, 1.0, 1.0, 5.0, 5.0])
    mixed = np.zeros((6, 6))
    mixed[[0, 1], 4] = mixed[[2, 3], 5] = 1.0
    hessian = 2.0 * np.outer(gradient, gradient) + 2.0 * 1.0 * (mixed + mixed.T)
    np.testing.assert_allclose(np.linalg.eigvalsh(hessian)[-1], 60 + 2 * np.sqrt(962), rtol=1e-12)
    # H_WW = 2 g g' with |g|^2 = 10; H_VV = 2 (5, 5)(5, 5)'; H_WV: 22 and 20 where V_1 = 2, 10 and 12 where V_2 = 1.
    ww, vv, wv = 20.0**2, 100.0**2, 2 * (22.0**2 + 20.0**2) + 2 * (10.0**2 + 12.0**2)
    found = exact_coupling(("W", "V"), (4, 2), hessian)
    np.testing.assert_allclose(found.value, np.sqrt([[ww, wv], [wv, vv]]), rtol=1e-14)
    assert found.off_diagonal_share == pytest.approx(2 * wv / (ww + vv + 2 * wv), rel=1e-14)
    assert not found.standard_error.any() and found.share_error == 0.0 and found.probes == 0
    assert found.blocks == ("W", "V") and "every column was read" in found.status


def test_exact_columns_give_the_norms_of_the_blocks(matrix: Matrix) -> None:
    want = squared_norms(matrix)
    for found in (exact_coupling(NAMES, SIZES, matrix), sampled(matrix, 0, 0, exact=(0, 1, 2, 3))):
        np.testing.assert_allclose(found.value, np.sqrt(want), rtol=1e-12)
        assert found.off_diagonal_share == pytest.approx(share_of(want), rel=1e-12)
        assert not found.standard_error.any() and found.share_error == 0.0


def test_an_exact_block_stands_alone_against_a_sampled_one(matrix: Matrix) -> None:
    found = sampled(matrix, 5, 1, exact=(1,))
    want = np.sqrt(squared_norms(matrix))
    np.testing.assert_allclose(found.value[1], want[1], rtol=1e-12)
    assert not found.standard_error[1].any() and not found.standard_error[:, 1].any()
    assert (found.standard_error[np.ix_([0, 2, 3], [0, 2, 3])] > 0).all() and found.probes == 5
    assert "1 small ones" in found.status or "read whole" in found.status


def test_a_block_of_which_only_some_columns_were_read_is_not_called_exact(matrix: Matrix) -> None:
    samples = CouplingSamples(SIZES)
    samples.add_exact(2, [1.0, 2.0, 3.0, 4.0])  # one of seven
    found = samples.result(NAMES)
    assert np.isnan(found.value).all() and np.isnan(found.off_diagonal_share)
    assert "not all columns" in found.status


def test_a_missing_side_is_taken_from_the_other_block(matrix: Matrix) -> None:
    samples = CouplingSamples((1, 1))
    samples.add_exact(0, [4.0, 9.0])
    found = samples.result(("a", "b"))
    np.testing.assert_array_equal(found.value, [[2.0, 3.0], [3.0, np.nan]])
    assert np.isnan(found.off_diagonal_share)


def test_zero_blocks_and_a_zero_matrix() -> None:
    found = sampled(np.zeros((9, 9)), 4, 0, sizes=(4, 5))
    assert not found.value.any() and not found.standard_error.any()
    assert found.off_diagonal_share == 0.0 and found.share_error == 0.0
    diagonal = sampled(np.diag(np.arange(9.0)), 4, 0, sizes=(4, 5))
    assert diagonal.off_diagonal_share == 0.0 and diagonal.value[0, 1] == 0.0 and diagonal.standard_error[0, 1] == 0.0


# -- statistics --------------------------------------------------------------------------------------------------------


def test_squared_norms_are_unbiased_and_intervals_cover(matrix: Matrix) -> None:
    want, seeds, probes = squared_norms(matrix), 300, 16
    found = [sampled(matrix, probes, seed) for seed in range(seeds)]
    squares = np.array([f.value**2 for f in found])
    off = (squares.mean(axis=0) - want) / (squares.std(axis=0, ddof=1) / np.sqrt(seeds))
    assert np.abs(off).max() < 4.0
    covered = np.array([np.abs(f.value - np.sqrt(want)) <= 2.13 * f.standard_error for f in found])
    assert covered.mean() >= 0.90
    # Neither far too wide: the stated errors are the scatter over seeds.
    stated = np.sqrt(np.mean([f.standard_error**2 for f in found], axis=0))
    ratio = stated / np.std([f.value for f in found], axis=0)
    assert ratio.min() > 0.8 and ratio.max() < 1.5  # from 16 vectors they allow for squares that are few
    shares = np.array([f.off_diagonal_share for f in found])
    errors = np.array([f.share_error for f in found])
    assert np.mean(np.abs(shares - share_of(want)) <= 2.13 * errors) >= 0.90
    assert 0.8 < np.sqrt(np.mean(errors**2)) / shares.std() < 1.25
    assert abs(shares.mean() - share_of(want)) < 0.25 * shares.std()  # the bias of a ratio, against its scatter


def test_both_sides_of_a_pair_count(matrix: Matrix) -> None:
    """The mean of two independent sides has a smaller error than one of them."""
    both = sampled(matrix, 16, 3)
    assert (both.value == both.value.T).all() and (both.standard_error == both.standard_error.T).all()
    one, other = CouplingSamples((40, 40)), CouplingSamples((40, 40))
    for i in range(64):
        square = 1.0 + 2.0 * (i % 2)
        one.add(0, [1.0, square])
        other.add(0, [1.0, square])
        other.add(1, [square, 1.0])
    assert one.result(("a", "b")).value[0, 1] == other.result(("a", "b")).value[0, 1] == pytest.approx(np.sqrt(2.0))
    error_one, error_both = (s.result(("a", "b")).standard_error[0, 1] for s in (one, other))
    expected = np.sqrt(64 / 63 / 64) / (2 * np.sqrt(2))  # of the root of a mean of 64, each with variance 64/63
    assert error_one == pytest.approx(expected, rel=0.02)
    assert error_both == pytest.approx(error_one / np.sqrt(2), rel=0.02)


# The singular values of a coupling, and how often eight vectors a side were off by more than six errors, as plain
# standard errors and without known directions: 0.2 to 1.5 %, and 10 % where three parameters share one direction.
COUPLINGS = {
    "one": np.eye(1, 12)[0], "two": np.array([1.0, 1.0, *np.zeros(10)]), "decaying": 0.6 ** np.arange(12),
    "flat": np.ones(12), "one far out": np.array([1.0, *np.full(11, 0.2)]),
}  # fmt: skip


def columns_of(part: Matrix, known: Matrix, rng: np.random.Generator, probes: int = 8) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Gram matrix of a coupling's products with vectors of random signs along known directions, and those signs."""
    plain, along = (rng.choice([-1.0, 1.0], (probes, size)) for size in (part.shape[1], len(known)))
    vectors = plain - plain @ known.T @ known + along @ known
    return vectors @ part.T @ part @ vectors.T, along


@pytest.mark.parametrize("draws", [600, pytest.param(1500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("directions", [0, 4])
@pytest.mark.parametrize("kind", [*COUPLINGS, "shared by three"])
def test_six_errors_of_few_vectors_cover(kind: str, directions: int, draws: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0][:, :12] for n in (12, 40))
    part = (left * COUPLINGS.get(kind, COUPLINGS["one"])) @ right.T
    if kind == "shared by three":
        part[:, :3], part[:, 3:] = left[:, :1], 0.0
    true = float(np.linalg.norm(part))
    off = np.zeros((draws, 2))
    for draw in range(draws):
        samples = CouplingSamples((12, 40))
        for block, matrix, q in ((0, part.T, left[:, :directions].T), (1, part, right[:, :directions].T)):
            gram, signs = columns_of(matrix, q, rng)
            # Beside the coupling of both, one that has a single side: of the second block with itself.
            grams = np.stack([gram, gram]) if block == 1 else np.stack([np.eye(8), gram])
            samples.add_together(block, grams, signs[:, :4])
        found = samples.result(("a", "b"))
        for i, place in enumerate(((0, 1), (1, 1))):
            error = found.standard_error[place] + 1e-12
            off[draw, i] = abs(found.value[place] - true) / error
    assert (off[:, 0] > 6.0).mean() <= 2e-3 and (off[:, 1] > 6.0).mean() <= (8e-3 if directions == 0 else 6e-3)


def test_known_parts_have_no_error() -> None:
    samples = CouplingSamples((20, 20))
    for block in (0, 1):
        grams = np.zeros((2, 8, 8))
        grams[1 - block] = 4.0 * np.eye(8)
        samples.add_together(block, grams, constant=[9.0, 0.0] if block == 0 else [0.0, 16.0])
    found = samples.result(("a", "b"))
    np.testing.assert_allclose(found.value, [[3.0, 2.0], [2.0, 4.0]])
    assert not found.standard_error.any()


def test_one_probe_has_no_error(matrix: Matrix) -> None:
    found = sampled(matrix, 1, 0)
    assert np.isinf(found.standard_error).all() and np.isinf(found.share_error)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [1, 0, -3, 2.5, True, "16", None])
def test_probes_that_cannot_be_meant(probes: object) -> None:
    with pytest.raises(InputError, match="probes is") as caught:
        Coupling(probes=probes)  # type: ignore[arg-type]
    assert "integer >= 2" in caught.value.what_to_do


def test_a_matrix_of_another_size() -> None:
    with pytest.raises(InputError, match="8 parameters together"):
        exact_coupling(("a", "b"), (4, 4), np.eye(6))


@pytest.mark.parametrize("squares", [[1.0], [1.0, -2.0], [1.0, np.nan]])
def test_squares_that_are_none(squares: list[float]) -> None:
    with pytest.raises(InputError, match="one number >= 0 for each block"):
        CouplingSamples((3, 3)).add(0, squares)
