"""What a random start excludes: the Christoffel function against its definition, and stated against observed misses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from layerhess.solvers.lanczos import Lanczos
from layerhess.solvers.missed import excludes, missed
from layerhess.solvers.process import Search, Wanted
from layerhess.vectors import random_unit
from references.spectra import FAMILIES, Matrix


def _coefficients(values: Matrix, w: Matrix, steps: int) -> tuple[list[float], list[float]]:
    """Lanczos in its textbook form with full reorthogonalisation, on a diagonal matrix."""
    basis, alphas, betas = [w / np.linalg.norm(w)], [], []
    for _ in range(steps):
        product = values * basis[-1]
        alphas.append(float(basis[-1] @ product))
        for _ in range(2):
            product = product - sum((q @ product) * q for q in basis)
        betas.append(float(np.linalg.norm(product)))
        basis.append(product / betas[-1])
    return alphas, betas


def _smallest_mean_square(values: Matrix, w: Matrix, degree: int, x: float) -> float:
    """min of sum w_i^2 q(lambda_i)^2 over polynomials q of the degree with q(x) = 1, by least squares in powers."""
    powers = np.vander(values - x, degree + 1, increasing=True)[:, 1:]  # q = 1 + sum c_k (t - x)^k
    weighted = powers * w[:, None]
    found = np.linalg.lstsq(weighted, -w, rcond=None)[0]
    return float(np.sum((weighted @ found + w) ** 2))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("x", [1.05, 1.5, -0.7])
def test_what_is_excluded_is_the_smallest_mass_that_a_polynomial_can_give_to_x(steps: int, x: float) -> None:
    rng = np.random.default_rng(steps)
    values, w = np.sort(rng.uniform(-0.5, 1.0, 40)), rng.standard_normal(40)
    w /= np.linalg.norm(w)
    alphas, betas = _coefficients(values, w, steps)
    mass = _smallest_mean_square(values, w, steps, x)
    search = Search(40, steps, 1, 1.0, -0.5, tuple(alphas), tuple(betas))
    p = np.sqrt(mass * 2.0 * 40 / np.pi)  # at which delta^2 is that mass
    assert excludes(search, x, 1.0001 * p) and not excludes(search, x, 0.9999 * p)


def test_a_start_inside_an_invariant_subspace_excludes_everything_outside() -> None:
    search = Search(100, 2, 1, 1.0, 0.0, (0.5, 0.5), (0.5, 0.0))
    assert missed(search, 0.01) == (1.0, 0.0)


def test_the_random_share_of_a_start_counts_as_so_much_less_chance() -> None:
    rng = np.random.default_rng(0)
    alphas, betas = _coefficients(np.linspace(0.0, 1.0, 50), rng.standard_normal(50), 6)
    whole = Search(50, 6, 1, 0.9, 0.0, tuple(alphas), tuple(betas))
    tenth = Search(50, 6, 1, 0.9, 0.0, tuple(alphas), tuple(betas), share=0.1)
    assert missed(tenth, 0.1)[0] == pytest.approx(missed(whole, 0.01)[0], rel=1e-9)
    assert missed(tenth, 0.01)[0] > missed(whole, 0.01)[0] > 0.9


def test_a_recurrence_beyond_the_range_of_floats_still_excludes() -> None:
    search = Search(50, 400, 1, 1.0, 0.0, (0.0,) * 400, (1e-3,) * 400)
    above, below = missed(search, 0.01)
    assert 1.0 <= above <= 1.1 and -0.1 <= below <= 0.0


@pytest.mark.parametrize("steps", [3, 6, 10])
@pytest.mark.parametrize("family", ["lambda_2 = 0.95 lambda_1", "one large negative", "network-like"])
@pytest.mark.parametrize("known", [False, True])
def test_stated_probabilities_of_a_miss_hold_at_any_step(steps: int, family: str, known: bool) -> None:
    """At p = 10 %, from a random start, and from a wrong guess (a bulk eigenvector) with a tenth of randomness."""
    n, runs, p = 200, 200, 0.1
    above = below = 0
    for seed in range(runs):
        values = FAMILIES[family](n, np.random.default_rng([seed, n]))
        guess = torch.zeros(n, dtype=torch.float64)
        guess[int(np.argsort(values)[n // 2])] = 1.0
        process = Lanczos(
            n,
            Wanted(top=1),
            1e-12,
            lambda i, seed=seed: random_unit(n, seed, family, i),
            start=guess if known else None,
        )
        for _ in range(steps):
            process.tell(process.ask() * torch.from_numpy(values))
        high, low = missed(process._searched(n), p)
        above += values.max() > high * (1.0 + 1e-12)
        below += values.min() < low - 1e-12 * abs(low)
    # 200 runs at 10 %: 36 or more would have a probability of 3e-4.
    assert above < 36 and below < 36


def test_a_wrong_start_does_not_hide_the_top_and_its_certificate_covers() -> None:
    """The guess is an exact eigenvector of a smaller eigenvalue: only the random part can find the larger one."""
    values = np.concatenate([[3.0, 2.9], np.linspace(0.0, 1.0, 300)])
    guess = torch.zeros(302, dtype=torch.float64)
    guess[1] = 1.0
    for seed in range(20):
        process = Lanczos(302, Wanted(top=1), 1e-3, lambda i, seed=seed: random_unit(302, seed, "x", i), start=guess)
        while not process.proposes:
            process.tell(process.ask() * torch.from_numpy(values))
        found = process.candidates()
        assert abs(found.values[0] - 3.0) <= found.residuals[0] or missed(found.searches["top"][0], 0.01)[0] >= 3.0


@pytest.mark.parametrize("seed", range(10))
def test_copies_are_found_though_the_search_for_them_may_stop_early(seed: int) -> None:
    values = np.concatenate([[2.0, 2.0, 1.9, 1.9], np.linspace(-0.5, 0.8, 200)])
    n = len(values)
    process = Lanczos(n, Wanted(top=4, bottom=2), 1e-6, lambda i: random_unit(n, seed, "copies", i))
    while not process.proposes:
        process.tell(process.ask() * torch.from_numpy(values))
    assert np.allclose(process.candidates().values[:4], [2.0, 2.0, 1.9, 1.9], atol=1e-5)
    assert np.allclose(process.candidates().values[4:], np.sort(values)[[1, 0]], atol=1e-5)
