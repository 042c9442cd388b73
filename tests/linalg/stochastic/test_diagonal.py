"""The diagonal from random probes: unbiased, each entry's error right, the same products for trace and diagonal."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse.linalg import aslinearoperator
from torch import nn

import layerhess as lh
from layerhess.linalg.random_vectors import random_signs
from layerhess.linalg.stochastic.deflation import Deflation, orthonormal_rows
from layerhess.linalg.stochastic.diagonal import Diagonal, DiagonalSamples, FlatDiagonal
from layerhess.linalg.stochastic.methods import diagonal_process
from layerhess.linalg.stochastic.trace import TraceSamples
from references import dense
from references.probed import FAMILIES, driven, rank_three
from references.spectra import Matrix, rotated
from zoo import BY_NAME

N = 60
SEEDS = 300
signs = cache(lambda n, seed, number: random_signs(n, seed, "t", number))
METHODS = ("hutchinson", "deflated", "xdiag", "auto")
# Every family with every second method, in turn; the others are slow.
IN_TURN = [
    pytest.param(family, method, id=f"{family}-{method}", marks=() if (row + column) % 2 == 0 else pytest.mark.slow)
    for row, family in enumerate(FAMILIES)
    for column, method in enumerate(METHODS)
]


def leading(matrix: Matrix, m: int) -> Deflation:
    """The m leading eigenvectors, slightly off."""
    vectors = np.linalg.eigh(matrix)[1][:, -m:].T + 0.01 * np.random.default_rng(0).standard_normal((m, len(matrix)))
    q = orthonormal_rows(torch.from_numpy(vectors))
    return Deflation(q, q @ torch.from_numpy(matrix))


def estimate(matrix: Matrix, goal: Diagonal, seed: int, deflation: Deflation | None = None) -> tuple[FlatDiagonal, int]:
    n = len(matrix)
    process = diagonal_process(n, goal, lambda number: signs(n, seed, number), deflation=deflation)
    return driven(process, matrix)


@cache
def repeated(family: str, method: str) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Values and errors over all seeds (SEEDS, N), the t quantile of each, and the true diagonal (N,)."""
    matrix = FAMILIES[family](N)
    known = leading(matrix, 3) if method == "deflated" else None
    values, errors, quantiles = [], [], []
    for seed in range(SEEDS):
        if method == "auto":
            goal = Diagonal(rel=0.15, max_probes=55)
        else:
            goal = Diagonal(probes=36, method="auto" if method == "deflated" else method)
        found, _ = estimate(matrix, goal, seed, known)
        values.append(found.value.numpy())
        errors.append(found.standard_error.numpy())
        quantiles.append(stats.t.ppf(0.975, found.probes - 1))
    return np.array(values), np.array(errors), np.array(quantiles)[:, None], np.diag(matrix)


@pytest.mark.parametrize(("family", "method"), IN_TURN)
def test_the_interval_of_each_entry_covers_it(family: str, method: str) -> None:
    values, errors, quantiles, truth = repeated(family, method)
    covered = (np.abs(values - truth) <= quantiles * errors).mean(axis=0)
    assert covered.mean() >= 0.93 and covered.min() >= 0.87, (covered.mean(), covered.min())
    if method != "auto":
        bias = np.abs(values.mean(axis=0) - truth) / (values.std(axis=0) / np.sqrt(SEEDS))
        assert bias.max() <= 4.5  # of sixty entries
        assert np.sum(bias**2) / N < 2.0
    spread, claimed = np.linalg.norm(values.std(axis=0)), np.sqrt(np.mean(np.sum(errors**2, axis=1)))
    assert 0.9 * spread <= claimed <= 1.6 * spread


@pytest.mark.parametrize(("method", "factor"), [("deflated", 15.0), ("xdiag", 1000.0)])
def test_on_a_decaying_spectrum_the_variance_is_a_fraction_of_hutchinsons(method: str, factor: float) -> None:
    def variance(name: str) -> float:
        return float(repeated("fast decay", name)[0].var(axis=0).sum())

    assert variance(method) * factor <= variance("hutchinson")


def test_the_variance_of_an_entry_is_that_of_its_row() -> None:
    matrix = FAMILIES["indefinite"](N)
    predicted = (np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2) / 36
    ratios = repeated("indefinite", "hutchinson")[0].var(axis=0) / predicted
    assert ratios.mean() == pytest.approx(1.0, abs=0.05)
    assert np.abs(ratios - 1.0).max() <= 5.0 * np.sqrt(2.0 / SEEDS)


@pytest.mark.parametrize("m", [0, 2, 9])
def test_averaged_over_all_sign_vectors_the_diagonal_is_exact_whatever_the_basis(m: int) -> None:
    n = 9
    matrix = torch.from_numpy(rotated(np.random.default_rng(m).standard_normal(n), m))
    q = orthonormal_rows(torch.from_numpy(np.random.default_rng(1).standard_normal((m, n)))) if m else torch.empty(0, n)
    known = Deflation(q.double(), q.double() @ matrix)
    signs = torch.tensor([[1.0 if k >> i & 1 else -1.0 for i in range(n)] for k in range(2**n)]).double()
    samples = DiagonalSamples(known)
    x = known.project(signs)
    samples.add(signs, x, x @ matrix)
    torch.testing.assert_close(samples.mean, matrix.diagonal(), rtol=0, atol=1e-13)


def test_the_same_products_feed_a_trace_and_a_diagonal() -> None:
    matrix = FAMILIES["low rank and noise"](N)
    known = leading(matrix, 2)
    together, singly = (TraceSamples(known), DiagonalSamples(known)), (TraceSamples(known), DiagonalSamples(known))
    v = torch.stack([random_signs(N, 0, "t", k) for k in range(20)])
    x = known.project(v)
    ax = x @ torch.from_numpy(matrix)
    for samples in together:
        samples.add(v, x, ax)
    for rows in zip(v, x, ax, strict=True):
        for samples in singly:
            samples.add(*rows)
    trace, diagonal = together[0].estimate(), together[1].estimate()
    assert trace.method == diagonal.method == "deflated" and trace.probes == diagonal.probes == 20
    assert float(diagonal.value.sum()) == pytest.approx(trace.value, rel=1e-12)  # v'PAPv both times
    assert singly[0].mean == pytest.approx(trace.value)
    assert singly[0].standard_error == pytest.approx(trace.standard_error)
    assert singly[0].nuclear == pytest.approx(together[0].nuclear)
    torch.testing.assert_close(singly[1].mean, diagonal.value)
    torch.testing.assert_close(singly[1].standard_error, diagonal.standard_error)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "auto"])
@pytest.mark.parametrize("n", [1, 2, 16])
def test_an_operator_no_larger_than_the_probes_is_read_exactly(n: int, method: str) -> None:
    matrix = rotated(np.arange(1.0, n + 1), n)
    found, products = estimate(matrix, Diagonal(method=method), seed=0)
    assert products == n and found.method == "exact" and found.probes == 0 and found.converged
    np.testing.assert_array_equal(found.value.numpy(), np.diag(matrix))
    assert not found.standard_error.any()


@pytest.mark.parametrize("method", ["xdiag", "auto"])
def test_a_low_rank_operator_is_known_exactly_once_its_range_is(method: str) -> None:
    matrix = rank_three(200)
    found, products = estimate(matrix, Diagonal(rel=1e-6, method=method), seed=1)
    np.testing.assert_allclose(found.value.numpy(), np.diag(matrix), rtol=0, atol=1e-13)
    assert found.converged and products <= 60 and float(found.standard_error.max()) < 1e-12


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "auto"])
def test_a_zero_matrix_has_a_zero_diagonal_after_sixteen_probes(method: str) -> None:
    found, _ = estimate(np.zeros((300, 300)), Diagonal(method=method), seed=0)
    assert found.probes == 16 and found.converged
    assert not found.value.any() and not found.standard_error.any()


def test_the_error_asked_for_is_reached_in_the_euclidean_norm() -> None:
    matrix = FAMILIES["identity-like"](1000)
    for rel in (0.04, 0.02):
        found, _ = estimate(matrix, Diagonal(rel=rel, method="hutchinson"), seed=1)
        assert found.converged and found.method == "hutchinson"
        assert 0.4 * rel < float(found.standard_error.norm() / found.value.norm()) <= rel
        assert np.linalg.norm(found.value.numpy() - np.diag(matrix)) <= 1.3 * rel * np.linalg.norm(np.diag(matrix))
    short, products = estimate(FAMILIES["indefinite"](300), Diagonal(method="hutchinson", max_probes=40), seed=1)
    assert products == 40 and not short.converged and "above the 5 %" in short.status


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rel": 0.0}, "rel is 0.0"),
        ({"rel": float("inf")}, "rel is inf"),
        ({"probes": 1}, "probes is 1"),
        ({"probes": 3, "method": "xdiag"}, "probes is 3"),
        ({"method": "xtrace"}, "unknown method 'xtrace'"),
        ({"max_probes": 0}, "max_probes is 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused_in_words(options: dict[str, object], sentence: str) -> None:
    for call in (lambda: lh.Diagonal(**options), lambda: lh.diagonal(np.eye(3), **options)):
        with pytest.raises(lh.InputError, match=sentence) as caught:
            call()
        assert caught.value.where and caught.value.what_to_do


def test_arrays_and_foreign_operators_have_one_flat_diagonal() -> None:
    matrix = rotated(np.arange(1.0, 13.0), 0)
    for op in (matrix, aslinearoperator(matrix)):
        found = lh.diagonal(op)
        assert list(found.value) == list(found.standard_error) == ["diagonal"]
        np.testing.assert_allclose(found.value["diagonal"].numpy(), np.diag(matrix), rtol=1e-14)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag", "auto"])
def test_the_diagonal_of_a_network_is_that_of_its_dense_hessian(method: str) -> None:
    case = BY_NAME["mlp-tanh-mse"]
    built = case.build(torch.float64, 0)
    reference = dense.of_case("mlp-tanh-mse")
    hessian = lh.Hessian(built.objective())
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    found = lh.diagonal(hessian, method=method, probes=40, seed=2)
    truth = np.diag(reference.matrix)
    for name, place in reference.places.items():
        assert found.value[name].shape == found.standard_error[name].shape == before[name].shape
        off = np.abs(found.value[name].numpy().reshape(-1) - truth[place])
        assert (off <= 6.0 * found.standard_error[name].numpy().reshape(-1) + 1e-9 * reference.norm).all()
    name = hessian.block_names[0]
    exact = lh.diagonal(hessian.block(name), probes=1 + hessian.block(name).shape[0])
    assert exact.method == "exact" and list(exact.value) == [name]
    np.testing.assert_allclose(
        exact.value[name].numpy().reshape(-1), np.diag(reference.block([name])), rtol=0, atol=1e-9 * reference.norm
    )
    assert all(torch.equal(p, before[name]) for name, p in built.model.named_parameters())


def test_a_float32_network_gives_float64_estimates() -> None:
    torch.manual_seed(0)
    data = (torch.randn(12, 3), torch.randn(12, 1))
    found = lh.diagonal(lh.Hessian(lh.Objective(nn.Linear(3, 1), data, nn.MSELoss())))
    assert all(part.dtype == torch.float64 for part in found.value.values())
    design = torch.cat([data[0], torch.ones(12, 1)], dim=1).double()
    want = 2.0 * (design**2).mean(dim=0)
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in found.value.values()]), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("others", "wider"), [(1, 1.807), (2, 1.134), (4, 1.0), (8, 1.0)])
def test_signs_that_agree_by_luck_widen_the_error(others: int, wider: float) -> None:
    """Of 16 samples 1 + 5 s, with s = -1 in so many: for one, the mean is 7.0 plain errors off, with P = 5e-4."""
    samples = DiagonalSamples(Deflation.none(2))
    matrix = torch.tensor([[1.0, 5.0], [5.0, 3.0]]).double()
    s = torch.where(torch.arange(16) < others, -1.0, 1.0).double()
    for v in torch.stack([torch.ones(16).double(), s], dim=1):
        samples.add(v, v, matrix @ v)
    plain = np.std(1.0 + 5.0 * s.numpy(), ddof=1) / 4.0
    assert samples.standard_error[0] == pytest.approx(wider * plain, rel=1e-3)
    assert abs(samples.mean[0] - 1.0) < 4.5 * samples.standard_error[0]
