"""Jensen-Shannon distances between spectral densities, against direct computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.spatial.distance import jensenshannon
from scipy.stats import norm

from layerhess.errors import InputError
from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.random_vectors import random_unit
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, exact_density
from layerhess.linalg.stochastic.divergence import Mass, distance, jensen_shannon
from layerhess.linalg.stochastic.divergence import divergences as with_errors
from references.spectra import Matrix, rotated

N = 200
BULK = np.linspace(0.0, 1.0, N)


def divergences(densities: list[DensityEstimate], **options: Any) -> Matrix:
    return with_errors(densities, **options)[0]


def exact(values: Matrix, **options: float) -> DensityEstimate:
    return exact_density(np.asarray(values, dtype=np.float64), Density(**options))  # type: ignore[arg-type]


def estimated(values: Matrix, seed: int) -> DensityEstimate:
    n, matrix = len(values), rotated(values, 3)
    process = StochasticLanczos(n, Density(), lambda number: random_unit(n, seed, "test", number))
    while not process.done:
        process.tell(torch.from_numpy(process.ask().numpy() @ matrix))
    return process.result()


def by_integral(p: list[float], q: list[float], sigma: float) -> float:
    """The distance of two mixtures of equally likely Gaussians, by adaptive integration."""

    def entropy_density(x: float) -> float:
        a, b = norm.pdf(x, p, sigma).mean(), norm.pdf(x, q, sigma).mean()
        middle = (a + b) / 2
        return float(sum(0.5 * v * np.log2(v / middle) for v in (a, b) if v > 0))

    low, high = min(p + q) - 9 * sigma, max(p + q) + 9 * sigma
    return float(np.sqrt(quad(entropy_density, low, high, points=sorted({*p, *q}), limit=400)[0]))


@pytest.mark.parametrize(
    ("p", "q"), [([0.0], [1.0]), ([0.0, 5.0], [1.0, 5.0]), ([-3.0, 0.0, 2.0], [0.5]), ([0.0, 900.0], [0.0, 901.5])]
)
def test_mixtures_of_gaussians_against_an_integral(p: list[float], q: list[float]) -> None:
    table = divergences([exact(np.array(p)), exact(np.array(q))], bandwidth=0.7)
    assert table[0, 1] == pytest.approx(by_integral(p, q, 0.7), abs=1e-6)


def test_mass_functions_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 5, 300):
        p, q = rng.dirichlet(np.full(size, 0.3), 2)
        p[0] = q[-1] = 0.0
        p, q = p / p.sum(), q / q.sum()
        assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-12)
    tiny = np.array([1.0, 5e-324]), np.array([1.0, 0.0])
    assert jensen_shannon(*tiny) == 0.0


def test_the_table_is_symmetric_with_a_zero_diagonal_and_between_0_and_1() -> None:
    spectra = [BULK, -BULK, 3 * BULK, np.zeros(4), np.concatenate([BULK, [40.0]])]
    table = divergences([exact(s) for s in spectra])
    assert table.shape == (5, 5) and (table == table.T).all() and not np.diag(table).any()
    assert table.min() == 0.0 and table.max() <= 1.0
    for b in range(5):
        for c in range(5):
            assert (table[b, c] <= table[b] + table[:, c] + 1e-12).all()  # it is a metric


def test_the_same_density_is_at_zero_and_disjoint_ones_at_one() -> None:
    same = exact(BULK)
    table = divergences([same, same, exact(BULK + 100.0)], bandwidth=0.01)
    assert table[0, 1] == 0.0
    assert table[0, 2] == pytest.approx(1.0, abs=1e-9)


def test_two_estimates_of_one_spectrum_are_close_and_another_spectrum_is_not() -> None:
    ours = [estimated(BULK, seed) for seed in range(3)]
    table = divergences([*ours, estimated(BULK**4, 0), exact(BULK)])
    assert table[:3, :3].max() < 0.1 and table[4, :3].max() < 0.08
    assert table[3, :3].min() > 0.3


def test_a_narrow_bandwidth_would_count_nodes_as_a_difference() -> None:
    """Why the default is the largest bandwidth of the densities themselves."""
    ours = [estimated(BULK, seed) for seed in range(2)]
    assert divergences(ours)[0, 1] < 0.1
    assert divergences(ours, bandwidth=1e-3)[0, 1] > 4 * divergences(ours)[0, 1] > 0.0


def test_scale_counts_unless_it_is_normalised_away() -> None:
    densities = [exact(BULK), exact(10.0 * BULK), exact(1e-6 * BULK)]
    raw = divergences(densities)
    assert raw[0, 1] > 0.5
    np.testing.assert_allclose(divergences(densities, normalise=True), 0.0, atol=1e-6)
    shapes = divergences([exact(BULK), exact(-5.0 * BULK)], normalise=True)
    assert shapes[0, 1] > 0.9  # signs are shape


@pytest.mark.parametrize("normalise", [False, True])
def test_blocks_whose_curvature_is_zero(normalise: bool) -> None:
    zero = exact(np.zeros(7))
    table = divergences([zero, exact(np.zeros(3)), exact(BULK + 1.0)], normalise=normalise)
    assert table[0, 1] < 1e-7 and table[0, 2] == pytest.approx(1.0, abs=1e-3)
    assert not divergences([zero, zero], normalise=normalise).any()


def test_a_huge_outlier_leaves_the_grid_affordable_and_the_bulk_told_apart() -> None:
    far = [1e6]
    densities = [exact(np.concatenate([BULK, far]), bandwidth=0.05), exact(np.concatenate([BULK + 3.0, far]))]
    table = divergences([densities[0], densities[0]], bandwidth=0.05)
    assert table[0, 1] == 0.0
    table = divergences(densities, bandwidth=0.05)
    assert table[0, 1] == pytest.approx(np.sqrt(N / (N + 1)), abs=1e-4)  # all but the one they share


def test_no_blocks_and_one_block() -> None:
    assert divergences([]).shape == (0, 0)
    assert divergences([exact(BULK)]).tolist() == [[0.0]]


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, float("nan"), float("inf"), "wide", True])
def test_bandwidths_that_cannot_be_meant(bandwidth: object) -> None:
    with pytest.raises(InputError, match="bandwidth is"):
        divergences([exact(BULK)], bandwidth=bandwidth)  # type: ignore[arg-type]


# -- errors -----------------------------------------------------------------------------------------------------------


def noisy(truth: Matrix, vectors: int, rng: np.random.Generator) -> Mass:
    """A mean of ``vectors`` random masses whose expectation is ``truth``."""
    rows = rng.gamma(5.0, truth / 5.0, (vectors, len(truth)))
    value = rows.mean(axis=0)
    return Mass(value, np.arange(len(truth)), rows - value)


@pytest.mark.parametrize("contrast", [0.0, 0.3, 1.0, 3.0])
def test_the_error_of_a_distance_is_its_root_mean_square_error(contrast: float) -> None:
    """Masses drawn around known ones: what is stated against what is seen, noise and bias together."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(60, 5.0))
    q = p * np.exp(contrast * rng.standard_normal(60))
    q /= q.sum()
    truth = jensenshannon(p, q, base=2)
    found = [distance(noisy(p, 10, rng), noisy(q, 10, rng)) for _ in range(400)]
    off = np.array([value - truth for value, _ in found])
    stated = np.array([error for _, error in found])
    assert 0.7 <= np.sqrt((off**2).mean()) / np.sqrt((stated**2).mean()) <= 1.3
    assert np.mean(np.abs(off) <= 2.0 * stated) >= 0.9


def test_estimates_of_one_spectrum_are_no_further_apart_than_their_error_says() -> None:
    values, errors = with_errors([estimated(BULK, seed) for seed in range(6)])
    apart = ~np.eye(6, dtype=bool)
    assert not np.diag(errors).any() and (errors == errors.T).all()
    assert np.mean(values[apart] <= 2.0 * errors[apart]) >= 0.9
    far, of_far = with_errors([estimated(BULK, 0), estimated(BULK**4, 1)])
    assert far[0, 1] > 5.0 * of_far[0, 1] > 0.0


def test_exact_densities_have_exact_distances_and_single_vectors_unknown_errors() -> None:
    assert not with_errors([exact(BULK), exact(2.0 * BULK)])[1].any()
    process = StochasticLanczos(N, Density(probes=1), lambda number: random_unit(N, 0, "test", number))
    while not process.done:
        process.tell(torch.from_numpy(process.ask().numpy() * BULK))
    errors = with_errors([process.result(), exact(BULK)])[1]
    assert np.isnan(errors[0, 1]) and errors[0, 0] == 0.0
