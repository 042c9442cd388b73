"""Pareto-minimal points against their definition, and what random plans promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerhess.errors import InputError
from layerhess.planning.allocation.frontier import pareto, random_plans
from layerhess.planning.allocation.problem import Problem


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_pareto_points_are_those_no_other_beats(points: list[tuple[int, int]]) -> None:
    found = pareto([a for a, _ in points], [b for _, b in points]).tolist()
    assert len(found) == len(set(found)) and sorted(found, key=lambda i: points[i][0]) == found
    minimal = {(a, b) for a, b in points if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in points)}
    assert [points[i] for i in found] == sorted(minimal)
    assert all(i == points.index(points[i]) for i in found)


def test_nan_is_never_among_them() -> None:
    assert pareto([1.0, 2.0, np.nan], [np.nan, 3.0, 0.0]).tolist() == [1]
    assert pareto([], []).tolist() == []
    with pytest.raises(InputError, match="shape"):
        pareto([1.0], [1.0, 2.0])


def problem(seed: int, limits: int = 1) -> Problem:
    rng = np.random.default_rng(seed)
    bits = np.array([2.0, 3.0, 4.0, 8.0])
    size = rng.integers(1, 50, (12, 1)) * bits
    other = rng.integers(1, 50, (12, 1)) * np.array([4.0, 3.0, 2.0, 1.0])  # falls where size rises
    cost = rng.random((12, 4))
    cost[3, :2] = np.inf
    uses, bounds = [size, other][:limits], [0.5 * size[:, 3].sum(), 0.75 * other[:, 0].sum()][:limits]
    return Problem(cost, uses, bounds, tied=[[0, 5]], pinned={7: 2})


@pytest.mark.parametrize("limits", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_random_plans_meet_the_limits(seed: int, limits: int) -> None:
    plans = random_plans(problem(seed, limits), 50, np.random.default_rng(0))
    assert plans.shape == (50, 12) and problem(seed, limits).feasible(plans).all()
    assert (plans[:, 0] == plans[:, 5]).all() and (plans[:, 7] == 2).all()
    assert len({tuple(plan) for plan in plans}) > 20  # under two limits few layers are free


def test_no_layer_of_a_random_plan_can_be_one_step_larger() -> None:
    given = problem(1)
    for plan in random_plans(given, 30, np.random.default_rng(1)):
        for members in given.groups.members:
            larger = plan.copy()
            larger[list(members)] += 1
            assert plan[members[0]] == 3 or not given.feasible(larger)


def test_random_plans_have_every_option_and_repeat_with_their_seed() -> None:
    free = Problem(np.zeros((5, 3)))
    plans = random_plans(free, 300, np.random.default_rng(2))
    shares = [(plans == k).mean() for k in range(3)]
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * np.sqrt(2 / 9 / 1500))
    assert (plans == random_plans(free, 300, np.random.default_rng(2))).all()


def test_random_plans_of_a_problem_without_any_are_refused() -> None:
    with pytest.raises(InputError, match="no plan meets"):
        random_plans(Problem([[0.0, 1.0]], [[[3.0, 2.0]]], [1.0]), 3, np.random.default_rng(0))
