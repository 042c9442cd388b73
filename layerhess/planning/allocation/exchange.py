"""Search on an objective with interactions: single changes and exchanges between two layers, from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerhess.errors import InputError
from layerhess.planning.allocation.allocation import Allocation, allocated, relative_gap
from layerhess.planning.allocation.descent import descended
from layerhess.planning.allocation.frontier import random_plans
from layerhess.planning.allocation.lower_bound import lower_bound
from layerhess.planning.allocation.problem import Choices, Problem
from layerhess.planning.allocation.quadratic import Quadratic

PROVEN = 1e-9  # of |objective|: so near to its bound it is optimal
MOST_WORK, FEWEST, MOST = 2_000_000, 2, 12  # entries of interactions looked at; random starts
KICKS = 2  # for each random start
REDRAWN = 5.0  # layers, in the mean
MOST_NEIGHBOURS = 4_000_000  # numbers in all exchanges of two layers
BATCH = 64  # plans judged at a time


def exchanged(
    quadratic: Quadratic,
    starts: Sequence[Any] = (),
    *,
    random: int | None = None,
    seed: int = 0,
    time_limit: float | None = 5.0,
) -> Allocation:
    """The best plan that local search finds, with a bound that is proven.

    It starts at the given plans, at the best one of the additive problem, and at random ones; from each it goes on
    until no change of one or two layers improves (:func:`~.descent.descended`). Then, twice as
    often, a few layers of the best plan are drawn anew and search begins there (iterated local search, Lourenço, Martin
    & Stützle 2003). The same seed gives the same plan.

    Args:
        quadratic: costs, interactions and limits. starts: plans (L,) within the limits. random: number of random
            starts; None: 2 to 12, fewer for large problems. seed: of these. time_limit: seconds for the bound, see
            :func:`~layerhess.planning.lower_bound.lower_bound`.

    Returns:
        The plan; ``bound`` and ``gap`` say how far from the optimum it may be at most, ``optimal`` that it is none.

    Raises:
        InputError: a start that breaks a limit; or no plan meets the limits.
    """
    problem = quadratic.problem
    additive = allocated(problem, time_limit)
    plans = [additive.choice]
    for i, start in enumerate(starts):
        plan = np.asarray(start)
        if plan.shape != (len(problem.cost),) or not bool(problem.feasible(plan)):
            raise InputError(
                "a start is no plan within the limits", where=f"starts[{i}]", what_to_do="start at one that meets them"
            )
        plans.append(plan)
    if random is None:
        random = int(np.clip(MOST_WORK // quadratic.groups.cost.size**2, FEWEST, MOST))
    rng = np.random.default_rng(seed)
    plans += list(random_plans(problem, random, rng))
    found = [_improved(quadratic, plan) for plan in plans]
    best = found[int(np.argmin(quadratic.objective(np.stack(found))))]
    for _ in range(KICKS * random):
        kicked = random_plans(problem, 1, rng, near=best, redrawn=min(0.5, REDRAWN / len(quadratic.groups.cost)))[0]
        found.append(_improved(quadratic, kicked))
        best = min(best, found[-1], key=lambda plan: float(quadratic.objective(plan)))
    return judged_against(quadratic, found, lower_bound(quadratic, time_limit=time_limit).value)


def _improved(quadratic: Quadratic, plan: Choices) -> Choices:
    problem = quadratic.problem
    return problem.of_layers(descended(quadratic.groups, problem.of_groups(plan), quadratic.group_pairs))


def judged_against(quadratic: Quadratic, plans: Sequence[Choices], bound: float, near: float = 0.0) -> Allocation:
    """The best of some plans, and how far from a bound it is; optimal if not more than ``near`` or rounding."""
    values = quadratic.objective(np.stack(plans))
    choice, objective = plans[int(np.argmin(values))], float(values.min())
    optimal = objective - bound <= max(near, PROVEN * abs(objective))
    bound = objective if optimal else bound
    return Allocation(
        choice, objective, bound, relative_gap(objective, bound), optimal, quadratic.problem.totals(choice)
    )


@dataclass(frozen=True, eq=False)
class Judged:
    """What a search found with an objective that it can only ask for.

    Attributes:
        choice: (L,). objective: its value. evaluations: plans that were judged. settled: all single changes and all
            exchanges between two layers were judged (by one step each where there are very many), and none improves.
    """

    choice: Choices
    objective: float
    evaluations: int
    settled: bool


def judged(
    problem: Problem,
    start: Any,
    objective: Callable[[Choices], Any],
    *,
    evaluations: int = 2000,
    guess: Callable[[Choices], Any] | None = None,
) -> Judged:
    """Local search for any objective of whole plans, within a number of evaluations.

    From the present plan all single changes, and all exchanges in which one layer goes to a larger option and one to a
    smaller (by one step each where there are very many), are put in the order of the guess and judged in lots; the
    best of the first lot that has an improvement is the next plan. No plan is judged twice.

    Args:
        problem: limits, ties, pins. start: (L,) within the limits. objective: choices (n, L) -> (n,), smaller is
            better; NaN is worst. evaluations: plans that may be judged, the start counted. guess: the same, but cheap,
            such as a quadratic's; None: the additive costs.

    Raises:
        InputError: a start that breaks a limit, or whose objective is not finite.
    """
    plan = np.array(start, dtype=np.int64)
    if plan.shape != (len(problem.cost),) or not bool(problem.feasible(plan)):
        raise InputError("the start is no plan within the limits", where="start", what_to_do="start at one that is")
    order = problem.objective if guess is None else guess
    value = float(np.asarray(objective(plan[None]))[0])
    if not np.isfinite(value):
        raise InputError(f"the objective of the start is {value}", where="start", what_to_do="start at another plan")
    seen, spent = {plan.tobytes()}, 1
    while True:
        near = np.array([other for other in neighbours(problem, plan) if other.tobytes() not in seen])
        near = near.reshape(-1, len(plan))
        near = near[np.argsort(np.asarray(order(near)), kind="stable")] if len(near) else near
        improved = False
        for first in range(0, len(near), BATCH):
            lot = near[first : first + min(BATCH, evaluations - spent)]
            if not len(lot):
                return Judged(plan, value, spent, settled=False)
            values = np.asarray(objective(lot), dtype=np.float64)
            spent += len(lot)
            seen |= {other.tobytes() for other in lot}
            values = np.where(np.isnan(values), np.inf, values)
            if values.min() < value:
                plan, value, improved = lot[int(np.argmin(values))], float(values.min()), True
                break
        if not improved:
            return Judged(plan, value, spent, settled=True)


def neighbours(problem: Problem, plan: Choices) -> Choices:
    """(n, L) plans within the limits that differ from one in one layer, or in one that grows and one that shrinks."""
    groups, choice = problem.groups, problem.of_groups(plan)
    g, k = np.nonzero(groups.allowed & (np.arange(groups.cost.shape[1]) != choice[:, None]))
    single = np.repeat(choice[None], len(g), axis=0)
    single[np.arange(len(g)), g] = k
    first, second = _exchanges(problem, choice, g, k)
    double = np.repeat(choice[None], len(first), axis=0)
    double[np.arange(len(first)), g[first]] = k[first]
    double[np.arange(len(first)), g[second]] = k[second]
    found = problem.of_layers(np.concatenate([single, double]))
    return np.asarray(found[problem.feasible(found)])


def _exchanges(problem: Problem, choice: Choices, g: Choices, k: Choices) -> tuple[Choices, Choices]:
    """Pairs of single changes, one to a larger and one to a smaller option: all, or by one step each if too many."""
    groups = problem.groups
    scale = np.where(np.isfinite(groups.room) & (groups.room != 0.0), np.abs(groups.room), 1.0)
    size = np.where(groups.allowed, (groups.uses / scale[:, None, None]).sum(axis=0), np.inf)
    place = np.argsort(np.argsort(size, axis=1, kind="stable"), axis=1, kind="stable")
    steps = place[g, k] - place[np.arange(len(choice)), choice][g]
    if (steps > 0).sum() * (steps < 0).sum() * len(choice) > MOST_NEIGHBOURS:
        steps = np.where(np.abs(steps) == 1, steps, 0)
    up, down = np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)
    first, second = (axis.ravel() for axis in np.meshgrid(up, down, indexing="ij"))
    different = g[first] != g[second]
    return first[different], second[different]
