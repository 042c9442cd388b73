"""All plans whose cost is near a lower bound, counted out in widening circles until one of them meets the limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.planning.allocation.problem import Choices, Flags, Problem
from layerhess.planning.allocation.relaxation import Relaxation

MOST_HALVES, MOST_PAIRS = 50_000, 3_000_000  # about 0.2 s and 50 MB
AT_ONCE = 500_000  # pairs
MOST_CELLS = 4096
WIDER = 1.5  # each circle over the last
FIRST = 6  # groups with a second option in the first circle
DOMINANCE_FROM = 500  # partial plans worth sorting
SAME = 1e-13  # of the sum of |costs|: rounding


@dataclass(frozen=True, eq=False)
class Enumerated:
    """What the circles hold.

    Attributes:
        choice: (L,) the cheapest plan within the limits; None where none was found. bound: every plan within the
            limits costs at least this, or ``below``. complete: all plans that matter were counted out.
    """

    choice: Choices | None
    bound: float
    complete: bool


def enumerated(problem: Problem, relaxation: Relaxation, below: float = np.inf, effort: float = 1.0) -> Enumerated:
    """The cheapest plan, by counting out all plans near the bound of the relaxation.

    A plan within the limits costs bound + sum of excess + sum of price times unused room, none of them negative. So
    whoever knows *all* plans for which these sum to at most r, and finds one within the limits among them, knows the
    optimum. Circles r widen until that is so, until they reach ``below`` (plans that cost more do not matter), or
    until they hold too much.

    Within a circle few groups have more than one option. They are dealt into two halves, the partial plans of each are
    counted out group by group, and pairs are joined in the order of one use, where only a narrow window fits (Horowitz
    & Sahni 1974). A partial plan goes when its excess is above r, when the smallest options of all else break a limit,
    when its largest ones leave unused more than r pays for, or when another one uses no more and costs no more.
    """
    groups, excess = problem.groups, relaxation.excess
    finite = np.isfinite(excess)
    magnitudes = np.abs(np.where(finite, groups.cost, 0.0)).max(axis=1)
    rounding = SAME * (float(magnitudes.sum()) + abs(relaxation.bound))
    paid = relaxation.prices > 0.0
    least = groups.uses.min(axis=2).sum(axis=1)
    widest = float(np.where(finite, excess, 0.0).max(axis=1).sum())
    widest += float(relaxation.prices[paid] @ np.maximum(groups.room - least, 0.0)[paid])
    widest = min(widest, max(below - relaxation.bound, 0.0))
    ranked = np.sort(excess, axis=1)[:, 1:2].ravel()
    seconds = np.sort(ranked[(ranked > rounding) & (ranked < np.inf)])
    radius = float(seconds[min(FIRST, len(seconds) - 1)]) if len(seconds) else widest
    proven, pairs, halves = relaxation.bound, int(effort * MOST_PAIRS), int(effort * MOST_HALVES)
    while True:
        radius = min(radius, widest)
        circle = _Circle(problem, relaxation, radius + rounding, halves, pairs)
        choice = circle.cheapest()
        if circle.too_much:
            return Enumerated(None, proven, complete=False)
        if choice is not None:
            return Enumerated(choice, float(problem.objective(choice)), complete=True)
        if radius >= widest:
            return Enumerated(None, below, complete=True)
        proven = relaxation.bound + radius
        pairs -= circle.pairs
        radius *= WIDER


@dataclass(eq=False)
class _Partial:
    """Partial plans of some groups: their excess, uses and cost, and how each came from one of a group less."""

    excess: Floats
    used: Floats
    cost: Floats
    history: list[tuple[int, Choices, Choices]]

    def write(self, label: int, choice: Choices) -> None:
        for group, parents, options in reversed(self.history):
            choice[group] = options[label]
            label = int(parents[label])


class _Circle:
    """All plans within the limits whose excess and unused room cost at most ``radius`` together."""

    def __init__(self, problem: Problem, relaxation: Relaxation, radius: float, most: int, most_pairs: int) -> None:
        groups = problem.groups
        self.problem, self.excess, self.radius = problem, relaxation.excess, radius
        self.paid = np.flatnonzero(relaxation.prices > 0.0)
        self.prices = relaxation.prices[self.paid]
        self.active: Flags = relaxation.excess <= radius
        self.room = groups.room
        self.low = np.where(self.active, groups.uses, np.inf).min(axis=2)
        self.high = np.where(self.active, groups.uses, -np.inf).max(axis=2)
        self.dearest = relaxation.bound + radius  # what costs more proves nothing: others outside may cost less
        self.most, self.most_pairs, self.pairs, self.too_much = most, most_pairs, 0, False

    def cheapest(self) -> Choices | None:
        """The cheapest plan (L,); None where there is none, or too much to count."""
        open_groups = np.flatnonzero(self.active.sum(axis=1) > 1)
        nearest = np.sort(np.where(self.active, self.excess, np.inf)[open_groups], axis=1)[:, 1:2].ravel()
        dealt = open_groups[np.argsort(nearest, kind="stable")]
        settled = np.setdiff1d(np.arange(len(self.active)), open_groups)
        left = self._counted([*settled, *self._ordered(dealt[::2])])
        right = None if left is None else self._counted(self._ordered(dealt[1::2]))
        if left is None or right is None:
            self.too_much = True
            return None
        best: tuple[float, Choices] | None = None
        for i, j in self._joined(left, right):
            for a, b in zip(i, j, strict=True):
                choice = np.zeros(len(self.active), dtype=np.int64)
                left.write(int(a), choice)
                right.write(int(b), choice)
                plan = self.problem.of_layers(choice)
                cost = float(self.problem.objective(plan))
                if (best is None or cost < best[0]) and self.problem.feasible(plan):
                    best = cost, plan
                    break  # the rest of these cost more
            if best is not None:
                self.dearest = min(self.dearest, best[0])
        return None if best is None or self.too_much else best[1]

    def _ordered(self, some: Choices) -> list[int]:
        # Where a group decides most about the uses it comes first: what follows then has little to make good for it.
        spread = (self.high - self.low)[self.paid][:, some] * self.prices[:, None]
        return [int(g) for g in some[np.argsort(-spread.sum(axis=0), kind="stable")]]

    def _counted(self, some: Sequence[int]) -> _Partial | None:
        groups = self.problem.groups
        far, used, cost = np.zeros(1), np.zeros((len(self.room), 1)), np.zeros(1)
        rest_low, rest_high = self.low.sum(axis=1), self.high.sum(axis=1)
        history = []
        for g in some:
            options = np.flatnonzero(self.active[g])
            rest_low, rest_high = rest_low - self.low[:, g], rest_high - self.high[:, g]
            far = (far[:, None] + self.excess[g, options]).ravel()
            used = (used[:, :, None] + groups.uses[:, g, options][:, None, :]).reshape(len(self.room), len(far))
            cost = (cost[:, None] + groups.cost[g, options]).ravel()
            kept = np.arange(len(far))
            if len(options) > 1:
                unused = np.maximum((self.room - rest_high)[:, None] - used, 0.0)[self.paid]
                fits = (used + rest_low[:, None] <= self.room[:, None]).all(axis=0)
                kept = np.flatnonzero(fits & (far + self.prices @ unused <= self.radius))
                if len(kept) > DOMINANCE_FROM:
                    kept = kept[_undominated(used[:, kept], cost[kept])]
                if len(kept) > self.most:
                    return None
            history.append((int(g), kept // len(options), options[kept % len(options)]))
            far, used, cost = far[kept], used[:, kept], cost[kept]
        return _Partial(far, used, cost, history)

    def _joined(self, left: _Partial, right: _Partial) -> Iterator[tuple[Choices, Choices]]:
        """Pairs within the limits, cheapest first within each lot; a later lot has only what is cheaper still."""
        if not len(left.cost) or not len(right.cost):
            return
        order, ranges = self._windows(left, right)
        self.pairs = sum(int(counts.sum()) for _, counts in ranges)
        if self.pairs > self.most_pairs:
            self.too_much = True
            return
        for begin, counts in ranges:
            ends = np.cumsum(counts)
            for first in range(0, int(counts.sum()), AT_ONCE):
                flat = np.arange(first, min(first + AT_ONCE, int(ends[-1])))
                a = np.searchsorted(ends, flat, side="right")
                b = order[begin[a] + flat - (ends[a] - counts[a])]
                cost = left.cost[a] + right.cost[b]
                good = (cost <= self.dearest) & (left.excess[a] + right.excess[b] <= self.radius)
                for use_left, use_right, room in zip(left.used, right.used, self.room, strict=True):
                    good &= use_left[a] + use_right[b] <= room
                found = np.flatnonzero(good)
                found = found[np.argsort(cost[found], kind="stable")]
                yield a[found], b[found]

    def _windows(self, left: _Partial, right: _Partial) -> tuple[Choices, list[tuple[Choices, Choices]]]:
        """An order of the right half, and ranges of it (begin, length) in which the partners of each left one lie.

        What a pair leaves unused of a priced use costs at most what its excess leaves of the radius, so both uses of
        the right one lie in a window. The right half is sorted by cells of the first use, as wide as the radius, and
        within a cell by the second; a window lies in two cells.
        """
        reach = self.radius - left.excess
        if not len(self.paid):
            order = np.argsort(right.excess, kind="stable")
            return order, [(np.zeros(len(reach), np.int64), np.searchsorted(right.excess[order], reach, side="right"))]
        paid = right.used[self.paid] * self.prices[:, None]
        wanted = self.room[self.paid, None] * self.prices[:, None] - left.used[self.paid] * self.prices[:, None]
        widths = np.ptp(paid, axis=1)
        first, second = np.argsort(-widths, kind="stable")[[0, min(1, len(widths) - 1)]]
        cell = max(self.radius, float(widths[first]) / MOST_CELLS) or 1.0
        row = float(widths[second]) + self.radius + 1.0
        rounding = 1e-12 * (float(np.abs(wanted).max()) + row * (float(widths[first]) / cell + 1.0))
        cell = np.inf if first == second else cell + 2.0 * rounding
        base = paid.min(axis=1)
        key = np.floor((paid[first] - base[first]) / cell) * row + (paid[second] - base[second])
        order = np.argsort(key, kind="stable")
        low = np.clip(wanted[second] - base[second] - reach - rounding, 0.0, row)
        high = np.clip(wanted[second] - base[second] + rounding, -1.0, row)
        top = np.floor((wanted[first] - base[first] + rounding) / cell)
        ranges = []
        for at in [top] if first == second else [top, top - 1.0]:
            begin = np.searchsorted(key[order], at * row + low - rounding, side="left")
            end = np.searchsorted(key[order], at * row + high + rounding, side="right")
            ranges.append((begin, np.where(high < low, 0, np.maximum(end - begin, 0))))
        return order, ranges


def _undominated(used: Floats, cost: Floats) -> Choices:
    """Drops what another one beats that is its like in all uses but the last; with one use that is all there is."""
    if len(used) == 0:
        return np.array([int(np.argmin(cost))])
    order = np.lexsort((cost, *used[::-1]))
    cost, others = cost[order], used[:-1, order]
    keep = np.ones(len(order), dtype=bool)
    if len(used) == 1:
        keep[1:] = cost[1:] < np.minimum.accumulate(cost)[:-1]
    else:  # after one that is its like, an entry uses as much of the last or more
        keep[1:] = (others[:, 1:] != others[:, :-1]).any(axis=0) | (cost[1:] < cost[:-1])
    return np.sort(order[keep])
