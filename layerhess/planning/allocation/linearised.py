"""The objective with interactions as a mixed-integer linear program: for small problems, with proof."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.allocation import Allocation
from layerhess.planning.allocation.exchange import exchanged, judged_against
from layerhess.planning.allocation.problem import Choices
from layerhess.planning.allocation.quadratic import Quadratic

MOST_PRODUCTS = 60_000  # of a pair's options; the linear program alone takes minutes beyond
UNITS = 1e4  # the objective's range in the program's units: HiGHS stops at a distance of 1e-6 of them
DISTANCE = 5e-5  # of its bound from the truth at most, by its tolerances; and so subtracted


def linearised(
    quadratic: Quadratic,
    starts: Sequence[Any] = (),
    *,
    time_limit: float = 5.0,
    random: int | None = None,
    seed: int = 0,
) -> Allocation:
    """The best plan, proven where time allows; never worse than :func:`~.exchange.exchanged`.

    For each pair of layers with interactions, y[k, p] stands for x_g[k] x_h[p], with sum_p y[k, p] = x_g[k] and sum_k
    y[k, p] = x_h[p] (Adams & Sherali 1986, the first level of their reformulation): exact for integral x, and bounding
    otherwise. HiGHS solves it; what it finds is checked here, improved by local search and compared with that of local
    search alone. Its lower bound holds when it is stopped, too; without one, that of the additive underestimate.

    Args:
        quadratic: costs, interactions, limits. starts, random, seed: of the local search. time_limit: seconds
            for HiGHS.

    Raises:
        InputError: more than ``MOST_PRODUCTS`` products of options; no plan meets the limits.
    """
    products = number_of_products(quadratic)
    if products > MOST_PRODUCTS:
        raise InputError(
            f"{products} products of options are too many to be linearised",
            where="linearised",
            what_to_do=f"use exchanged; at most {MOST_PRODUCTS} are solved here",
        )
    found = exchanged(quadratic, starts, random=random, seed=seed, time_limit=time_limit)
    if found.optimal:
        return found
    choice, bound, near = _solved(quadratic, time_limit)
    plans = [found.choice]
    if choice is not None and bool(quadratic.problem.feasible(choice)):
        again = exchanged(quadratic, [choice], random=0, time_limit=time_limit)
        plans += [choice, again.choice]
    return judged_against(quadratic, plans, max(bound, found.bound), near)


def number_of_products(quadratic: Quadratic) -> int:
    """How many products of options the linear form has."""
    return sum(len(k) * len(p) for _, _, k, p in _pairs(quadratic))


def _pairs(quadratic: Quadratic) -> list[tuple[int, int, Choices, Choices]]:
    """Pairs of groups with interactions among their allowed options, each with these options."""
    groups = quadratic.groups
    options = [np.flatnonzero(row) for row in groups.allowed]
    return [
        (g, h, options[g], options[h])
        for g in range(len(options))
        for h in range(g + 1, len(options))
        if _block(quadratic, g, h, options[g], options[h]).any()
    ]


def _block(quadratic: Quadratic, g: int, h: int, k: Choices, p: Choices) -> Floats:
    return np.asarray(quadratic.group_pairs[g, :, h][np.ix_(k, p)])


def _solved(quadratic: Quadratic, time_limit: float) -> tuple[Choices | None, float, float]:
    """A plan (L,) if one was found, a lower bound, and how near to it counts as solved."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to load, and only planning needs it
    from scipy.sparse import coo_array

    groups = quadratic.groups
    at_group, at_option = np.nonzero(groups.allowed)
    index = np.full(groups.allowed.shape, -1)
    index[at_group, at_option] = np.arange(len(at_group))
    least = np.where(groups.allowed, groups.cost, np.inf).min(axis=1)
    costs: list[Floats] = [groups.cost[at_group, at_option] - least[at_group]]
    # Entries (row, column, value) of the equations = right-hand side: one option for each group, then the products'.
    entries = [(at_group, np.arange(len(at_group)), np.ones(len(at_group)))]
    right, row, column, constant = [np.ones(len(least))], len(least), len(at_group), float(least.sum())
    for g, h, k, p in _pairs(quadratic):
        block = _block(quadratic, g, h, k, p)
        floor = float(block.min())
        costs.append((block - floor).ravel())
        constant += floor
        products = column + np.arange(block.size).reshape(block.shape)
        to_g, to_h = row + np.arange(len(k)), row + len(k) + np.arange(len(p))
        entries += [
            (np.repeat(to_g, len(p)), products.ravel(), np.ones(block.size)),
            (np.tile(to_h, len(k)), products.ravel(), np.ones(block.size)),
            (to_g, index[g, k], -np.ones(len(k))),
            (to_h, index[h, p], -np.ones(len(p))),
        ]
        right.append(np.zeros(len(k) + len(p)))
        row, column = row + len(k) + len(p), column + block.size
    rows, columns, values = (np.concatenate([entry[i] for entry in entries]) for i in range(3))
    at = (rows.astype(np.int32), columns.astype(np.int32))  # older SciPys give HiGHS no larger integers
    cost, equal = np.concatenate(costs), np.concatenate(right)
    unit = (float(np.max(costs[0], initial=0.0)) + sum(float(part.max()) for part in costs[1:]) or 1.0) / UNITS
    constraints = [LinearConstraint(coo_array((values, at), shape=(row, column)).tocsr(), equal, equal)]
    limited = np.flatnonzero(np.isfinite(groups.room))
    if len(limited):
        uses = groups.uses[:, at_group, at_option][limited]
        scale = np.maximum(np.abs(groups.room[limited]), np.abs(uses).max(axis=1))
        table = np.zeros((len(limited), column))
        table[:, : len(at_group)] = uses / scale[:, None]
        constraints.append(LinearConstraint(table, -np.inf, groups.room[limited] / scale))
    integral = np.zeros(column, dtype=np.int64)
    integral[: len(at_group)] = 1
    solved = milp(
        cost / unit,
        integrality=integral,
        bounds=Bounds(0.0, 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 0.0, "time_limit": time_limit},
    )
    near = 2.0 * DISTANCE * unit
    bound = -np.inf if solved.mip_dual_bound is None else (solved.mip_dual_bound - DISTANCE) * unit + constant
    if solved.x is None:
        return None, float(bound), near
    taken = np.full(groups.allowed.shape, -1.0)
    taken[at_group, at_option] = solved.x[: len(at_group)]
    return quadratic.problem.of_layers(np.argmax(taken, axis=1)), float(bound), near
