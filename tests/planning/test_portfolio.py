"""Candidates are measured once each, and the best one is taken."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import planned
from layerhess.planning.allocation.exchange import neighbours
from layerhess.planning.budget import budget_of
from layerhess.planning.candidates import Candidate, Search
from layerhess.planning.layers import layers_of
from layerhess.planning.measuring.meter import Measurement, Meter
from layerhess.planning.portfolio import Portfolio
from layerhess.planning.predictions import unknown
from layerhess.planning.rows_file import RowsFile
from layerhess.planning.table import Table, measured_table

BITS = (2, 3, 4)


def table_of(meter: Meter, **more: object) -> Table:
    layers = layers_of(meter.objective, BITS, "weight", **more)  # type: ignore[arg-type]
    rows = RowsFile(None, meter.objective, {}, resume=False)
    return measured_table(meter, layers, unknown(layers), rows, measure=True, outputs=True)


def search_of(table: Table, budget: object) -> Search:
    return Search(table.layers, table, budget_of(budget, table.layers), 0)


def portfolio_of(meter: Meter, budget: object, **more: object) -> Portfolio:
    table = table_of(meter, **more)
    return Portfolio(meter, search_of(table, budget), RowsFile(None, meter.objective, {}, resume=False))


EVERY = list(itertools.product(range(3), repeat=3))
SIZES = np.array([72, 144, 36])


def bits(plan: tuple[int, ...]) -> float:
    return float(sum(BITS[k] * n for k, n in zip(plan, SIZES, strict=True)) / SIZES.sum())


def test_every_plan_is_measured_once_and_the_best_within_the_budget_is_taken() -> None:
    objective = planned.objective()
    with objective.session():
        meter = Meter(objective)
        portfolio = portfolio_of(meter, "3bit")
        before = meter.forwards
        portfolio.add([Candidate("a", EVERY[5]), None, Candidate("b", EVERY[5]), Candidate("c", EVERY[7])])
        portfolio.measure([EVERY[5], EVERY[7]])
        assert meter.forwards == before + 2.0 and list(portfolio.candidates) == ["a", "b", "c"]
        portfolio.measure(EVERY)
        assert meter.forwards == before + 27.0 and set(portfolio.plans) == set(EVERY)
        best = min((plan for plan in EVERY if bits(plan) <= 3.0), key=portfolio.value)
        assert portfolio.best() == best
        assert portfolio.best([(2, 2, 2)]) is None  # does not fit


def test_of_equal_plans_the_smaller_one_is_taken_and_one_without_a_loss_never_before_others() -> None:
    objective = planned.objective()
    with objective.session():
        meter = Meter(objective)
        portfolio = portfolio_of(meter, "4bit")
        same = Measurement(meter.float_model.losses)
        for plan in ((1, 1, 1), (0, 1, 1), (2, 2, 2)):
            portfolio.know(plan, same)
        assert portfolio.best() == (0, 1, 1)
        portfolio.know((0, 0, 0), Measurement(meter.float_model.losses, why="the loss is NaN or infinite"))
        assert portfolio.value((0, 0, 0)) == math.inf and portfolio.best() == (0, 1, 1)


def test_under_a_cap_the_smallest_plan_below_it_is_taken() -> None:
    objective = planned.objective()
    with objective.session():
        meter = Meter(objective)
        portfolio = portfolio_of(meter, {"increase": 1e9})
        portfolio.measure(EVERY)
        assert portfolio.best() == (0, 0, 0)
        values = sorted(map(portfolio.value, EVERY))
        capped = portfolio_of(meter, {"increase": max(values[3], 0.0)})
        capped.measure(EVERY)
        below = [plan for plan in EVERY if capped.value(plan) <= max(values[3], 0.0)]
        best = capped.best()
        assert best is not None and bits(best) == min(map(bits, below))


def test_neighbours_differ_in_one_layer_or_in_one_that_grows_and_one_that_shrinks() -> None:
    objective = planned.objective()
    with objective.session():
        search = search_of(table_of(Meter(objective)), "3bit")
    found = [tuple(plan) for plan in neighbours(search.problem(np.zeros((3, 3))), np.array([1, 1, 1])).tolist()]
    steps = {plan: [k - 1 for k in plan if k != 1] for plan in EVERY}
    wanted = {plan for plan, own in steps.items() if len(own) == 1 or (len(own) == 2 and sum(own) == 0)}
    wanted = {plan for plan in wanted if bits(plan) <= 3.0}
    assert set(found) == wanted and len(found) == len(wanted)


def test_neighbours_keep_ties_and_pins() -> None:
    objective = planned.objective()
    with objective.session():
        table = table_of(Meter(objective), pinned={"0.weight": 3}, tied=[["2.weight", "4.weight"]])
    problem = search_of(table, "4bit").problem(np.zeros((3, 3)))
    assert {tuple(plan) for plan in neighbours(problem, np.array([1, 1, 1])).tolist()} == {(1, 0, 0), (1, 2, 2)}


def test_improving_takes_the_best_of_the_most_promising_while_there_is_room() -> None:
    objective = planned.objective()
    with objective.session():
        meter = Meter(objective)
        portfolio = portfolio_of(meter, "4bit")
        portfolio.measure([(0, 0, 0)])
        before = meter.forwards
        assert portfolio.improve((0, 0, 0), [(2, 2, 2), (1, 1, 1)], room=1.0) == (0, 0, 0)
        assert meter.forwards == before  # two would be measured
        found = portfolio.improve((0, 0, 0), [(2, 2, 2), (1, 1, 1)], room=2.0)
        assert found == min([(0, 0, 0), (1, 1, 1), (2, 2, 2)], key=portfolio.value)
        assert meter.forwards == before + 2.0


# -- candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["3bit", "2.5bit"])
def test_the_additive_plan_is_the_best_sum_of_all(budget: str) -> None:
    objective = planned.objective()
    with objective.session():
        table = table_of(Meter(objective))
    found = search_of(table, budget).additive("measured")
    fitting = [plan for plan in EVERY if bits(plan) <= float(budget[:-3])]
    best = min(fitting, key=lambda plan: table.measured[range(3), plan].sum())
    assert found is not None and found.choice == best and found.optimal and "measured" in found.gap_of
    assert search_of(table, budget).additive("hawq_v2") is None  # not known


def test_the_coupled_plan_is_the_best_of_all_with_pairs() -> None:
    objective = planned.objective()
    rng = np.random.default_rng(0)
    pairs = rng.standard_normal((9, 9)) * 0.05
    pairs = (pairs + pairs.T) / 2.0
    with objective.session():
        table = table_of(Meter(objective))
    search = search_of(table, "3bit")

    def value(plan: tuple[int, ...]) -> float:
        places = [3 * layer + k for layer, k in enumerate(plan)]
        own = sum(pairs[a, b] for a, b in itertools.combinations(places, 2))
        return float(table.measured[range(3), plan].sum() + own)

    best = min((plan for plan in EVERY if bits(plan) <= 3.0), key=value)
    found = search.coupled(table.measured, pairs, [(0, 0, 0)])
    assert found.choice == best and found.optimal


def test_a_uniform_plan_takes_the_nearest_option_where_its_own_is_not_allowed() -> None:
    objective = planned.objective()
    with objective.session():
        table = table_of(Meter(objective), allowed={"2.weight": [2, 3]}, tied=[["0.weight", "4.weight"]])
    search = search_of(table, "3bit")
    assert [search.uniform(k) for k in range(3)] == [(0, 0, 0), (1, 1, 1), (2, 1, 2)]
    assert [search.fits(search.uniform(k)) for k in range(3)] == [True, True, False]
    assert not search.fits((0, 2, 0)) and not search.fits((0, 0, 1))  # not allowed; not tied
