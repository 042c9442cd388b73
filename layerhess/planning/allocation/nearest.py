"""Where no plan meets the limits: what can be reached, and the plan that misses them least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.problem import Choices, Problem

SECONDS = 5.0  # for the integer program; what it has found by then is shown


@dataclass(frozen=True, eq=False)
class Nearest:
    """The plan that misses the limits least: its largest excess over a limit, relative to that limit, is smallest.

    Attributes:
        choice: (L,). uses: (J,) what it uses. least: (J,) the smallest use of each limit by itself. over: (J,) by how
            much the plan's uses are above the limits, 0 where they are not.
    """

    choice: Choices
    uses: Floats
    least: Floats
    over: Floats


def nearest(problem: Problem) -> Nearest:
    """What comes nearest to the limits, costs left aside.

    >>> near = nearest(Problem([[0.0, 1.0]] * 2, uses=[[[4, 3], [4, 2]]], limits=[4]))
    >>> near.choice.tolist(), near.over.tolist()
    ([1, 1], [1.0])
    """
    groups = problem.groups
    limits = np.array(problem.limits)
    used = np.where(groups.allowed, groups.uses, np.inf)
    least = used.min(axis=2).sum(axis=1)
    binding = np.flatnonzero(used.max(axis=2, initial=-np.inf, where=groups.allowed).sum(axis=1) > groups.room)
    scale = np.where(np.abs(limits) > 0.0, np.abs(limits), np.maximum(np.abs(least), 1.0))
    if len(binding) < 2:
        weights = used[binding[0]] if len(binding) else np.where(groups.allowed, 0.0, np.inf)
        choice = np.argmin(weights, axis=1)
    else:
        choice = _least_over(problem, binding, scale)
    plan = problem.of_layers(choice)
    uses = problem.totals(plan)
    over = np.where(uses <= groups.room, 0.0, uses - limits)
    return Nearest(plan, uses, least, over)


def no_plan(problem: Problem) -> InputError:
    """The refusal of a problem without any plan within its limits; its ``details`` say what comes nearest."""
    near = nearest(problem)
    alone = [j for j, least in enumerate(near.least) if least > problem.groups.room[j]]
    details = [
        f"limit {j}: {limit:.6g}; the least that can be used is {least:.6g}; the nearest plan uses {use:.6g}"
        + (f", {over:.3g} too much" if over > 0.0 else "")
        for j, (limit, least, use, over) in enumerate(
            zip(problem.limits, near.least, near.uses, near.over, strict=True)
        )
    ]
    details.append(f"the nearest plan: {near.choice.tolist()}")
    if alone:
        j = alone[0]
        missed = near.least[j] - problem.limits[j]
        message = (
            f"no plan meets limit {j}: the least use is {near.least[j]:.6g}, {missed:.3g} above {problem.limits[j]:.6g}"
        )
    else:
        over = ", ".join(f"limit {j} by {near.over[j]:.3g}" for j in np.flatnonzero(near.over > 0.0))
        message = f"each limit can be met, but not all together: the nearest plan misses {over}"
    return InputError(message, where="limits", what_to_do="raise the limits, or allow smaller options", details=details)


def _least_over(problem: Problem, binding: np.ndarray[tuple[int], np.dtype[np.int64]], scale: Floats) -> Choices:
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to load, and only planning needs it
    from scipy.sparse import csr_array, hstack

    groups = problem.groups
    at_group, at_option = np.nonzero(groups.allowed)
    n = len(at_group)
    rows = groups.uses[:, at_group, at_option][binding] / scale[binding, None]
    one = hstack([csr_array((np.ones(n), (at_group, np.arange(n)))), csr_array((len(groups.cost), 1))])
    solved = milp(
        np.append(np.zeros(n), 1.0),
        integrality=np.append(np.ones(n), 0.0),
        bounds=Bounds(np.zeros(n + 1), np.append(np.ones(n), np.inf)),
        constraints=[
            LinearConstraint(one, 1.0, 1.0),
            LinearConstraint(np.column_stack([rows, -np.ones(len(binding))]), -np.inf, (groups.room / scale)[binding]),
        ],
        options={"time_limit": SECONDS},
    )
    if solved.x is None:
        smallest = np.where(groups.allowed, (groups.uses[binding] / scale[binding, None, None]).sum(axis=0), np.inf)
        return np.asarray(np.argmin(smallest, axis=1))
    taken = np.full(groups.cost.shape, -1.0)
    taken[at_group, at_option] = solved.x[:n]
    return np.asarray(np.argmax(taken, axis=1))
