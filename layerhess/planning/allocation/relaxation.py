"""What a price on every use proves: a lower bound of the objective, and for each option how far it is from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.problem import Choices, Groups

ROUNDS = 4  # of the linear program, each in the unit that the one before found
SAME_UNIT = 10.0  # a unit at most so many times the bound is kept


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The Lagrangian of the limits at prices p >= 0 (Everett 1963; Fisher 1981).

    For every plan within the limits sum_g c = bound + sum_g excess + sum_j p_j (room_j - use_j), and both sums are
    >= 0. That holds at any p; the dual of the linear program is the one with the highest bound.

    Attributes:
        prices: (J,). bound: no plan within the limits costs less. excess: (G, K), 0 for one option of each group at
            least, inf where not allowed.
    """

    prices: Floats
    bound: float
    excess: Floats


def relaxed(groups: Groups) -> Relaxation | None:
    """The relaxation with the highest bound; None where not even fractions of options meet the limits."""
    least = groups.cost.min(axis=1)
    above = groups.cost - least[:, None]
    best = _at(groups, np.zeros(len(groups.room)))
    binding = np.flatnonzero(groups.uses.max(axis=2, initial=-np.inf).sum(axis=1) > groups.room)
    if not len(binding):
        return best
    unit = float(np.max(above, where=groups.allowed, initial=0.0)) or 1.0
    for _ in range(ROUNDS):
        prices = _dual(groups, binding, np.where(groups.allowed, above, 0.0) / unit)
        if prices is None:
            return None
        # A solver's tolerance is absolute. An option that nobody would take may cost a million times the whole plan:
        # in its unit the prices are rounding.
        found = _at(groups, prices * unit)
        best = max(best, found, key=lambda relaxation: relaxation.bound)
        height = best.bound - float(least.sum())
        if height <= 0.0 or unit <= SAME_UNIT * height:
            break
        unit = height
    return best


def _at(groups: Groups, prices: Floats) -> Relaxation:
    paid = prices > 0.0  # an infinite limit has no price
    priced = groups.cost + np.tensordot(prices[paid], groups.uses[paid], axes=1)
    cheapest = priced.min(axis=1)
    bound = float(cheapest.sum() - prices[paid] @ groups.room[paid])
    return Relaxation(prices, bound, priced - cheapest[:, None])


def _dual(groups: Groups, binding: np.ndarray[tuple[int], np.dtype[np.int64]], cost: Floats) -> Floats | None:
    from scipy.optimize import linprog  # slow to load, and only planning needs it
    from scipy.sparse import csr_array

    undecided = groups.allowed.sum(axis=1) > 1
    at_group, at_option = np.nonzero(groups.allowed & undecided[:, None])
    settled = np.where(groups.allowed & ~undecided[:, None], groups.uses, 0.0).sum(axis=(1, 2))
    room = (groups.room - settled)[binding]
    if not len(at_group):
        return np.zeros(len(groups.room)) if (room >= 0.0).all() else None
    uses = groups.uses[:, at_group, at_option][binding]
    scale = np.maximum(np.abs(groups.room[binding]), np.abs(uses).max(axis=1) * 1e-3)
    rows = np.cumsum(undecided)[at_group] - 1
    one: Any = csr_array((np.ones(len(at_group)), (rows, np.arange(len(at_group)))))  # as dense it is large
    solved = linprog(
        cost[at_group, at_option],
        A_ub=uses / scale[:, None],
        b_ub=room / scale,
        A_eq=one,
        b_eq=np.ones(int(undecided.sum())),
        method="highs",
    )
    if solved.status != 0:
        return None
    prices = np.zeros(len(groups.room))
    prices[binding] = np.maximum(-np.asarray(solved.ineqlin.marginals), 0.0) / scale
    return prices


def rounded(groups: Groups, relaxation: Relaxation) -> Choices | None:
    """A plan (G,) within the limits near the relaxation; None where it is not found by this way.

    Each group takes its option of no excess; while that breaks limits, the change with the least excess for what it
    takes off what is too much is made.
    """
    every = np.arange(len(groups.cost))
    choice: Choices = np.argmin(relaxation.excess, axis=1)
    scale = np.where(np.isfinite(groups.room) & (groups.room != 0.0), np.abs(groups.room), 1.0)
    for _ in range(4 * len(choice)):
        used = groups.uses[:, every, choice]
        over = used.sum(axis=1) - groups.room
        if (over <= 0.0).all():
            return choice
        after = over[:, None, None] + groups.uses - used[:, :, None]
        too_much = (np.maximum(after, 0.0) / scale[:, None, None]).sum(axis=0)
        gain = float((np.maximum(over, 0.0) / scale).sum()) - too_much
        helps = (gain > 0.0) & np.isfinite(relaxation.excess)
        if not helps.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            price = (relaxation.excess - relaxation.excess[every, choice][:, None]) / gain
        g, k = np.unravel_index(int(np.argmin(np.where(helps, price, np.inf))), price.shape)
        choice[g] = k
    return None
