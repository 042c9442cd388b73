"""The steps from an objective to a plan: table, interactions, candidates, measured portfolio, frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layerhess.errors import CheckError, InputError
from layerhess.linalg.estimates import Floats
from layerhess.objective.objective import Objective
from layerhess.planning.allocation.exchange import neighbours
from layerhess.planning.budget import Budget
from layerhess.planning.candidates import Candidate, Plan, Search
from layerhess.planning.layers import Layers
from layerhess.planning.measuring.judgement import Choices, Judgement, Outputs, float_outputs, quadratic
from layerhess.planning.measuring.meter import Meter, Room
from layerhess.planning.portfolio import Portfolio
from layerhess.planning.predictions import COLUMNS, hessian_couplings, predictions
from layerhess.planning.reach import refuse_unreachable
from layerhess.planning.rows_file import RowsFile
from layerhess.planning.table import Table, around, measured_table

ROOM = 3.0  # forward passes for every (layer, option): for measuring, interactions and portfolio together
PROMISING = 256  # neighbours of a plan that are looked at closely
LEVELS = 8  # points of the frontier beside the plan and uniform ones
OUTPUT_SHARE = 0.25  # of the memory that is free, for outputs and changes of them
WEIGHT_SHARE = 0.1  # for changed weights
MOST_OUTPUTS = 4e9  # bytes
ADDITIVE = ("measured", "kl", "curvature", "gauss_newton", "hawq_v2")  # columns that make candidates


@dataclass(frozen=True)
class Question:
    """What is asked, beside layers and budget.

    Attributes:
        criterion, couplings, curvature, seed: as :func:`layerhess.plan` takes them. free: bytes that may be used.
        batches: of the data of this process.
    """

    criterion: str
    couplings: str
    curvature: bool
    seed: int
    free: float
    batches: int


class Planner:
    """Makes a plan (in session).

    Attributes:
        meter, table, portfolio, search: what was found. judgement: of the outputs, or None. couplings: (L K, L K) of
            pairs at the float model, or None. notes: sentences.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Layers,
        budget: Budget,
        question: Question,
        rows: RowsFile,
        told: Callable[[float, str], None],
    ) -> None:
        self.objective, self.layers, self.budget, self.question, self.rows = objective, layers, budget, question, rows
        self._told = told
        self._what = "the float model"
        self.notes: list[str] = []
        self.judgement: Judgement | None = None
        self._first: Judgement | None = None  # at the float model
        self._around: set[Plan] = set()  # plans whose measurements went into the judgement at another one
        self.couplings: Floats | None = None
        self.measuring = 0.0
        self.curvature_gradients = 0.0
        room = Room(
            weights=question.free * WEIGHT_SHARE,
            outputs=min(question.free * OUTPUT_SHARE, MOST_OUTPUTS),
            copies=4.0 * len(layers.weights) * len(layers.options) if question.couplings == "outputs" else 0.0,
            batches=question.batches,
            seed=question.seed,
        )
        self.meter = Meter(objective, room=room, told=lambda forwards: told(forwards, self._what))
        self.meter.refuse_random()
        self._outputs = self._outputs_kept()
        kept = None if self._outputs is None else [len(output) for _, output in self._outputs]
        rows.pair(self.meter.float_model.losses, kept)
        measure = question.criterion == "measured" or self._outputs is not None
        self.table = self._table(measure)
        self.search = Search(layers, self.table, budget, question.seed)
        self._refuse_unreachable()
        self.portfolio = Portfolio(self.meter, self.search, rows)

    @property
    def room(self) -> float:
        """Forward passes that are left; those of an earlier run that this one goes on with are spent."""
        return round(ROOM * self.table.measured.size - self.meter.forwards - self.rows.spared, 6)

    # -- the table ----------------------------------------------------------------------------------------------------

    def _outputs_kept(self) -> Outputs | None:
        if self.question.couplings != "outputs":
            return None
        model = self.meter.float_model
        found = float_outputs(model, self.objective.group)
        if found is None:
            self.notes.append(
                "interactions between layers are taken from Hessian products: the loss is no known function of one "
                "output, or its outputs do not fit into memory"
            )
        elif model.share < 1.0:
            self.notes.append(f"interactions between layers are from a random {model.share:.1%} of the outputs' rows")
        return found

    def _table(self, measure: bool) -> Table:
        criterion = self.question.criterion
        wanted: Sequence[str] = () if criterion in ("measured", "kl") else (criterion,)
        if self.question.curvature:
            wanted = COLUMNS
        self._what = "curvature"
        found = predictions(
            self.objective,
            self.layers,
            seed=self.question.seed,
            wanted=wanted,
            told=lambda what: self._told(0.0, what),
        )
        self.curvature_gradients += found.gradients
        self.notes += found.notes
        self._what = "each layer with each option"
        outputs = self._outputs is not None
        return measured_table(self.meter, self.layers, found, self.rows, measure=measure, outputs=outputs)

    def _refuse_unreachable(self) -> None:
        for i, row in enumerate(self.table.why_not):
            if all(row):
                raise InputError(
                    f"no option is left for {self.layers.names[i]!r}: {'; '.join(dict.fromkeys(row))}",
                    where="options",
                    what_to_do="allow more bits for it, or leave it out with layers=",
                )
        refuse_unreachable(self.layers, self.budget, self.table.why_not)
        if self.question.criterion != "measured" and self.table.scores(self.question.criterion) is None:
            why = next((note for note in self.notes if self.question.criterion in note), "it is not known")
            raise InputError(
                f"the criterion {self.question.criterion!r} cannot be used: {why}",
                where="criterion",
                what_to_do="use criterion='measured'",
            )

    # -- the plan -----------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """The best of the measured plans within the budget.

        Raises:
            InputError: no plan meets the budget.
        """
        self.measuring = self.meter.forwards
        criterion = self.question.criterion
        first = self.search.additive(criterion)
        assert first is not None
        self._interactions()
        self._what = "candidate plans"
        if criterion != "measured":
            return self._by_criterion(first)
        others = [self.search.additive(column) for column in ADDITIVE[1:]]
        uniform = self._uniform()
        self.portfolio.add([first, *others, *uniform])
        starts = [candidate.choice for candidate in (first, *others) if candidate is not None]
        starts += [candidate.choice for candidate in uniform if self.search.fits(candidate.choice)]
        cost = self.table.scores("measured")
        assert cost is not None
        if self.couplings is not None:
            self.portfolio.add([self.search.coupled(cost, self.couplings, starts)])
        if self.judgement is not None:
            self.portfolio.add([self.search.by_outputs(self.judgement, starts, guess=self._guess)])
            self._look_around(starts)
        if self.budget.increase is not None:
            return self._smallest(cost, starts)
        self._last_exchanges(cost)
        self._frontier(starts)
        best = self.portfolio.best()
        if best is None or not math.isfinite(self.portfolio.value(best)):
            raise InputError(
                "the loss of every plan within the budget is NaN or infinite",
                where=f"budget {self.budget.text}",
                what_to_do="allow more bits, or a finer granularity",
            )
        return best

    def _smallest(self, cost: Floats, starts: list[Plan]) -> Plan:
        """The smallest plan found whose measured increase is below the budget's cap.

        Plans of many sizes are predicted; they are measured from the smallest that is predicted to meet the cap on, up
        to one that does; then smaller neighbours of it are tried.

        Raises:
            InputError: none does.
        """
        cap = self.budget.increase
        assert cap is not None
        plans = list(dict.fromkeys([*self._levels(3 * LEVELS, starts), *self.portfolio.plans]))
        plans = sorted((plan for plan in plans if self.search.fits(plan)), key=self.budget.size_bytes)
        predicted = self.predicted(plans) if plans else np.zeros(0)
        hopeful = [plan for plan, value in zip(plans, predicted, strict=True) if value <= 1.2 * cap]
        for plan in hopeful:
            self.portfolio.measure([plan])
            if self.portfolio.best() is not None and self.portfolio.value(plan) <= cap:
                break
        best = self.portfolio.best()
        if best is None:
            fitting = [plan for plan in self.portfolio.plans if self.search.fits(plan)]
            nearest = min(fitting or self.portfolio.plans, key=self.portfolio.value)
            raise InputError(
                f"no plan keeps the increase of the loss below {cap:g}; the nearest one that was measured increases it "
                f"by {self.portfolio.value(nearest):.4g}",
                where="budget",
                what_to_do="allow a larger increase, or options with more bits",
            )
        while self.room >= 1.0:
            others = [
                plan for plan in self._ranked(best, cost) if self.budget.size_bytes(plan) < self.budget.size_bytes(best)
            ]
            values = self.predicted(others) if others else np.zeros(0)
            hopeful = [plan for plan, value in zip(others, values, strict=True) if value <= cap]
            found = self.portfolio.improve(best, sorted(hopeful, key=self.budget.size_bytes), self.room)
            if found == best:
                return best
            best = found
        return best

    def _interactions(self) -> None:
        if self._outputs is not None:
            self._what = "interactions"
            self.judgement = Judgement(
                self._outputs, self.table.steps, self.table.measured, scale=self.meter.scale, count=self._count
            )
            self._first = self.judgement
            try:
                self.couplings = self.judgement.couplings()
            except RuntimeError as error:  # torch has no second derivative of some losses
                if "memory" in str(error):
                    raise
                self.notes.append(f"interactions of pairs are not known: {str(error).splitlines()[0]}")
        elif self.question.couplings != "none":
            try:
                self.couplings, gradients = hessian_couplings(
                    self.objective, self.layers, lambda what: self._told(0.0, what)
                )
            except (InputError, CheckError) as error:
                if self.question.couplings == "hessian":
                    raise
                self.notes.append(f"interactions between layers are not known: {error.message}")
                return
            self.curvature_gradients += gradients

    @property
    def _count(self) -> float:
        return float(self.meter.float_model.counts.sum())

    def _by_criterion(self, first: Candidate) -> Plan:
        """The plan of one criterion, with interactions where they are asked for; no others are measured."""
        found = first
        cost = self.table.scores(self.question.criterion)
        assert cost is not None
        self.portfolio.add([first, *self._uniform()])
        if self.couplings is not None and self.question.criterion in ("curvature", "gauss_newton"):
            found = self.search.coupled(cost, self.couplings, [first.choice])
            self.portfolio.add([found])
        return found.choice

    def _uniform(self) -> list[Candidate]:
        plans = [(k, self.search.uniform(k)) for k in range(len(self.layers.options))]
        return [Candidate(f"uniform {self.layers.options[k].name}", plan) for k, plan in plans if k in plan]

    def _look_around(self, starts: list[Plan]) -> None:
        """Measure every step again, from the best uniform plan within the budget: near it plans are judged."""
        assert self._outputs is not None
        fitting = [plan for plan in dict.fromkeys(c.choice for c in self._uniform()) if self.search.fits(plan)]
        fitting = [plan for plan in fitting if math.isfinite(self.portfolio.value(plan))]
        base = min(fitting, key=self.portfolio.value, default=self.portfolio.best())
        if base is None:
            return
        # What is left then: for the plans that are found, and the frontier.
        found = around(self.meter, self.table, base, self.rows, self.room - LEVELS)
        if found is None:
            return
        measured, steps, increases = found
        self.portfolio.know(base, measured)
        self._around.add(base)
        for i, row in enumerate(steps):
            for k, step in enumerate(row):
                if step is not None and k != base[i]:
                    plan = (*base[:i], k, *base[i + 1 :])
                    self.portfolio.know(plan, replace(step, outputs=()))
                    self._around.add(plan)
        start = self.meter.increase(measured).value
        self.judgement = Judgement(
            self._outputs, steps, increases, base=measured, start=start, scale=self.meter.scale, count=self._count
        )
        best = self.portfolio.best()
        found_now = self.search.by_outputs(self.judgement, [*starts, *([best] if best else [])], guess=self._guess)
        self.portfolio.add([replace(found_now, name="outputs around a uniform plan")])

    def _last_exchanges(self, cost: Floats) -> Plan | None:
        """Measured exchanges from the best plan so far, those that are predicted best first."""
        best = self.portfolio.best()
        if best is None or (self.judgement is None and self.couplings is None):
            return best
        while self.room - LEVELS >= 1.0:
            ranked = self._ranked(best, cost)
            found = self.portfolio.improve(best, ranked, self.room - LEVELS)
            if found == best:
                break
            best = found
        self.portfolio.add([Candidate("measured exchanges", best)])
        return best

    def _ranked(self, plan: Plan, cost: Floats) -> list[Plan]:
        """The most promising neighbours of a plan: by the quadratic, and the first of them by the outputs."""
        others = neighbours(self.search.problem(cost), np.array(plan))
        others = others[np.argsort(self._guess(others), kind="stable")[:PROMISING]]
        if self.judgement is not None and len(others):
            others = others[np.argsort(self.judgement.rough().increase(others), kind="stable")]
        return [tuple(map(int, other)) for other in others]

    def predicted(self, plans: Sequence[Plan]) -> Floats:
        """The increases that are predicted for plans, with interactions where they are known.

        From the float model for plans whose own measurements went into the judgement around another plan: what was
        measured cannot be predicted.
        """
        choices = np.array(plans, dtype=np.int64).reshape(len(plans), len(self.layers.weights))
        if self.judgement is not None and self._first is not None:
            known = np.array([tuple(plan) in self._around for plan in plans], dtype=bool)
            values = np.empty(len(plans))
            for judgement, some in ((self._first, known), (self.judgement, ~known)):
                if some.any():
                    values[some] = judgement.increase(choices[some])
            return values
        found = self.predicted_block(plans)
        if self.couplings is not None:
            found = found + quadratic(self.couplings, choices, len(self.layers.options))
        return found

    def _guess(self, choices: Choices) -> Floats:
        """By the quadratic at the float model, or the sum over layers where pairs are unknown: cheap."""
        cost = np.where(np.isinf(self.search.allowed), np.inf, self.table.measured)
        alone: Floats = cost[np.arange(choices.shape[1]), choices].sum(axis=1)
        return alone if self.couplings is None else alone + quadratic(self.couplings, choices, len(self.layers.options))

    def predicted_block(self, plans: Sequence[Plan]) -> Floats:
        """The sums over layers of the increases by one option alone."""
        choices = np.array(plans, dtype=np.int64).reshape(len(plans), len(self.layers.weights))
        column = "measured" if np.isfinite(self.table.measured).any() else self.question.criterion
        scores = self.table.measured if column == "measured" else getattr(self.table.predictions, column)
        found: Floats = np.asarray(scores)[np.arange(choices.shape[1]), choices].sum(axis=1)
        return found

    # -- the frontier -------------------------------------------------------------------------------------------------

    def _frontier(self, starts: list[Plan]) -> None:
        """Plans of other sizes, so that people see what a little more or less would give."""
        self._what = "the frontier"
        self.portfolio.measure(self._levels(int(min(LEVELS, max(self.room, 0.0))), starts))

    def _levels(self, number: int, starts: list[Plan]) -> list[Plan]:
        """Plans of so many mean bits, evenly between the least and the most that options allow."""
        bits = np.where(np.isinf(self.search.allowed), np.nan, self.budget.bits)
        least, most = (float(end(bits, axis=1).sum()) / self.budget.numel for end in (np.nanmin, np.nanmax))
        plans = []
        for level in np.linspace(least, most, number + 2)[1:-1]:
            try:
                found = self.search.additive("measured", bits=float(level))
            except InputError:  # no plan is as small as that within the other limits
                continue
            if found is not None and self.judgement is not None:
                found = self.search.by_outputs(self.judgement, [found.choice], bits=float(level), guess=self._guess)
            if found is not None:
                plans.append(found.choice)
        return plans
