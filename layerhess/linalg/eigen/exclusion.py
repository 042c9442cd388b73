"""What may be left open beyond the wanted pairs, and what a random search has reached to exclude it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, excludes, reach_outside, within
from layerhess.linalg.eigen.process import (
    NOTHING,
    Beside,
    Floats,
    RandomSearch,
    Recursed,
    Search,
    Searches,
    Wanted,
    scales,
    tolerated,
)

ENDS = ("top", "bottom")
MARGIN = 0.95  # of the distance that is asked for: a solver aims closer than the certificate


def reaches(values: Floats, norm: float, exclude: float) -> Floats:
    """(k,) how far beyond each wanted value something may be left open: exclude * max(|theta|, 0.1 ||A||)."""
    return np.asarray(exclude * scales(values, norm))


@dataclass(frozen=True)
class Limits:
    """No eigenvalue above ``top`` or below ``bottom`` may be left open; infinite where nothing is asked."""

    top: float = math.inf
    bottom: float = -math.inf

    def excluded_by(self, search: RandomSearch, p: float) -> bool:
        """Whether a search excludes all beyond both limits, each with probability 1 - p."""
        top, bottom = self._for(search)
        above = top == math.inf or (search.largest <= top and excludes(search, top, p))
        return above and (bottom == -math.inf or (search.smallest >= bottom and excludes(search, bottom, p)))

    def reachable_by(self, search: RandomSearch) -> bool:
        """Whether it may ever: what it has found already, with pairs kept out beside, may reach beyond the limits."""
        top, bottom = self._for(search)
        return search.largest <= top and search.smallest >= bottom

    def _for(self, search: RandomSearch) -> tuple[float, float]:
        """The limits that hold for what a search sees, beside the pairs kept out of it."""
        (above, length), (below, other) = search.beside
        return within(self.top, above, length), -within(-self.bottom, -below, other)

    def at(self, top: bool, bottom: bool) -> Limits:
        """The limits of some ends only."""
        return Limits(self.top if top else math.inf, self.bottom if bottom else -math.inf)


def limits_beyond(values: Floats, ends: Sequence[str], beyond: Floats) -> Limits:
    """The nearest limits of pairs at their ends.

    Args:
        values: (k,). ends: "top", "bottom" or "magnitude" each. beyond: (k,) distance of each one's limit.
    """
    tops = [v + d for v, d, end in zip(values, beyond, ends, strict=True) if end == "top"]
    bottoms = [v - d for v, d, end in zip(values, beyond, ends, strict=True) if end == "bottom"]
    sizes = [abs(v) + d for v, d, end in zip(values, beyond, ends, strict=True) if end == "magnitude"]
    return Limits(
        min([math.inf, *map(float, tops + sizes)]), max([-math.inf, *map(float, bottoms), *(-float(s) for s in sizes)])
    )


def excluded_pairs(
    values: Floats, ends: Sequence[str], beyond: Floats, above: float, below: float
) -> NDArray[np.bool_]:
    """(k,) bool: is nothing left open beyond each pair's limit, if all above and below the two numbers is excluded?"""
    made = []
    for value, distance, end in zip(values, beyond, ends, strict=True):
        limits = limits_beyond(np.array([value]), [end], np.array([distance]))
        made.append(above <= limits.top and below >= limits.bottom)
    return np.array(made, dtype=bool)


class Reach:
    """What the present random search has reached, as long as nothing of its space was dropped.

    Attributes:
        n: dimension searched. begun: random vectors that it began with. restarted: part of its space was dropped.
    """

    def __init__(self, n: int, begun: int) -> None:
        self.n = n
        self.begun = begun
        self.restarted = False
        self._seen: tuple[Floats, Floats, Floats] | None = None  # see Search: values, first, outside
        self._extremes = (np.inf, -np.inf)  # smallest and largest Ritz value, restarts included

    @property
    def known(self) -> bool:
        """Whether it has begun."""
        return self._seen is not None

    def record(self, form: Floats, values: Floats, rows: Floats, floor: float) -> None:
        """Note a step.

        Args:
            form: (r, r) inner products of the last products' part outside the space; no longer than ``floor`` counts as
                zero. values: (m,) Ritz values. rows: (m, m) coefficients of the basis (rows) in the Ritz vectors
                (columns).
        """
        self._extremes = (min(self._extremes[0], float(values[0])), max(self._extremes[1], float(values[-1])))
        if not self.restarted:
            self._seen = values, rows[: self.begun], reach_outside(form, rows[len(rows) - len(form) :], floor)

    def searched(
        self,
        *,
        without: list[int] | None = None,
        copies: bool = True,
        beside: Beside = NOTHING,
    ) -> Search:
        """The random search that ends here; its extremes are those of all its steps, restarts included.

        Args:
            without: positions of Ritz pairs that are no longer searched for. copies: whether further copies of those
                are. beside: see :class:`Search`.
        """
        assert self._seen is not None
        values, first, outside = self._seen
        smallest, largest = self._extremes
        among = 1
        if without is not None:
            rest = np.setdiff1d(np.arange(len(values)), without)
            values, first, outside = values[rest], first[:, rest], outside[:, rest]
            smallest, largest = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
            among = len(without) + (not copies)
        return Search(self.n, largest, smallest, values, first, outside, among, copies, beside)


class Statements:
    """What the random searches of a solver exclude, and what they still have to.

    Args:
        wanted: pairs. tol: their tolerance. exclude: see :func:`layerhess.linalg.bounds.certify`.
        copies: whether further copies of the wanted ones are looked for. definite: nothing lies below zero.

    Attributes:
        several: whether two or more pairs are wanted at the top, at the bottom: there a first search, from few vectors,
            says nothing of copies. looked_at: the ends where a search for copies looks for more.
        searches: see :class:`layerhess.linalg.eigen.process.Candidates`.
    """

    def __init__(self, wanted: Wanted, tol: float, exclude: float | None, copies: bool, definite: bool = False) -> None:
        self.definite = definite
        self.several = wanted.top >= 2 or wanted.magnitude >= 2, wanted.bottom >= 2 or wanted.magnitude >= 2
        self.copies = copies and any(self.several)
        self.looked_at = self.several
        self.searches: Searches = {}
        self._wanted = wanted
        self._tol = tol
        self._exclude = exclude

    def bounded(self, found: Floats, lengths: Floats) -> Floats:
        """Residuals; at the bottom of a semidefinite matrix a Ritz value is no farther from its place than from 0."""
        if self.definite:
            lengths[self._wanted.top :] = np.minimum(lengths, np.abs(found))[self._wanted.top :]
        return lengths

    @property
    def asked(self) -> bool:
        """Whether anything is asked for."""
        return self._exclude is not None

    def limits(self, found: Floats, norm: float, rounding: float) -> Limits:
        """Beyond what nothing may be left open; not asked where arithmetic allows no more."""
        if self._exclude is None:
            return Limits()
        aim = np.maximum(MARGIN * reaches(found, norm, self._exclude) - 2.0 * rounding, 0.0)
        asked = (rounding < tolerated(found, norm, self._tol)) | (norm == 0.0)
        limits = limits_beyond(found, self._wanted.ends(len(found)), np.where(asked, aim, np.inf))
        return limits.at(True, not (self.definite and limits.bottom <= 0.0))

    def so_far(self, reach: Reach) -> Searches:
        """What is excluded, at any time."""
        if self.searches or not reach.known:
            return dict(self.searches)
        return dict.fromkeys(ENDS, (reach.searched(),))

    def begin(self, first: Search) -> None:
        """Take what the first search says."""
        self.searches = {"top": (first,), "bottom": (first,)}

    def add(self, search: Search) -> None:
        """Add what a search for copies has found out to that of the first search."""
        for end, several in zip(ENDS, self.several, strict=True):
            if several:
                self.searches[end] = (self.searches[end][0], search)

    def end(self, search: Recursed) -> None:
        """Add what a last search says on both ends."""
        self.searches = {end: (searches[0], search) for end, searches in self.searches.items()}

    def first_leaves(self, limits: Limits, distinct: Search | None) -> bool:
        """Does the first search leave open what it alone can exclude: all, or the ends where one pair is wanted?

        Args:
            distinct: the same search as one for pairs beside those found, where copies are not looked for.
        """
        single = limits.at(*(not several for several in self.several))
        open_ends = not single.excluded_by(self.searches["top"][0], MISSED_PROBABILITY)
        if distinct is not None:
            self.searches |= {end: (distinct,) for end, several in zip(ENDS, self.several, strict=True) if several}
            open_ends |= not limits.at(*self.several).excluded_by(distinct, MISSED_PROBABILITY)
        return open_ends

    def leaves(self, search: Search, limits: Limits) -> bool:
        """Does a search for copies leave something open? It has half the probability, the first search the other."""
        return not limits.at(*self.several).excluded_by(search, 0.5 * MISSED_PROBABILITY)

    def rules_out(self, search: Search, found: Floats, allowed: Floats) -> bool:
        """Has a search ruled out, converged or not, any further pair beyond the wanted ones at the ends looked at?"""
        if self._wanted.magnitude:
            return False
        limits = limits_beyond(found, self._wanted.ends(len(found)), allowed)
        return limits.at(*self.looked_at).excluded_by(search, 0.5 * MISSED_PROBABILITY)
