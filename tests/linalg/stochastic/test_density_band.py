"""Band, grid, bandwidth and status of a density, number by number, from eigenvalues and draws that are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from layerhess.linalg.random_vectors import random_unit
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, check_moments, exact_density
from layerhess.linalg.stochastic.density_grid import bandwidth_of, compressed, gaussians, grid_of, quadrature
from layerhess.linalg.stochastic.divergence import Mass, distance, jensen_shannon
from references.spectra import Matrix, rotated

VALUES = np.array([-1.0, 0.5, 2.0, 2.5, 6.0])
MATRIX = rotated(VALUES, seed=4)
PROBES = 6
SIGMA = 0.4


def draw(number: int) -> torch.Tensor:
    return random_unit(5, 0, "band", number)


def run(options: Density, steps: int = 99, matrix: Matrix = MATRIX) -> StochasticLanczos:
    process = StochasticLanczos(len(matrix), options, lambda number: random_unit(len(matrix), 0, "band", number))
    while not process.done and steps:
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
        steps -= 1
    return process


def weights(probes: int) -> Matrix:
    """(probes, 5): what each draw sees of every eigenvalue."""
    _, vectors = np.linalg.eigh(MATRIX)
    return (torch.stack([draw(i) for i in range(probes)]).numpy() @ vectors) ** 2


def test_moments_and_their_errors_are_those_of_the_draws() -> None:
    found = run(Density(probes=PROBES)).result()
    first, second = weights(PROBES) @ VALUES, weights(PROBES) @ VALUES**2
    assert found.mean == pytest.approx(first.mean()) and found.second == pytest.approx(second.mean())
    assert found.mean_error == pytest.approx(first.std(ddof=1) / math.sqrt(PROBES))
    assert found.second_error == pytest.approx(second.std(ddof=1) / math.sqrt(PROBES))
    assert run(Density(probes=PROBES)).magnitude == pytest.approx((weights(PROBES) @ np.abs(VALUES)).mean())


@pytest.mark.parametrize("probes", [2, PROBES])
def test_the_band_is_students_interval_of_the_logarithm_widened_by_the_last_two_steps(probes: int) -> None:
    """Quadratures of three, two and one steps, made here from whole bases of Krylov spaces."""

    def rows(steps: int, grid: Matrix) -> Matrix:
        made = []
        for i in range(probes):
            krylov = [draw(i).numpy()]
            for _ in range(steps - 1):
                krylov.append(MATRIX @ krylov[-1])
            q = np.linalg.qr(np.array(krylov).T)[0]
            theta, vectors = np.linalg.eigh(q.T @ MATRIX @ q)
            made.append(stats.norm.pdf(grid[:, None], theta[None], SIGMA) @ ((q.T @ krylov[0]) @ vectors) ** 2)
        return np.array(made)

    found = run(Density(probes=probes, steps=3, bandwidth=SIGMA)).result()
    every = {steps: rows(steps, found.grid) for steps in (1, 2, 3)}
    value = every[3].mean(axis=0)
    off = np.maximum(np.abs(value - every[2].mean(axis=0)), np.abs(value - every[1].mean(axis=0)))
    half = stats.t.ppf(0.975, probes - 1) * every[3].std(axis=0, ddof=1) / math.sqrt(probes)
    inside = value > 1e-4
    np.testing.assert_allclose(found.value, value, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.low[inside], (value * np.exp(-(half + off) / value))[inside], rtol=1e-4)
    high = value * np.exp((half + np.minimum(off, value)) / value) + np.maximum(off - value, 0.0)
    np.testing.assert_allclose(found.high[inside], high[inside], rtol=1e-4)
    assert f"3 Lanczos steps from {probes} random vectors" in found.status and found.steps == 3
    assert found.bandwidth == SIGMA and found.probes == probes and found.finished


def test_stopped_early_says_so_and_knows_the_moments_it_has() -> None:
    for taken in (1, 2, 3):
        process = run(Density(probes=2, steps=4), taken)
        assert process.started and not process.done and process.asked == [0, 1]
        found = process.result()
        assert not found.finished and math.isnan(found.second) is math.isnan(found.second_error) is (taken == 1)
        plural = "s" * (taken > 1)
        words = f"stopped early, after {taken} Lanczos step{plural} from 2 random vectors of the 4 steps asked for"
        assert found.status == words
    with pytest.raises(RuntimeError, match="before the first product"):
        StochasticLanczos(5, Density(), draw).result()
    assert run(Density(probes=2, steps=4)).result().status == "4 Lanczos steps from 2 random vectors"
    assert "reached every eigenvalue they see; 30 were asked for" not in run(Density(probes=2)).result().status
    single = run(Density(probes=1, steps=4)).result()
    assert single.status == "4 Lanczos steps from 1 random vector; a single vector gives no band"
    few = run(Density(probes=2, steps=4), matrix=3.0 * np.eye(6)).result()
    assert few.status == "1 Lanczos step from 2 random vectors reached every eigenvalue they see; 4 were asked for"
    all_there_are = run(Density(probes=2)).result()
    assert all_there_are.status == "5 Lanczos steps from 2 random vectors, all that a block of 5 allows"


def test_a_vector_that_ends_early_leaves_no_zero_among_the_nodes() -> None:
    """The first begins in an eigenvector and is done after one step: what pads its row is no eigenvalue."""
    values = np.array([10.0, 11.0, 12.0])
    matrix = rotated(values, seed=1)
    first = torch.from_numpy(np.linalg.eigh(matrix)[1][:, 0].copy())
    process = StochasticLanczos(
        3, Density(probes=2, bandwidth=0.1), lambda n: random_unit(3, 0, "b", n) if n else first
    )
    while not process.done:
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
    found = process.result()
    assert (found.weights > 0.0).sum(axis=1).tolist() == [1, 3] and found.nodes.shape == (2, 3)
    assert found.grid[0] == pytest.approx(10.0 - 0.6, abs=1e-4) and found.grid[-1] == pytest.approx(12.6, abs=1e-4)
    assert found.weights[0].tolist() == [1.0, 0.0, 0.0] and found.nodes[0, 0] == pytest.approx(10.0)


def test_a_spectrum_that_became_known_counts_and_has_no_error() -> None:
    found = run(Density(probes=2, steps=4, bandwidth=SIGMA), 2).result(VALUES[::-1])
    truth = stats.norm.pdf(found.grid[:, None], VALUES[None], SIGMA).mean(axis=1)
    np.testing.assert_allclose(found.value, truth, rtol=1e-12, atol=1e-300)
    assert (found.low == found.value).all() and (found.high == found.value).all() and found.probes == found.steps == 0
    assert found.mean == pytest.approx(VALUES.mean()) and found.second == pytest.approx((VALUES**2).mean())
    assert found.mean_error == found.second_error == 0.0 and "all 5 eigenvalues" in found.status
    assert exact_density(np.array([2.0]), Density()).status == "exact: the only eigenvalue"


@pytest.mark.parametrize("errors", [(0.1, 0.3), (0.0, 0.0)])
@pytest.mark.parametrize("n", [1, 50])
def test_moments_disagree_beyond_the_combined_errors_with_wide_tails(n: int, errors: tuple[float, float]) -> None:
    density = dataclasses.replace(
        exact_density(VALUES, Density()), probes=9, mean=2.0, mean_error=errors[0], second=9.0, second_error=errors[0]
    )
    tolerated = stats.t.ppf(1.0 - 5e-6, 8) * math.hypot(errors[0], errors[1] / n)
    for kind, moment in (("trace", 2.0), ("frobenius2", 9.0)):
        for sign in (1.0, -1.0):
            for share, agree in ((0.99, True), (1.01, False)):
                off = sign * (share * tolerated + (0.5e-6 if agree else 2e-6) * moment)
                given = {"trace": None, "frobenius2": None, kind: (n * (moment + off), errors[1])}
                found, sentence = check_moments(density, **given, n=n)  # type: ignore[arg-type]
                assert bool(found) is agree and sentence.startswith("the moments " + ("agree" if agree else "disagree"))
    assert check_moments(density, trace=None, frobenius2=None, n=n)[0]
    both = check_moments(density, trace=(2.0 * n, 0.1), frobenius2=(99.0 * n, 0.1), n=n)
    assert not both[0] and "mean eigenvalue" in both[1] and "mean square" in both[1]


# -- bandwidth, grid, quadrature ---------------------------------------------------------------------------------------


def test_the_bandwidth_is_three_quarters_of_the_typical_distance_within_its_limits() -> None:
    nodes = np.array([[0.0, 1.0, 3.0, 7.0, 8.0]])
    mass = np.array([[0.1, 0.1, 0.2, 0.5, 0.1]])
    # The farther neighbour of each: 1, 2, 4, 4, 1. Half of the mass lies at 4.
    assert bandwidth_of(nodes, mass, 2) == pytest.approx(3.0)
    assert bandwidth_of(nodes, mass, 8) == pytest.approx(1.0)  # never above range over steps
    light = np.array([[0.3, 0.2, 0.2, 0.1, 0.2]])
    assert bandwidth_of(nodes, light, 2) == pytest.approx(0.75)
    both = bandwidth_of(np.concatenate([nodes, nodes]), np.concatenate([mass, 2.0 * light]), 2)
    assert both == pytest.approx(1.5)  # distance 1 has 1.2 of 3, distance 2 another 0.5
    padded = np.concatenate([nodes, np.zeros((1, 3))], axis=1)
    assert bandwidth_of(padded, np.concatenate([mass, np.zeros((1, 3))], axis=1), 2) == pytest.approx(3.0)


def test_the_bandwidth_of_nearly_nothing() -> None:
    assert bandwidth_of(np.array([[-7.0]]), np.ones((1, 1)), 5) == pytest.approx(7e-5)
    assert bandwidth_of(np.zeros((1, 2)), np.full((1, 2), 0.5), 5) == 1e-12
    close = np.array([[100.0, 100.0001]])
    assert bandwidth_of(close, np.full((1, 2), 0.5), 5) == pytest.approx(1.000001e-3)
    apart = np.array([[1.0], [3.0]])
    assert bandwidth_of(apart, np.ones((2, 1)), 4) == pytest.approx(0.5)  # rows of one node have no distances


def test_ghosts_are_one_node_at_their_common_place() -> None:
    nodes = np.array([[0.0, 1.0, 1.0 + 1e-8, 3.0]])
    mass = np.array([[0.1, 0.3, 0.3, 0.3]])
    assert bandwidth_of(nodes, mass, 1) == pytest.approx(0.75 * 2.0)


@pytest.mark.parametrize(("sigma", "points"), [(0.5, 100), (0.5, 16), (0.02, 100)])
def test_a_grid_is_uniform_where_half_a_bandwidth_is_affordable(sigma: float, points: int) -> None:
    nodes = np.array([1.0, -2.0, 0.5])
    grid = grid_of(nodes, sigma, points)
    span = 3.0 + 12 * sigma
    np.testing.assert_allclose(grid[[0, -1]], [-2.0 - 6 * sigma, 1.0 + 6 * sigma], rtol=1e-12)
    last = math.ceil(2 * span / sigma)
    if last < 2 * points:
        assert len(grid) == max(points, last + 1)
        np.testing.assert_allclose(np.diff(grid), span / (len(grid) - 1), rtol=1e-9)
    else:
        step = span / last
        places = (grid - grid[0]) / step
        np.testing.assert_allclose(places, np.rint(places), atol=1e-6)
        wanted = {round(i * last / (points - 1)) for i in range(points)}
        for node in nodes:  # and every place of the lattice within 8.5 bandwidths of a node
            at = round((node - grid[0]) / step)
            wanted |= set(range(max(at - 17, 0), min(at + 17, last) + 1))
        assert np.rint(places).astype(int).tolist() == sorted(wanted)


def test_gaussians_are_scipys_and_a_quadrature_is_golubs_and_welschs() -> None:
    grid = np.linspace(-3.0, 5.0, 7)
    mass = np.array([0.2, 0.3, 0.5])
    truth = sum(w * stats.norm.pdf(grid, x, 0.7) for x, w in zip(VALUES, mass, strict=False))
    np.testing.assert_allclose(gaussians(VALUES[:3], mass, grid, 0.7), truth, rtol=1e-12)
    alpha, beta = np.array([1.0, -2.0, 0.5]), np.array([0.3, 0.9])
    t = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
    x, w = quadrature(alpha, beta)
    for power in range(6):
        assert (w * x**power).sum() == pytest.approx(np.linalg.matrix_power(t, power)[0, 0], abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4, 9])
def test_a_compressed_spectrum_keeps_its_moments(steps: int) -> None:
    values = np.array([-1.0, 0.0, 0.5, 2.0, 2.5, 3.0, 6.0])
    x, w = compressed(values, steps)
    assert len(x) == min(steps, 7)
    for power in range(2 * len(x)):
        assert (w * x**power).sum() == pytest.approx((values**power).mean(), rel=1e-9)
    few, mass = compressed(np.array([1.0, 1.0, 1.0, 4.0]), 4)
    np.testing.assert_allclose(few, [1.0, 4.0], atol=1e-12)
    np.testing.assert_allclose(mass, [0.75, 0.25], atol=1e-12)
    assert compressed(np.zeros(3), 2)[0].tolist() == [0.0]


# -- distances ---------------------------------------------------------------------------------------------------------


def test_the_error_of_a_distance_is_its_second_order_expansion() -> None:
    """Variance from the gradient of D2 and bias from half its Hessian, both by central differences of D2 itself."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    moved = np.array([[0.02, -0.01, -0.01], [-0.03, 0.02, 0.01], [0.01, -0.01, 0.0]])
    places = np.arange(3)

    def squared(a: Matrix, b: Matrix) -> float:
        middle = (a + b) / 2
        return float((a * np.log2(a / middle)).sum() + (b * np.log2(b / middle)).sum()) / 2

    def along(direction: Matrix) -> tuple[float, float]:
        h = 1e-4
        plus, here, minus = (squared(p + s * h * direction, q) for s in (1, 0, -1))
        return (plus - minus) / (2 * h), (plus - 2 * here + minus) / h**2

    parts = [along(row) for row in moved]
    variance = sum(first**2 for first, _ in parts) / 6
    bias = sum(second for _, second in parts) / 2 / 6
    nothing = np.empty((0, 3))
    value, error = distance(Mass(p, places, moved), Mass(q, places, nothing))
    assert value == pytest.approx(math.sqrt(squared(p, q))) == jensen_shannon(p, q)
    scatter = min(math.sqrt(variance) / (2 * value), variance**0.25)
    expected = math.hypot(scatter, value - math.sqrt(value**2 - bias))
    assert error == pytest.approx(expected, rel=1e-4)
    swapped = distance(Mass(q, places, nothing), Mass(p, places, moved))
    assert swapped == pytest.approx((value, error))
    twice = distance(Mass(p, places, moved), Mass(q, places, moved))
    assert twice[1] > error
    assert math.isnan(distance(Mass(p, places, nothing, known=False), Mass(q, places, nothing))[1])
    assert distance(Mass(p, places, nothing), Mass(q, places, nothing))[1] == 0.0
    alike = distance(Mass(p, places, moved), Mass(p, places, moved))
    assert alike[0] == 0.0 and alike[1] == 0.0
