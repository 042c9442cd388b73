"""Prices on uses: the identity they rest on, and the bound they prove."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from layerhess.planning.allocation.enumeration import enumerated
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.relaxation import relaxed, rounded


def problem(seed: int) -> Problem:
    rng = np.random.default_rng(seed)
    uses = [rng.random((6, 3)), rng.random((6, 3))]
    limits = [0.5 * float((use.min(axis=1) + use.max(axis=1)).sum()) for use in uses]
    return Problem(rng.normal(size=(6, 3)), uses, limits)


@pytest.mark.parametrize("seed", range(10))
def test_a_plan_costs_the_bound_and_its_excess_and_what_it_leaves_unused(seed: int) -> None:
    given = problem(seed)
    relaxation = relaxed(given.groups)
    assert relaxation is not None and (relaxation.prices >= 0.0).all() and (relaxation.excess >= 0.0).all()
    for plan in itertools.islice(itertools.product(range(3), repeat=6), 0, 729, 7):
        excess = relaxation.excess[np.arange(6), plan].sum()
        unused = relaxation.prices @ (given.groups.room - given.totals(plan))
        assert float(given.objective(plan)) == pytest.approx(relaxation.bound + excess + unused, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_is_the_optimum_over_mixtures_of_options(seed: int) -> None:
    given = problem(seed)
    mixed = linprog(
        given.cost.ravel(),
        A_ub=np.stack([use.ravel() for use in given.uses]),
        b_ub=given.limits,
        A_eq=np.kron(np.eye(6), np.ones((1, 3))),
        b_eq=np.ones(6),
    )
    relaxation = relaxed(given.groups)
    assert relaxation is not None and relaxation.bound == pytest.approx(mixed.fun, abs=1e-6)


def test_what_cannot_be_met_by_mixtures_has_no_relaxation() -> None:
    assert relaxed(Problem([[0.0, 1.0]], [[[2.0, 1.0]]], [0.5]).groups) is None


@pytest.mark.parametrize("seed", range(10))
def test_counting_out_stops_at_what_does_not_matter(seed: int) -> None:
    given = problem(seed)
    relaxation = relaxed(given.groups)
    assert relaxation is not None
    best = enumerated(given, relaxation)
    assert best.complete and best.choice is not None
    if best.bound > relaxation.bound + 1e-9:  # else the relaxation has the optimum itself
        below = enumerated(given, relaxation, below=(relaxation.bound + best.bound) / 2)
        assert below.complete and below.choice is None
    nothing = enumerated(given, relaxation, effort=0.0)
    assert nothing.choice is None and nothing.bound <= best.bound


def test_a_rounded_plan_is_within_the_limits_and_mostly_found() -> None:
    found = 0
    for seed in range(40):
        given = problem(seed)
        relaxation = relaxed(given.groups)
        assert relaxation is not None
        plan = rounded(given.groups, relaxation)
        found += plan is not None
        assert plan is None or given.feasible(given.of_layers(plan))
    assert found >= 30
