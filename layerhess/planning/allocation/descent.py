"""Local search: one layer, or two at once, take another option as long as that lowers the objective."""

from __future__ import annotations

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.problem import Choices, Groups

Pairs = np.ndarray[tuple[int, int, int, int], np.dtype[np.float64]]

REFRESH = 64  # moves after which the field is summed anew, for rounding
ROUNDING = 1e-13  # of the sum of |terms|: a smaller gain is none


def descended(groups: Groups, start: Choices, pairs: Pairs | None = None) -> Choices:
    """A plan within the limits that no change of one or two groups improves.

    The objective is sum_g cost[g, k_g] + sum_{g<h} pairs[g, k_g, h, k_h]. Group after group takes the best of its own
    changes, alone or together with one change of another group, if that lowers the objective (best improvement for one
    group, first improvement over groups). One search costs about 10 rounds of G * (K * G * K) operations.

    Args:
        groups: costs, uses and limits. start: (G,) within the limits. pairs: (G, K, G, K), symmetric, zero between a
            group's own options; None: no interactions.
    """
    choice = np.array(start, dtype=np.int64)
    every = np.arange(len(choice))
    cost = np.where(groups.allowed, groups.cost, np.inf)
    field = cost if pairs is None else cost + _field(pairs, choice)
    tiny = ROUNDING * float(np.abs(np.where(groups.allowed, field, 0.0)).max(axis=1).sum())
    since = moves = g = 0
    while since < len(choice):
        change = field - field[every, choice][:, None]
        more = groups.uses - groups.uses[:, every, choice][:, :, None]
        used = groups.uses[:, every, choice].sum(axis=1)
        # A change of g (rows) and one of any h (columns); the change of g with none of h is its change alone.
        together = change[g][:, None, None] + change
        if pairs is not None:
            own = pairs[g] - pairs[g, choice[g]]
            together = together + (own - own[:, every, choice][:, :, None])
        alone = np.full(groups.cost.shape[1], np.inf)
        alone[choice[g]] = 0.0
        together[:, g] = change[g][:, None] + alone
        together[choice[g]] = np.inf
        for j, room in enumerate(groups.room):
            over = more[j, g][:, None, None] + more[j]
            over[:, g] = more[j, g][:, None]
            together[used[j] + over > room] = np.inf
        a, h, b = np.unravel_index(int(np.argmin(together)), together.shape)
        moved = choice.copy()
        moved[h], moved[g] = b, a
        if together[a, h, b] < -tiny and (groups.uses[:, every, moved].sum(axis=1) <= groups.room).all():
            moves += 1
            if pairs is not None and moves % REFRESH == 0:
                field = cost + _field(pairs, moved)
            elif pairs is not None:
                for changed in {int(g), int(h)}:
                    field = field + (pairs[:, :, changed, moved[changed]] - pairs[:, :, changed, choice[changed]])
            choice, since = moved, 0
        else:
            since += 1
            g = (g + 1) % len(choice)
    return choice


def _field(pairs: Pairs, choice: Choices) -> Floats:
    """What each option of each group has together with the present choices of all others."""
    return np.asarray(pairs[:, :, np.arange(len(choice)), choice].sum(axis=2))
