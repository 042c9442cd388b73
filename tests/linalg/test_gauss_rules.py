"""Gauss rules: back to their tridiagonal, shorter ones, and what they prove of every measure that they belong to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from layerhess.linalg.gauss_rules import mass_below, quadrature, shortened, tridiagonal

Floats = NDArray[np.float64]


def coefficients(seed: int, steps: int) -> tuple[Floats, Floats]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal(steps), draw.uniform(0.1, 2.0, steps - 1)


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
def test_a_rule_gives_back_its_tridiagonal(steps: int) -> None:
    alpha, beta = coefficients(steps, steps)
    found = tridiagonal(*quadrature(alpha, beta))
    np.testing.assert_allclose(found[0], alpha, atol=1e-9)
    np.testing.assert_allclose(found[1], beta, atol=1e-9)


def test_a_shorter_rule_is_that_of_fewer_steps() -> None:
    alpha, beta = coefficients(3, 24)
    nodes, weights = shortened(*quadrature(alpha, beta), 12)
    expected = quadrature(alpha[:12], beta[:11])
    np.testing.assert_allclose(nodes, expected[0], atol=1e-10)
    np.testing.assert_allclose(weights, expected[1], atol=1e-10)


def test_copies_of_a_node_are_one() -> None:
    alpha, _ = tridiagonal(np.array([1.0, 1.0 + 1e-15, 2.0]), np.array([0.25, 0.25, 0.5]))
    assert len(alpha) == 2
    nodes, weights = shortened(np.array([1.0, 1.0 + 1e-15, 2.0]), np.array([0.25, 0.25, 0.5]), 2)
    np.testing.assert_allclose([*nodes, *weights], [1.0, 2.0, 0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_mass_of_a_measure_lies_within_what_its_rule_proves(seed: int) -> None:
    """A discrete measure of 400 points, rules of up to 20 nodes, thresholds anywhere, points and nodes among them."""
    draw = np.random.default_rng(seed)
    points = np.sort(draw.standard_normal(400) if seed % 2 else 10.0 ** draw.uniform(-4, 1, 400))
    masses = draw.dirichlet(np.ones(400))
    for steps in (1, 2, 7, 20):
        nodes, weights = shortened(points, masses, steps)
        widest = 0.0
        for x in [*draw.choice(points, 30), *nodes, *draw.uniform(points[0], points[-1], 30), 2 * points[-1], -99.0]:
            least, most = mass_below(nodes, weights, x)
            assert least - 1e-9 <= masses[points < x].sum() and masses[points <= x].sum() <= most + 1e-9
            assert least - 1e-9 <= weights[nodes < x - 1e-12].sum() and weights[nodes <= x].sum() <= most + 1e-9
            # never wider than by the weights of the nodes on either side (the classical form of the inequalities)
            place = int(np.searchsorted(nodes, x))
            assert most - least <= weights[max(place - 1, 0) : place + 2].sum() + 1e-9
            widest = max(widest, most - least)
        assert widest > 0.0
    assert mass_below(nodes, weights, -np.inf) == (0.0, 0.0) and mass_below(nodes, weights, np.inf) == (1.0, 1.0)


def test_in_a_gap_next_to_nothing_is_left_open() -> None:
    points = np.concatenate([np.linspace(0.0, 1.0, 300), np.linspace(9.0, 10.0, 100)])
    nodes, weights = shortened(points, np.full(400, 1 / 400), 16)
    least, most = mass_below(nodes, weights, 5.0)
    assert least == pytest.approx(0.75, abs=1e-6) and most - least < 1e-6
