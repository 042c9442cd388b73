"""Objectives with interactions: against a sum over all pairs, with tied layers, and in their convex form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from layerhess.errors import InputError
from layerhess.planning.allocation.lower_bound import lower_bound
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.quadratic import Quadratic
from small_quadratics import small

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_objective_is_the_sum_over_layers_and_pairs(seed: int) -> None:
    case = small(seed)
    np.testing.assert_allclose(case.quadratic.objective(case.plans), case.values, rtol=1e-12, atol=1e-12)
    assert float(case.quadratic.objective(case.plans[0])) == pytest.approx(case.values[0], rel=1e-12, abs=1e-12)
    assert case.quadratic.problem.feasible(case.plans).all()


@pytest.mark.parametrize("kind", ["indefinite", "gram"])
@pytest.mark.parametrize("seed", SEEDS)
def test_tied_layers_and_the_convex_form_keep_the_objective(seed: int, kind: str) -> None:
    case = small(seed, kind=kind)
    quadratic = case.quadratic
    linear, matrix = quadratic.convex()
    assert np.linalg.eigvalsh(matrix)[0] >= -1e-9 * np.abs(matrix).max()
    allowed = quadratic.groups.allowed
    for plan, value in zip(case.plans, case.values, strict=True):
        choice = quadratic.problem.of_groups(plan)
        x = np.zeros(allowed.shape)
        x[np.arange(len(choice)), choice] = 1.0
        x = x[allowed]
        assert linear @ x + x @ matrix @ x / 2 == pytest.approx(value, rel=1e-9, abs=1e-9)
        pairs = quadratic.group_pairs
        in_groups = sum(quadratic.groups.cost[g, k] for g, k in enumerate(choice)) + sum(
            pairs[g, choice[g], h, choice[h]] for g in range(len(choice)) for h in range(g + 1, len(choice))
        )
        assert in_groups == pytest.approx(value, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["indefinite", "gram"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_plan_is_below_the_bounds(seed: int, kind: str) -> None:
    case = small(seed, kind=kind)
    under = case.quadratic.underestimate().objective(case.plans)
    assert (under <= case.values + 1e-9).all()
    bound = lower_bound(case.quadratic)
    assert bound.value <= case.least + 1e-9
    assert (bound.additive.objective(case.plans) <= case.values + 1e-9).all()


def test_tangents_bound_interactions_of_one_direction_closely() -> None:
    case = small(1, layers=6, kind="gram", strength=0.1)
    loose = float(case.quadratic.underestimate().objective(case.plans).min())
    bound = lower_bound(case.quadratic).value
    assert case.least - bound < 0.3 * (case.least - loose)


def test_without_interactions_the_bound_is_the_optimum() -> None:
    case = small(2, strength=0.0)
    assert lower_bound(case.quadratic).value == pytest.approx(case.least, rel=1e-12)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (np.zeros((2, 2)), "shape"),
        (np.arange(16.0).reshape(2, 2, 2, 2), "not symmetric"),
        (np.full((2, 2, 2, 2), np.nan), "not finite"),
    ],
)
def test_interactions_that_cannot_be_used_are_refused(pairs: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Quadratic(Problem(np.zeros((2, 2))), pairs)


def test_interactions_of_what_is_not_allowed_are_not_read() -> None:
    pairs = np.zeros((2, 2, 2, 2))
    pairs[0, 1] = np.nan
    pairs[:, :, 0, 1] = np.nan
    quadratic = Quadratic(Problem([[0.0, np.inf], [1.0, 2.0]]), pairs)
    assert quadratic.objective([[0, 0], [0, 1]]).tolist() == [1.0, 2.0]
