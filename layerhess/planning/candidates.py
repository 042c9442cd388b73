"""Candidate plans: by each way to score single layers, with and without interactions, and uniform ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.allocation import allocated
from layerhess.planning.allocation.exchange import exchanged, judged
from layerhess.planning.allocation.linearised import linearised, number_of_products
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.quadratic import Quadratic
from layerhess.planning.budget import Budget
from layerhess.planning.layers import Layers
from layerhess.planning.measuring.judgement import Choices, Judgement
from layerhess.planning.table import Table

Plan = tuple[int, ...]  # the place of an option for every layer
Guess = Callable[[Choices], Floats]
EVALUATIONS, LEAST = 8_000, 192  # of plans, by the loss at the sum, in one search, at most and at least
NUMBERS = 300_000_000  # of outputs in such a search
FRONTIER = 8  # times less for a plan of another size
STARTS = 3  # of such a search
FEW_PRODUCTS = 1_000  # of options of pairs: so many are solved as a linear program
SECONDS, ADDITIVE_SECONDS = 2.0, 10.0  # for a proof


@dataclass(frozen=True)
class Candidate:
    """A plan before it is measured.

    Attributes:
        name: how it was found. gap, optimal: of its problem, NaN and False where nothing is proven. gap_of: of which.
    """

    name: str
    choice: Plan
    gap: float = math.nan
    optimal: bool = False
    gap_of: str = ""


class Search:
    """Finds plans within a budget, or, for other points of the frontier, within mean bits (``bits``) instead."""

    def __init__(self, layers: Layers, table: Table, budget: Budget, seed: int) -> None:
        self.layers, self.table, self.budget = layers, table, budget
        self._seed = seed

    @cached_property
    def allowed(self) -> Floats:
        """(L, K): 0, and inf for what may not be chosen."""
        return np.array([[math.inf if why else 0.0 for why in row] for row in self.table.why_not])

    @cached_property
    def _within(self) -> Problem:
        return self.problem(self.allowed)

    def problem(self, cost: Floats, bits: float | None = None) -> Problem:
        """The problem with these costs."""
        uses, own = list(self.budget.uses), list(self.budget.limits)
        if bits is not None:
            uses, own = [self.budget.bits], [bits * self.budget.numel]
        return Problem(cost, uses=uses, limits=own, tied=self.layers.tied, pinned=self.layers.pinned)

    def additive(self, column: str, bits: float | None = None) -> Candidate | None:
        """The best plan if layers did not interact, by a column of the table; None where that is not known."""
        cost = self.table.scores(column)
        if cost is None:
            return None
        problem = self.problem(cost, bits=bits)
        found = allocated(problem, ADDITIVE_SECONDS)
        of = f"the sum of the {column} increases"
        return Candidate(column, tuple(map(int, found.choice)), found.gap, found.optimal, of)

    def coupled(self, cost: Floats, couplings: Floats, starts: Sequence[Plan], bits: float | None = None) -> Candidate:
        """The best plan found of the quadratic of single increases and interactions of pairs."""
        layers, options = cost.shape
        quadratic = Quadratic(self.problem(cost, bits), couplings.reshape(layers, options, layers, options))
        fitting = [start for start in dict.fromkeys(starts) if bool(quadratic.problem.feasible(np.array(start)))]
        small = number_of_products(quadratic) <= FEW_PRODUCTS
        solve = linearised if small else exchanged
        found = solve(quadratic, fitting, seed=self._seed, time_limit=SECONDS)
        of = "the sum of the measured increases and of interactions of pairs"
        return Candidate("couplings", tuple(map(int, found.choice)), found.gap, found.optimal, of)

    def by_outputs(
        self, judgement: Judgement, starts: Sequence[Plan], bits: float | None = None, guess: Guess | None = None
    ) -> Candidate:
        """A good plan by the loss at the sum of the changes of the outputs: from the best of the starts.

        Args:
            guess: values of plans that say which are to be judged first.
        """
        judgement = judgement.rough()
        problem = self.problem(self.allowed, bits)
        fitting = [start for start in dict.fromkeys(starts) if bool(problem.feasible(np.array(start)))]
        values = np.nan_to_num(judgement.increase(np.array(fitting)), nan=math.inf)
        begun = [fitting[int(place)] for place in np.argsort(values, kind="stable")[:STARTS]]
        most = max(LEAST, min(EVALUATIONS, NUMBERS // max(judgement.numbers, 1)) // (1 if bits is None else FRONTIER))
        each = max(1, most // len(begun))
        found = [judged(problem, start, judgement.increase, evaluations=each, guess=guess) for start in begun]
        best = min(found, key=lambda one: one.objective)
        return Candidate("outputs", tuple(map(int, best.choice)))

    def uniform(self, option: int) -> Plan:
        """The same option everywhere; where it is not allowed, the next one with more stored bits, else with fewer."""
        problem = Problem(self.allowed, tied=self.layers.tied, pinned=self.layers.pinned)
        groups = problem.groups
        places = []
        for group, members in enumerate(groups.members):
            allowed = np.flatnonzero(groups.allowed[group])
            more = self.budget.bits[members[0], allowed] - self.budget.bits[members[0], option]
            order = np.lexsort((np.abs(more), more < 0.0))
            places.append(option if option in allowed else int(allowed[order[0]]))
        return tuple(map(int, problem.of_layers(np.array(places))))

    def fits(self, plan: Plan) -> bool:
        """Whether a plan is within the budget, tied and pinned layers are as they should be, and no option is out."""
        return bool(self._within.feasible(np.array(plan)))
