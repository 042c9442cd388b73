"""The trace from random probes: unbiased, its interval covers, its variance is what the method promises."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

import layerhess as lh
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.estimates import TraceEstimate
from layerhess.linalg.random_vectors import random_signs, random_unit
from layerhess.linalg.stochastic.deflation import Deflation, orthonormal_rows
from layerhess.linalg.stochastic.hutchinson import Hutchinson
from layerhess.linalg.stochastic.methods import trace_process
from layerhess.linalg.stochastic.probe_statistics import Running, half_width
from layerhess.linalg.stochastic.trace import Trace, TraceSamples
from layerhess.linalg.stochastic.xtrace import XTrace
from references import dense
from references.probed import FAMILIES, driven, rank_three
from references.spectra import Matrix, rotated
from zoo import BY_NAME

N = 90
SEEDS = 300
signs = cache(lambda n, seed, number: random_signs(n, seed, "t", number))
units = cache(lambda n, seed, number: random_unit(n, seed, "t", number))
METHODS = ("hutchinson", "deflated", "hutch++", "xtrace", "auto")
# Every family with every second method, in turn; the others are slow.
IN_TURN = [
    pytest.param(family, method, id=f"{family}-{method}", marks=() if (row + column) % 2 == 0 else pytest.mark.slow)
    for row, family in enumerate(FAMILIES)
    for column, method in enumerate(METHODS)
]


@cache
def by_lanczos(family: str) -> Deflation:
    """What a finished eigenvalue search leaves behind."""
    matrix = FAMILIES[family](N)
    process = Lanczos(N, Wanted(top=1), 1e-3, lambda number: random_unit(N, 0, "t", number))
    while not process.proposes:
        process.tell(process.ask() @ torch.from_numpy(matrix))
    return Deflation(process.basis.q, process.basis.w)


def estimate(matrix: Matrix, goal: Trace, seed: int, deflation: Deflation | None = None) -> tuple[TraceEstimate, int]:
    n = len(matrix)
    process = trace_process(
        n,
        goal,
        lambda number: signs(n, seed, number),
        lambda number: units(n, seed, number),
        deflation=deflation,
    )
    return driven(process, matrix)


@cache
def repeated(family: str, method: str) -> tuple[list[TraceEstimate], float]:
    """Estimates over all seeds, 48 products each ("auto": as many as 5 % call for, at most 90), and the truth."""
    matrix = FAMILIES[family](N)
    found = []
    for seed in range(SEEDS):
        if method == "auto":
            goal, known = Trace(rel=0.05, max_probes=90), None
        elif method == "deflated":
            goal, known = Trace(probes=32), by_lanczos(family)
        else:
            goal, known = Trace(probes=48, method=method), None
        found.append(estimate(matrix, goal, seed, known)[0])
    return found, float(np.trace(matrix))


@pytest.mark.parametrize(("family", "method"), IN_TURN)
def test_the_interval_covers_the_trace_and_the_mean_is_unbiased(family: str, method: str) -> None:
    found, truth = repeated(family, method)
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert covered >= 0.9, f"{covered:.3f}"
    values = np.array([e.value for e in found])
    if method != "auto":  # stopping by the variance seen is not exactly unbiased, fixed numbers are
        assert abs(values.mean() - truth) <= 4.0 * values.std() / np.sqrt(SEEDS)
    errors = np.sqrt(np.mean([e.standard_error**2 for e in found]))
    least = 0.6 if method == "auto" else 0.85  # whoever stops when the error looks small, stops on small-looking errors
    assert least * values.std() <= errors <= 1.6 * values.std(), (errors, values.std())


@pytest.mark.parametrize(
    ("method", "factor"), [("deflated", 100.0), ("hutch++", 400.0), ("xtrace", 1000.0), ("auto", 100.0)]
)
def test_on_a_decaying_spectrum_the_variance_is_a_fraction_of_hutchinsons(method: str, factor: float) -> None:
    def variance(name: str) -> float:
        return float(np.var([e.value for e in repeated("fast decay", name)[0]]))

    assert variance(method) * factor <= variance("hutchinson")


def test_the_variance_of_a_plain_sample_is_that_of_the_formula() -> None:
    matrix = FAMILIES["indefinite"](N)
    predicted = 2.0 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 48
    measured = np.var([e.value for e in repeated("indefinite", "hutchinson")[0]])
    assert measured == pytest.approx(predicted, rel=4.0 * np.sqrt(2.0 / SEEDS))


@pytest.mark.parametrize("m", [0, 1, 7])
def test_what_is_known_and_what_is_left_add_up_whatever_the_basis(m: int) -> None:
    """Averaged over all sign vectors of a small space the two identities hold exactly, for a basis of no merit."""
    n = 9
    rng = np.random.default_rng(m)
    matrix = torch.from_numpy(rotated(rng.standard_normal(n), m))
    q = orthonormal_rows(torch.from_numpy(rng.standard_normal((m, n)))) if m else torch.empty((0, n)).double()
    known = Deflation(q, q @ matrix)
    signs = torch.tensor([[1.0 if k >> i & 1 else -1.0 for i in range(n)] for k in range(2**n)]).double()
    samples = TraceSamples(known)
    samples.add(signs, known.project(signs), known.project(signs) @ matrix)
    assert samples.mean == pytest.approx(float(matrix.trace()), abs=1e-12)
    p = torch.eye(n).double() - q.T @ q
    torch.testing.assert_close(known.diagonal(), (matrix - p @ matrix @ p).diagonal(), rtol=0, atol=1e-13)
    assert known.trace == pytest.approx(float((matrix - p @ matrix @ p).trace()), abs=1e-12)


@pytest.mark.parametrize("method", ["hutch++", "xtrace", "auto"])
def test_a_low_rank_operator_is_known_exactly_once_its_range_is(method: str) -> None:
    found, products = estimate(rank_three(200), Trace(rel=1e-6, method=method), seed=1)
    assert found.value == pytest.approx(6.0, abs=1e-12)
    assert found.standard_error <= 1e-12 and found.converged
    assert products <= 60


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "auto"])
@pytest.mark.parametrize("n", [1, 2, 15, 16])
def test_an_operator_no_larger_than_the_probes_is_read_exactly(n: int, method: str) -> None:
    matrix = rotated(np.arange(1.0, n + 1), n)
    found, products = estimate(matrix, Trace(method=method), seed=0)
    assert products == n
    assert found.value == pytest.approx(n * (n + 1) / 2, rel=1e-13)
    assert found.standard_error == 0.0 < found.rounding <= 1e-14 * n * (n + 1) / 2
    # What is left is rounding, and the interval holds it.
    assert found.low <= n * (n + 1) / 2 <= found.high
    assert found.high - found.low == pytest.approx(2.0 * found.rounding, rel=0.5, abs=0.0)
    assert (found.method, found.probes, found.converged) == ("exact", 0, True)


def test_reading_everything_is_chosen_where_probes_would_cost_more() -> None:
    found, products = estimate(FAMILIES["zero trace"](90), Trace(method="hutchinson"), seed=0)
    assert found.method == "exact" and products == 16 + 90
    assert abs(found.value) < 1e-12


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "auto"])
def test_a_zero_matrix_has_trace_zero_after_sixteen_probes(method: str) -> None:
    found, products = estimate(np.zeros((300, 300)), Trace(method=method), seed=0)
    assert (found.value, found.standard_error, found.converged) == (0.0, 0.0, True)
    assert found.probes == 16 and products <= 32


def test_nothing_stops_before_sixteen_probes_and_the_error_decides_after() -> None:
    easy = estimate(FAMILIES["identity-like"](400), Trace(rel=0.5), seed=0)[0]
    assert easy.probes == 16 and easy.converged and easy.standard_error < 0.5 * easy.value
    matrix = rotated(np.random.default_rng(3).standard_normal(400) + 0.5, 3)
    for rel in (0.03, 0.015):
        found = estimate(matrix, Trace(rel=rel, method="hutchinson"), seed=4)[0]
        assert found.converged and found.method == "hutchinson"
        assert found.probes > 16 and 0.7 * rel < found.standard_error / found.value <= rel


def test_products_that_run_out_are_said_so() -> None:
    found, products = estimate(FAMILIES["indefinite"](200), Trace(rel=1e-3, method="hutchinson", max_probes=50), seed=0)
    assert products == found.probes == 50
    assert not found.converged and "above the" in found.status and "allow more probes" in found.status


def test_a_trace_that_cancels_is_judged_by_the_size_of_the_eigenvalues() -> None:
    matrix = FAMILIES["zero trace"](1000)
    goal = Trace(rel=0.05, method="hutchinson", max_probes=999)
    found, _ = estimate(matrix, goal, seed=0)
    nuclear = np.abs(np.linalg.eigvalsh(matrix)).sum()
    assert found.converged and "small against" in found.status
    assert found.standard_error <= 0.05 * 0.1 * nuclear
    assert abs(found.value) <= 4.0 * found.standard_error
    absolute = estimate(matrix, Trace(rel=0.001, absolute=30.0, method="hutchinson"), seed=0)[0]
    assert absolute.converged and 0.001 * abs(absolute.value) < absolute.standard_error <= 30.0


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_estimated_size_is_of_the_order_of_the_nuclear_norm(family: str) -> None:
    matrix = FAMILIES[family](N)
    process = Hutchinson(N, Trace(probes=64), lambda number: random_signs(N, 0, "t", number))
    driven(process, matrix)
    ratio = process.samples.nuclear / np.abs(np.linalg.eigvalsh(matrix)).sum()
    assert 0.3 <= ratio <= 1.3, ratio


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "auto"])
def test_whoever_is_interrupted_says_what_there_is(method: str) -> None:
    n, truth = 300, 150.0
    matrix = torch.from_numpy(rotated(np.linspace(0.0, 1.0, n), 0))
    goal = Trace(rel=1e-4, method=method, max_probes=200)
    process = trace_process(n, goal, lambda k: signs(n, 0, k), lambda k: units(n, 0, k))
    errors = []
    while not process.done:
        process.tell(process.ask() @ matrix)
        found = process.estimate()
        assert found.low <= found.value <= found.high and not found.converged
        assert abs(found.value - truth) <= 5.0 * found.standard_error
        errors.append(found.standard_error)
    assert np.isfinite(errors[-1]) and errors[-1] <= min(errors)


@pytest.mark.parametrize("probes", [2, 7, 33])
def test_fixed_probes_are_spent_exactly(probes: int) -> None:
    for method in ("hutchinson", "auto"):
        found, products = estimate(FAMILIES["slow decay"](N), Trace(probes=probes, method=method), seed=0)
        assert found.probes == products == probes


def test_the_seed_decides_and_signs_are_independent_of_directions() -> None:
    matrix = FAMILIES["slow decay"](N)
    first, again, other = (estimate(matrix, Trace(probes=20), seed)[0].value for seed in (3, 3, 4))
    assert first == again != other
    signs = torch.stack([random_signs(1000, 0, "t", k) for k in range(50)])
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    units = torch.stack([random_unit(1000, 0, "t", k) for k in range(50)])
    assert abs(float((signs * units.sign()).mean())) < 4.0 / np.sqrt(50_000)
    gram = signs @ signs.T / 1000 - torch.eye(50)
    assert float(gram.abs().max()) < 5.0 / np.sqrt(1000)


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    """Against a QR factorisation made anew without each vector."""
    matrix = FAMILIES["slow decay"](60)
    process = XTrace(60, Trace(probes=20), lambda number: random_unit(60, 0, "t", number))
    driven(process, matrix)
    terms = process.terms().numpy()
    omega = np.stack([random_unit(60, 0, "t", k).numpy() for k in range(10)], axis=1)
    for i in range(10):
        q = np.linalg.qr(matrix @ np.delete(omega, i, axis=1))[0]
        x = omega[:, i] - q @ (q.T @ omega[:, i])
        want = np.trace(q.T @ matrix @ q) + (60 - 9) * (x @ matrix @ x) / (x @ x)
        assert terms[i] == pytest.approx(want, rel=1e-10)


def test_running_moments_are_those_of_numpy_even_far_from_zero() -> None:
    data = 1e9 + np.random.default_rng(0).standard_normal((40, 3))
    scalar, vector = Running(0.0), Running(torch.zeros(3).double())
    assert scalar.standard_error == np.inf
    for row in data:
        scalar.add(float(row[0]))
        vector.add(torch.from_numpy(row))
    np.testing.assert_allclose(vector.mean.numpy(), data.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(vector.variance.numpy(), data.var(axis=0, ddof=1), rtol=1e-6)
    assert scalar.standard_error == pytest.approx(stats.sem(data[:, 0]), rel=1e-6)
    low, high = stats.t.interval(0.95, 39, 0.0, 2.0)
    assert half_width(2.0, 40) == pytest.approx(high) == pytest.approx(-low)
    assert half_width(1.0, 1) == np.inf and half_width(0.0, 1) == 0.0


REFUSED = [
    ({"rel": 0.0}, "rel is 0.0"),
    ({"rel": -0.1, "absolute": 1.0}, "rel is -0.1"),
    ({"rel": float("nan")}, "rel is nan"),
    ({"rel": True}, "rel is True"),
    ({"absolute": 0.0}, "absolute is 0.0"),
    ({"absolute": float("nan")}, "absolute is nan"),
    ({"probes": 1}, "probes is 1"),
    ({"probes": 2.5}, "probes is 2.5"),
    ({"probes": 5, "method": "hutch++"}, "probes is 5"),
    ({"method": "exact"}, "unknown method 'exact'"),
    ({"max_probes": 1}, "max_probes is 1"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=str)
def test_options_that_cannot_be_meant_are_refused_in_words(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(lh.InputError, match=sentence) as caught:
        lh.Trace(**options)
    assert caught.value.where and caught.value.what_to_do
    with pytest.raises(lh.InputError, match=sentence):
        lh.trace(np.eye(3), **options)
    lh.Trace(rel=0.0, absolute=1.0)


def test_a_basis_that_is_none_is_refused() -> None:
    with pytest.raises(lh.InputError, match="not orthonormal"):
        Deflation(torch.ones(2, 5).double(), torch.ones(2, 5).double())
    with pytest.raises(lh.InputError, match="its products"):
        Deflation(torch.eye(5).double(), torch.ones(2, 5).double())


def test_operators_that_do_not_multiply_are_refused() -> None:
    with pytest.raises(lh.InputError, match="square shape and matvec"):
        lh.trace([[1.0]])
    with pytest.raises(lh.InputError, match="NaN or infinite"):
        lh.trace(np.full((3, 3), np.nan))
    with pytest.raises(lh.InputError, match="seed is -1"):
        lh.trace(np.eye(3), seed=-1)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "auto"])
@pytest.mark.parametrize("name", ["mlp-tanh-mse"])
def test_the_trace_of_a_network_is_that_of_its_dense_hessian(name: str, method: str) -> None:
    case = BY_NAME[name]
    built = case.build(torch.float64, 0)
    reference = dense.of_case(name)
    hessian = lh.Hessian(built.objective())
    truth = float(np.trace(reference.matrix))
    found = lh.trace(hessian, rel=0.01, method=method, max_probes=60, seed=2)
    assert abs(found.value - truth) <= 5.0 * found.standard_error + 1e-9 * abs(truth)
    for block in hessian.block_names:
        truth = float(np.trace(reference.block([block])))
        exact = lh.trace(hessian.block(block), probes=hessian.block(block).shape[0] + 1)
        assert exact.method == "exact"
        assert exact.value == pytest.approx(truth, rel=1e-9, abs=1e-9 * reference.norm)
