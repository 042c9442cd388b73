"""The objective with interactions: what two layers' options cost together beyond what each costs alone."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from layerhess.errors import InputError
from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.descent import Pairs
from layerhess.planning.allocation.problem import Groups, Problem

SYMMETRIC = 1e-9  # of the largest entry
TINY = 1e-10  # of the largest norm of a row: rounding of eigenvalues
AT_ONCE = 1 << 22  # entries gathered


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Minimise sum_l cost[l, k_l] + sum_{l<m} pairs[l, k_l, m, k_m] within the limits of a problem.

    Args:
        problem: costs, uses, limits, ties and pins. pairs: (L, K, L, K), symmetric: pairs[l, k, m, p] = pairs[m, p, l,
            k]. Entries of what is not allowed are not read; those of a layer with itself are no part of the objective:
            they only help :meth:`convex`, and may be 0.

    Attributes:
        groups: tied layers as one: their costs hold what they have among themselves. group_pairs: (G, K, G, K), zero
            between a group's own options. own: (G, K, K), what was given between these. whole: (L, K, L, K), as given.

    Raises:
        InputError: another shape, not symmetric, or not finite where options are allowed.

    >>> import numpy as np
    >>> pairs = np.zeros((2, 2, 2, 2))
    >>> pairs[0, 1, 1, 1] = pairs[1, 1, 0, 1] = 5.0
    >>> Quadratic(Problem([[0.0, 1.0], [0.0, 2.0]]), pairs).objective([[1, 0], [1, 1]]).tolist()
    [1.0, 8.0]
    """

    problem: Problem
    pairs: Pairs
    groups: Groups = field(init=False, repr=False)
    group_pairs: Pairs = field(init=False, repr=False)
    own: Floats = field(init=False, repr=False)
    whole: Pairs = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layers, options = self.problem.cost.shape
        pairs = np.array(self.pairs, dtype=np.float64)
        if pairs.shape != (layers, options, layers, options):
            raise InputError(
                f"pairs has shape {pairs.shape}, cost ({layers}, {options})",
                where="pairs",
                what_to_do=f"give shape ({layers}, {options}, {layers}, {options})",
            )
        allowed = self.problem.groups.allowed[self._group_of()]
        both = allowed[:, :, None, None] & allowed
        pairs = np.where(both, pairs, 0.0)
        if not np.isfinite(pairs).all():
            at = ", ".join(map(str, np.argwhere(~np.isfinite(pairs))[0]))
            raise InputError(
                f"pairs[{at}] is not finite",
                where="pairs",
                what_to_do="use numbers; what is not allowed has the cost inf",
            )
        if np.abs(pairs - pairs.transpose(2, 3, 0, 1)).max() > SYMMETRIC * np.abs(pairs).max():
            raise InputError(
                "pairs is not symmetric", where="pairs", what_to_do="use pairs[l, k, m, p] = pairs[m, p, l, k]"
            )
        every, members = np.arange(layers), self.problem.groups.members
        groups, alone = self.problem.groups, pairs[every, :, every]
        own_costs = np.stack([alone[list(group)].sum(axis=0).diagonal() for group in members])
        merged = _merged(pairs, members)
        each = np.arange(len(members))
        own = merged[each, :, each].copy()
        inner = (own.diagonal(axis1=1, axis2=2) - own_costs) / 2.0
        merged[each, :, each] = 0.0
        whole = pairs.copy()
        pairs[every, :, every] = 0.0
        for name, value in {
            "pairs": pairs,
            "groups": replace(groups, cost=np.where(groups.allowed, groups.cost + inner, np.inf)),
            "group_pairs": merged,
            "own": own,
            "whole": whole,
        }.items():
            object.__setattr__(self, name, value)

    def _group_of(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        owner = np.empty(len(self.problem.cost), dtype=np.int64)
        for g, members in enumerate(self.problem.groups.members):
            owner[list(members)] = g
        return owner

    def objective(self, choices: Any) -> Floats:
        """With interactions: (n,) for choices (n, L), a number for one plan (L,)."""
        index = np.asarray(choices)
        plans = np.atleast_2d(index)
        every = np.arange(plans.shape[1])
        lot = max(1, AT_ONCE // max(plans.shape[1] ** 2, 1))
        together = np.concatenate(
            [
                self.pairs[every[:, None], some[:, :, None], every, some[:, None, :]].sum(axis=(1, 2)) / 2.0
                for some in (plans[first : first + lot] for first in range(0, len(plans), lot))
            ]
            or [np.zeros(0)]
        )
        return np.asarray(self.problem.objective(index) + together.reshape(index.shape[:-1]))

    def underestimate(self) -> Problem:
        """An additive problem whose objective is nowhere above this one: its minimum is a lower bound.

        Each option pays half of the least that it can have with every other layer, for sum_{g<h} pairs[g, k_g, h, k_h]
        >= sum_g sum_{h != g} min_p pairs[g, k_g, h, p] / 2 (after Gilmore 1962 and Lawler 1963, for the quadratic
        assignment problem). Loose where interactions are strong.
        """
        groups = self.groups
        least = np.where(groups.allowed, self.group_pairs, np.inf).min(axis=3)
        cost = np.where(groups.allowed, groups.cost + least.sum(axis=2) / 2.0, np.inf)
        return self.additive(cost)

    def additive(self, cost: Floats) -> Problem:
        """The problem with costs (G, K) of groups, and no interactions."""
        owner = self._group_of()
        members = np.array([len(group) for group in self.problem.groups.members])
        return replace(self.problem, cost=cost[owner] / members[owner][:, None])

    def convex(self) -> tuple[Floats, Floats]:
        """Costs a (n,) and a positive semidefinite matrix M (n, n) over the n allowed options of groups.

        For every plan, x its 0s and 1s, a'x + x'Mx / 2 is the objective: x_i^2 = x_i, so what M has between a group's
        own options may be anything as long as ``a`` takes half of the diagonal back (Hammer & Rubin 1970). M has what
        was given there, and as much more on the diagonal, in proportion to the norms of its rows, as it needs.
        """
        groups = self.groups
        each = np.arange(len(groups.cost))
        full = self.group_pairs.copy()
        full[each, :, each] = self.own
        keep = groups.allowed.ravel()
        matrix = full.reshape(keep.size, keep.size)[np.ix_(keep, keep)]
        norms = np.linalg.norm(matrix, axis=1)
        scale = np.sqrt(np.maximum(norms, TINY * norms.max(initial=0.0)) + np.finfo(float).tiny)
        least = float(np.linalg.eigvalsh(matrix / scale / scale[:, None])[0])
        shift = (max(-least, 0.0) + TINY) * scale**2
        matrix[np.diag_indices(len(matrix))] += shift
        return groups.cost.ravel()[keep] - matrix.diagonal() / 2.0, matrix


def _merged(pairs: Pairs, members: tuple[tuple[int, ...], ...]) -> Pairs:
    if len(members) == len(pairs):
        return pairs.copy()
    rows = np.stack([pairs[list(group)].sum(axis=0) for group in members])
    return np.stack([rows[:, :, list(group)].sum(axis=2) for group in members], axis=2)
