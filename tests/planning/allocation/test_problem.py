"""Problems: what tied and pinned layers become, and which plans are within the limits."""

from __future__ import annotations

import itertools

import numpy as np

from layerhess.planning.allocation.problem import Problem


def test_tied_groups_with_a_layer_in_common_are_one() -> None:
    problem = Problem(np.zeros((6, 2)), tied=[[4, 2], [0, 4], [5], []])
    assert problem.groups.members == ((0, 2, 4), (1,), (3,), (5,))
    assert problem.tied == ((0, 2, 4),)


def test_choices_of_groups_and_layers_go_back_and_forth() -> None:
    problem = Problem(np.zeros((4, 3)), tied=[[1, 3]])
    choices = np.array([[0, 1, 2], [2, 0, 1]])
    assert problem.of_layers(choices).tolist() == [[0, 1, 2, 1], [2, 0, 1, 0]]
    assert problem.of_groups(problem.of_layers(choices)).tolist() == choices.tolist()


def test_a_group_costs_and_uses_what_its_layers_do() -> None:
    rng = np.random.default_rng(0)
    cost, use = rng.normal(size=(4, 3)), rng.random((4, 3))
    problem = Problem(cost, [use], [10.0], tied=[[0, 3]])
    np.testing.assert_array_equal(problem.groups.cost[0], cost[0] + cost[3])
    np.testing.assert_array_equal(problem.groups.uses[0, 0], use[0] + use[3])


def test_plans_are_within_the_limits_when_each_condition_holds() -> None:
    rng = np.random.default_rng(1)
    cost, use = rng.normal(size=(3, 2)), rng.integers(0, 4, (3, 2)).astype(float)
    cost[1, 0] = np.inf
    problem = Problem(cost, [use], [5.0], tied=[[0, 2]], pinned={0: 1})
    for plan in itertools.product(range(2), repeat=3):
        true = plan[0] == plan[2] == 1 and plan[1] == 1 and sum(use[i, k] for i, k in enumerate(plan)) <= 5
        assert bool(problem.feasible(plan)) == true
    plans = np.array(list(itertools.product(range(2), repeat=3)))
    assert problem.feasible(plans).tolist() == [bool(problem.feasible(plan)) for plan in plans]


def test_infinite_uses_are_not_allowed_options() -> None:
    problem = Problem([[0.0, 1.0]], [[[np.inf, 1.0]]], [5.0])
    assert problem.groups.allowed.tolist() == [[False, True]]
    assert problem.feasible([[0], [1]]).tolist() == [False, True]


def test_what_was_given_is_not_changed() -> None:
    cost, use = np.ones((2, 2)), np.ones((2, 2))
    problem = Problem(cost, [use], [3.0])
    problem.cost[0, 0] = 7.0
    assert cost.tolist() == [[1.0, 1.0]] * 2 and use.tolist() == [[1.0, 1.0]] * 2
