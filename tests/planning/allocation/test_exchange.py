"""Search with interactions: against all plans of small problems, and what it promises of large ones."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from layerhess.errors import InputError
from layerhess.planning.allocation.allocation import allocated
from layerhess.planning.allocation.exchange import exchanged, judged
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.quadratic import Quadratic
from small_quadratics import Small, small

CASES = [(seed, kind) for seed in range(20) for kind in ("indefinite", "gram")]


def large(layers: int, options: int, seed: int) -> Quadratic:
    """As of a network: changes of outputs that halve with each bit, a direction in common, one limit on size."""
    rng = np.random.default_rng(seed)
    bits = np.arange(1, 9) if options == 8 else np.array([2, 3, 4, 8])
    change = rng.normal(size=(layers, options, 60)) * 2.0 ** -bits[:, None] * np.exp(rng.normal(0, 0.5, (layers, 1, 1)))
    change += 0.04 * rng.normal(size=60) * np.linalg.norm(change, axis=2, keepdims=True)
    size = np.exp(rng.normal(8, 1, (layers, 1))).round() * bits
    cost = np.einsum("lki,lki->lk", change, change) / 2
    limit = 4.0 * float((size[:, 0] / bits[0]).sum())
    return Quadratic(Problem(cost, [size], [limit]), np.einsum("lki,mpi->lkmp", change, change))


def changed_once_or_twice(case: Small, plan: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Values of all plans within the limits that differ in at most two groups."""
    groups = case.quadratic.problem.of_groups(case.plans)
    different = (groups != case.quadratic.problem.of_groups(plan)).sum(axis=1)
    return case.values[different <= 2]


@pytest.mark.parametrize(("seed", "kind"), CASES)
def test_no_change_of_two_layers_improves_what_is_found(seed: int, kind: str) -> None:
    case = small(seed, kind=kind)
    found = exchanged(case.quadratic, random=0)
    value = float(case.quadratic.objective(found.choice))
    assert found.objective == value and case.quadratic.problem.feasible(found.choice)
    assert value <= changed_once_or_twice(case, found.choice).min() + 1e-9
    assert found.bound <= case.least + 1e-9
    if found.optimal:
        assert value == pytest.approx(case.least, rel=1e-8, abs=1e-9)


@pytest.mark.slow
def test_search_from_several_starts_finds_the_optimum_of_nearly_all_small_problems() -> None:
    missed = 0
    for seed, kind in CASES:
        case = small(seed, kind=kind)
        missed += exchanged(case.quadratic).objective > case.least + 1e-9
    assert missed <= 1


def test_it_is_never_worse_than_its_starts_nor_than_the_additive_plan() -> None:
    quadratic = large(20, 4, 0)
    best = exchanged(quadratic)
    again = exchanged(quadratic, [best.choice], random=0)
    assert again.objective <= best.objective
    assert best.objective <= float(quadratic.objective(allocated(quadratic.problem).choice))


def test_the_same_seed_gives_the_same_plan() -> None:
    quadratic = large(20, 4, 1)
    assert exchanged(quadratic, seed=3).choice.tolist() == exchanged(quadratic, seed=3).choice.tolist()


def test_the_gap_of_forty_layers_is_stated() -> None:
    quadratic = large(40, 4, 0)
    found = exchanged(quadratic)
    assert 0.0 < found.gap < 0.2 and not found.optimal
    assert found.objective < 0.8 * float(quadratic.objective(allocated(quadratic.problem).choice))


@pytest.mark.slow
def test_two_hundred_layers_with_eight_options_have_a_stated_gap() -> None:
    quadratic = large(200, 8, 0)
    found = exchanged(quadratic)
    assert found.gap < 0.3 and quadratic.problem.feasible(found.choice)


def test_a_start_that_breaks_a_limit_is_refused() -> None:
    case = small(1)
    for start in ([0] * 5, [0, 0]):
        with pytest.raises(InputError, match="start"):
            exchanged(case.quadratic, [start])


def test_no_plan_within_the_limits_is_refused() -> None:
    problem = Problem([[0.0, 1.0]] * 2, [[[2.0, 1.0]] * 2], [1.0])
    with pytest.raises(InputError, match="no plan meets limit 0"):
        exchanged(Quadratic(problem, np.zeros((2, 2, 2, 2))))


@pytest.mark.parametrize("seed", range(20))
def test_judged_ends_where_no_change_of_two_layers_improves(seed: int) -> None:
    case = small(seed)
    asked: list[tuple[int, ...]] = []

    def objective(plans: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.extend(map(tuple, plans))
        return np.asarray(case.quadratic.objective(plans))

    start = allocated(case.quadratic.problem).choice
    found = judged(case.quadratic.problem, start, objective)
    assert found.settled and found.evaluations == len(asked) == len(set(asked))
    assert case.quadratic.problem.feasible(np.array(asked)).all()
    assert found.objective == float(case.quadratic.objective(found.choice)) <= float(case.quadratic.objective(start))
    groups = case.quadratic.problem.of_groups(case.plans)
    different = (groups != case.quadratic.problem.of_groups(found.choice)).sum(axis=1)
    assert found.objective <= case.values[different <= 1].min() + 1e-9


def test_judged_stops_at_its_number_of_evaluations() -> None:
    quadratic = large(20, 4, 2)
    start = allocated(quadratic.problem).choice
    count = 0

    def objective(plans: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal count
        count += len(plans)
        return np.asarray(quadratic.objective(plans))

    found = judged(quadratic.problem, start, objective, evaluations=100)
    assert found.evaluations == count == 100 and not found.settled


def test_a_good_guess_saves_evaluations() -> None:
    quadratic = large(40, 4, 0)
    start = allocated(quadratic.problem).choice
    blind = judged(quadratic.problem, start, quadratic.objective, evaluations=500)
    guided = judged(quadratic.problem, start, quadratic.objective, evaluations=500, guess=quadratic.objective)
    assert guided.objective < blind.objective < float(quadratic.objective(start))


def test_judged_takes_nan_for_the_worst_and_refuses_it_at_the_start() -> None:
    case = small(1)
    start = allocated(case.quadratic.problem).choice

    def only_start(plans: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.where((plans == start).all(axis=1), 1.0, np.nan)

    assert judged(case.quadratic.problem, start, only_start).choice.tolist() == start.tolist()
    with pytest.raises(InputError, match="nan"):
        judged(case.quadratic.problem, start, lambda plans: np.full(len(plans), np.nan))
    with pytest.raises(InputError, match="start"):
        judged(case.quadratic.problem, [0] * 5, only_start)


def test_pairs_that_help_each_other_are_found_together() -> None:
    """Neither of two changes improves alone; together they do, and the limit allows only an exchange."""
    cost = np.array([[0.0, 1.0], [0.0, 1.0]])
    pairs = np.zeros((2, 2, 2, 2))
    pairs[0, 1, 1, 1] = pairs[1, 1, 0, 1] = -5.0
    found = exchanged(Quadratic(Problem(cost), pairs), random=0)
    assert found.choice.tolist() == [1, 1] and found.objective == -3.0
    values = [float(Quadratic(Problem(cost), pairs).objective(plan)) for plan in itertools.product(range(2), repeat=2)]
    assert found.objective == min(values)
