"""The quadratic as a linear program: against all plans of small problems."""

from __future__ import annotations

import numpy as np
import pytest

from layerhess.errors import InputError
from layerhess.planning.allocation.exchange import exchanged
from layerhess.planning.allocation.linearised import linearised, number_of_products
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.quadratic import Quadratic
from small_quadratics import small


@pytest.mark.parametrize("kind", ["indefinite", "gram"])
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 15))])
def test_small_problems_are_proven_to_their_optimum(seed: int, kind: str) -> None:
    case = small(seed, kind=kind, strength=0.5)
    found = linearised(case.quadratic)
    assert found.optimal and found.gap == 0.0
    assert found.objective == pytest.approx(case.least, rel=1e-8, abs=1e-8)
    assert case.quadratic.problem.feasible(found.choice)


def test_its_bound_holds_where_time_ends_it() -> None:
    case = small(3, layers=7, options=3)
    found = linearised(case.quadratic, time_limit=0.001)
    assert found.bound <= case.least + 1e-8
    assert found.objective <= exchanged(case.quadratic).objective


def test_only_pairs_with_interactions_have_products() -> None:
    pairs = np.zeros((3, 2, 3, 2))
    pairs[0, 1, 2, 0] = pairs[2, 0, 0, 1] = 1.0
    assert number_of_products(Quadratic(Problem(np.zeros((3, 2))), pairs)) == 4
    assert number_of_products(Quadratic(Problem([[0.0, 1.0], [0.0, 1.0], [0.0, np.inf]]), pairs)) == 2


def test_too_many_products_are_refused() -> None:
    pairs = np.ones((100, 4, 100, 4))
    with pytest.raises(InputError, match="too many"):
        linearised(Quadratic(Problem(np.zeros((100, 4))), pairs))
