"""Thick-restart Lanczos with full reorthogonalisation: both ends of the spectrum, with right multiplicities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.copies import belonging, beside, crowded, ends_looked_at, other_end_is_smaller
from layerhess.linalg.eigen.exclusion import Limits, Reach, Statements
from layerhess.linalg.eigen.krylov_basis import BREAKDOWN, Basis, comfortable_basis, frame
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, far_excluded
from layerhess.linalg.eigen.process import (
    Beside,
    Candidates,
    Floats,
    Search,
    Source,
    Wanted,
    known_gaps,
    neighbours,
    tolerated,
)
from layerhess.linalg.eigen.recursion import Recursion
from layerhess.linalg.long_rows import Space

ARITHMETIC = 16.0 * float(np.finfo(np.float64).eps)
JOINT = 5e-3  # tolerance up to which pairs are so good that the vectors that found them may also tell of copies
CHUNK = 64  # vectors at a time where all of the space is read
SMALL = 256  # rows of a basis up to which every step is looked at
WORTH = 4  # times the steps so far: up to this dimension reading all of it is chosen before another search
LARGEST_BLOCK = 4  # vectors at a time once copies of an eigenvalue were found
LEAST_STEPS = 6  # that a basis must have room for before a restart; a wider start would leave too few
BEYOND_LOCKED = 11  # rows that a search beside locked pairs has at least


class Lanczos:
    """Lanczos (1950) in its thick-restart form (Wu & Simon 2000), asking for products instead of making them.

    Departures from the textbook:

    1. W = A Q is kept together with Q, so that residuals are computed, not read off the recurrence; see :class:`Basis`.
    2. A Krylov space from one vector sees one copy of each eigenvalue. Where two or more are wanted at one end, the
       converged pairs are locked and a new search starts from a random vector orthogonal to them. It ends when it has
       ruled out a further pair beyond the last one wanted, or when the deflated operator's own extreme pair has
       converged and is not among the wanted. Pairs found on the way are locked too, and the block grows to 2, then 4
       vectors. A search that began with w > 1 vectors sees w copies: unless as many wanted values agree, it goes on
       until it rules out further ones itself.
    3. The rounding of the products, once measured (:attr:`rounding`), is subtracted from the allowed residual: below it
       a residual says nothing.
    4. With ``exclude`` it goes on until nothing is left open beyond the wanted pairs (see :class:`Limits`). Where a
       restart has dropped what the random vectors reached, a :class:`Recursion` from a new one does that.
    5. With room for the whole space it reads all of it rather than take more than half of n, or a second long search.

    Cost: ``width`` products a step while searching; memory 2 * basis_limit * n numbers, and a few rows.

    Attributes:
        steps: products spent. basis: what is known of the operator.

    Args:
        n: dimension. wanted: which pairs. tol: relative, see :func:`layerhess.linalg.bounds.certify`.
        draw: number -> random unit vector (n,). basis_limit: rows before a restart. device, dtype: of the vectors, see
            :class:`layerhess.linalg.eigen.krylov_basis.Basis`. width: random vectors to begin with; more of them need
            fewer steps and more products.
        starts: (k, n) vectors to begin with in addition, such as eigenvectors of a similar matrix. They help to find
            pairs, but prove nothing: only the random vectors exclude others (see ``missed.far_excluded``).
        exclude: see :func:`layerhess.linalg.bounds.certify`; None asks for nothing. copies: look for further copies of
            the wanted eigenvalues; else all is stated up to multiplicity. definite: nothing lies below zero; may be
            taken back in ``said``, which says what is excluded. space: of the rows held here, where several processes
            hold a slice each; what is asked, told and proposed is whole.
    """

    path = "lanczos"

    def __init__(
        self, n: int, wanted: Wanted, tol: float, draw: Source, *,
        basis_limit: int | None = None, device: torch.device | None = None, dtype: torch.dtype = torch.float64,
        width: int = 1, starts: Tensor | None = None, exclude: float | None = None, copies: bool = True,
        definite: bool = False, space: Space | None = None,
    ) -> None:  # fmt: skip
        self.n, self.wanted, self.tol = n, wanted, tol
        self.space = space = Space(n) if space is None else space
        self._draw: Source = lambda number: space.cut(draw(number))
        self._given = starts is not None
        self.said = Statements(wanted, tol, exclude, copies, definite)
        self._device = device or torch.device("cpu")
        self._limit = min(n, max(basis_limit or comfortable_basis(wanted), wanted.total + 6))
        self.basis = Basis(space, self._device, dtype, self._limit)
        self._widest = max(1, min(n, (self._limit - wanted.total) // LEAST_STEPS))
        self._width = max(1, min(width, self._widest))
        rows = [draw(number).to(self._device) for number in range(self._width)]
        rows += [] if starts is None else list(starts.to(self._device)[: self._widest - self._width])
        self._frontier: Tensor = space.cut(frame(torch.stack(rows)).to(dtype))  # the random ones first
        self._asked: tuple[Tensor, Tensor] | None = None  # what it was, and whole
        self._draws = self._width
        self._rounding, self._phase = 0.0, "search"
        self._locked = self.steps = 0
        self.reach = Reach(n, self._width)
        self._recursion: Recursion | None = None
        self._done, self._estimate, self._norm = False, np.inf, 0.0

    def ask(self) -> Tensor:
        """The next (s, n) orthonormal vectors."""
        if self._asked is None or self._asked[0] is not self._frontier:
            self._asked = self._frontier, self.space.whole(self._frontier)
        return self._asked[1]

    def tell(self, products: Tensor) -> None:
        """Take the products, do Rayleigh-Ritz, decide what comes next."""
        self.steps += len(products)
        self._asked, products = None, self.space.cut(products)
        if self._recursion is not None:
            self._recur(self._recursion, products)
        else:
            self._decide(self.basis.append(self._frontier, products))

    def candidates(self) -> Candidates:
        """The wanted Ritz pairs of the present basis, whatever their residuals."""
        values, coefficients = self.basis.ritz()
        keep = self.wanted.indices(values)
        theta, chosen = values[keep], coefficients[:, keep]
        residuals = self.said.bounded(theta, self._residual_norms(theta, chosen))
        near = neighbours(values, keep)
        others = self._residual_norms(values[near], coefficients[:, near])
        norm = max(self._norm, float(np.abs(values).max()))  # restarts drop Ritz values, but the norm stays known
        return Candidates(
            values=theta,
            vectors=self.space.whole(self.basis.vectors(chosen)),
            residuals=residuals,
            gaps=known_gaps(np.abs(theta - values[near]), residuals, others),
            ends=self.wanted.ends(len(keep)),
            norm=norm,
            spectrum=values[::-1].copy() if self.basis.size == self.n else None,
            searches=self.said.so_far(self.reach),
            steps=self.steps,
            definite=self.said.definite,
            stored=self.basis.error(norm),
        )

    @property
    def proposes(self) -> bool:
        """True when every wanted pair is within tolerance and no further copy must be searched for."""
        return self._done

    @property
    def rounding(self) -> float:
        """Absolute rounding error of a product near the candidates; 0 until measured."""
        return self._rounding

    @rounding.setter
    def rounding(self, value: float) -> None:
        self._rounding = value
        if self._done and self.basis.size < self.n and not self._within():
            self._done = False
            if self._phase != "search":
                self._polish()

    @property
    def relative_residual(self) -> float:
        """Largest residual of a wanted pair (estimated) over the norm."""
        return self._estimate / self._norm if self._norm else 0.0

    # -- decisions ----------------------------------------------------------------------------------------------

    def _record(self, rest: Tensor, values: Floats, coefficients: Tensor) -> None:
        floor = BREAKDOWN * self._norm if self.basis.size < self.n else np.inf
        self.reach.record(self.space.inner(rest, rest).cpu().numpy(), values, coefficients.numpy(), floor)

    @property
    def _floor(self) -> float:
        """Of a residual: the rounding of products and of stored rows."""
        return self._rounding + self.basis.error(self._norm)

    def _allowed(self, values: Floats) -> Floats:
        return np.maximum(tolerated(values, self._norm, self.tol) - self._floor, self._floor)

    def _decide(self, rest: Tensor) -> None:
        if self.basis.size < self.n:
            if self._phase == "whole" or (self._phase == "search" and self._limit == self.n <= 2 * self.steps):
                self._read_on()
                return
            size = self.basis.size  # in a large basis a decomposition costs as much as many products
            if self._phase == "search" and size > SMALL and size % (size // 64):
                self._frontier = self._next(rest)
                return
        values, coefficients = self.basis.ritz()
        self._norm = max(self._norm, float(np.abs(values).max()))
        if self.basis.size == self.n:
            self._done, self._estimate = True, 0.0
            return
        if self._phase == "polish":
            self._polish()
        elif self._phase == "verify":
            self._verify(rest)
        else:
            self._search(rest, values, coefficients)

    def _read_on(self) -> None:
        """Multiply the rest of the space: after half of it, and where another search would cost as much."""
        self._phase = "whole"
        count = min(CHUNK, self.n - self.basis.size)
        self._frontier = self._next(torch.stack([self._random() for _ in range(count)]))

    def _search(self, rest: Tensor, values: Floats, coefficients: Tensor) -> None:
        keep = self.wanted.indices(values)
        self._record(rest, values, coefficients)
        every = self.basis.outer_lengths(coefficients, rest)
        lengths = self.said.bounded(values[keep], every[keep])
        self._estimate = float(lengths.max())
        near = len(keep) == self.wanted.total and bool(np.all(lengths <= 1.1 * self._allowed(values[keep])))
        near = near and other_end_is_smaller(values, every, values[keep], self._allowed(values), self.wanted)
        if near and self._within() and self._trusted():
            self.said.begin(self.reach.searched())
            left, copies = self._open(values, coefficients, keep), self.said.copies
            again = copies and (self.reach.restarted or (not left and not self._sees_copies(values[keep])))
            self._done = not copies and not left
            if copies and not left and not again and (search := self._alone(values, coefficients, every, keep)):
                # The vectors that found the pairs may say less of copies than new ones would.
                again = self.said.leaves(search, self._limits(values[keep]))
                self._done = not again
            if again:
                whole = self._limit == self.n <= WORTH * self.steps
                self._read_on() if whole else self._lock(coefficients[:, keep])
                return
            if left and self.reach.restarted:
                self._recurse(coefficients[:, keep])
                return
        # Made even when done: a rounding measured later may make more steps necessary.
        self._frontier = self._next(rest)
        if self.basis.size + len(self._frontier) > self._limit:
            self._restart(values, coefficients, start=0)

    def _within(self) -> bool:
        values, coefficients = self.basis.ritz()
        keep = self.wanted.indices(values)
        lengths = self.said.bounded(values[keep], self._residual_norms(values[keep], coefficients[:, keep]))
        self._estimate = float(lengths.max())
        return bool(np.all(lengths <= self._allowed(values[keep])))

    def _trusted(self) -> bool:
        """Given vectors may converge before the random ones: have these ruled out eigenvalues well above?"""
        return not self._given or self.reach.restarted or far_excluded(self.reach.searched(), self._norm)

    # -- what is left open --------------------------------------------------------------------------------------

    def _limits(self, found: Floats) -> Limits:
        return self.said.limits(found, self._norm, self._floor)

    def _open(self, values: Floats, coefficients: Tensor, keep: list[int]) -> bool:
        """Does the first search leave open what it alone can exclude?"""
        beside_them = not self.said.copies and any(self.said.several) and len(values) > len(keep)
        distinct = self._without(values, coefficients, keep) if beside_them else None
        return self.said.first_leaves(self._limits(values[keep]), distinct)

    def _without(self, values: Floats, coefficients: Tensor, keep: list[int]) -> Search:
        """The first search as one for pairs beside those found; without copies of these, unless they are asked for."""
        kept = sorted(keep)
        found = self._beside(values[kept], coefficients[:, kept])
        return self.reach.searched(without=keep, copies=self.said.copies, beside=found)

    def _recurse(self, coefficients: Tensor, after: int = 0) -> None:
        """Keep these pairs, and exclude others from a new random vector without a basis."""
        self.basis.replace(coefficients, after)
        self._locked = self.basis.size
        self._phase = "exclude"
        self._frontier = self._next(self._random()[None])
        self._recursion = Recursion(self._frontier[0], self.basis.q.clone(), self._norm, self.space)

    def _recur(self, recursion: Recursion, products: Tensor) -> None:
        recursion.tell(products)
        locked, coefficients = self.basis.ritz()
        keep = self.wanted.indices(locked)
        search = recursion.searched(self._beside(locked, coefficients))
        limits = self._limits(locked[keep])
        stuck = not limits.reachable_by(search)
        if search.largest > limits.top or search.smallest < limits.bottom:  # a pair was missed: look for it
            self._recursion = None
            self.said.looked_at = (self.wanted.bottom < self.wanted.total, self.wanted.top < self.wanted.total)
            self._lock(coefficients)
        elif stuck and len(keep) < len(locked):  # inexact pairs that were kept out beside the wanted ones: let them in
            self._recurse(coefficients[:, keep])
        elif stuck or limits.excluded_by(search, 0.5 * MISSED_PROBABILITY) or search.closed:
            self._recursion = None
            self.said.end(search)
            self._polish()
        else:
            self._frontier = recursion.ask()

    def _residual_norms(self, values: Floats, coefficients: Tensor) -> Floats:
        return self.basis.residual_norms(values, coefficients)

    def _beside(self, kept: Floats, coefficients: Tensor) -> Beside:
        return beside(kept, self._residual_norms(kept, coefficients), self.wanted)

    # -- locking ------------------------------------------------------------------------------------------------

    def _lock(self, coefficients: Tensor, after: int = 0) -> None:
        """Keep these pairs only, and start from a random vector orthogonal to them."""
        self.basis.replace(coefficients, after)
        self._locked = self.basis.size
        self._phase = "verify"
        draws = [self._random() for _ in range(min(self._width, self.n - self._locked))]
        self._frontier = self._next(torch.stack(draws))
        self.reach = Reach(self.n - self._locked, len(self._frontier))

    def _verify(self, rest: Tensor) -> None:
        """End the search for copies once the deflated operator's extreme pair has converged and is not wanted."""
        values, coefficients = self.basis.ritz(self._locked)
        self._record(rest, values, coefficients)
        lengths = self.basis.outer_lengths(coefficients, rest)
        settled = lengths <= self._allowed(values)
        ends = ends_looked_at(values, self.wanted, self.said.looked_at)
        known, inner = self.basis.ritz(stop=self._locked)
        clear = other_end_is_smaller(values, lengths, known, self._allowed(values), self.wanted)
        search = self.reach.searched(beside=self._beside(known, inner))
        locked = known[self.wanted.indices(known)]
        ruled_out = self.said.rules_out(search, locked, self._allowed(locked))
        if not (all(settled[end] for end in ends) and clear) and not ruled_out:
            self._estimate = float(max(lengths[end] for end in ends))
            self._go_on(rest, values, coefficients)
            return
        # Values this close cannot be told apart by the bounds; otherwise the search in a null space would never end.
        slack = max(self._floor, ARITHMETIC * self._norm)
        belongs = belonging(values, known, self._residual_norms(known, inner), self.wanted, slack)
        found = [int(i) for i in np.flatnonzero(belongs & settled)]
        if found:
            self._width = max(self._width, min(2 * self._width, LARGEST_BLOCK))
            self._lock(coefficients[:, found], after=self._locked)
            return
        limits = self._limits(locked)
        missing = self.said.leaves(search, limits)
        if missing and not self.reach.restarted:
            self._go_on(rest, values, coefficients)
        elif missing or self.said.first_leaves(limits, None):
            self._recurse(coefficients[:, :0], after=self._locked)
        else:
            self.said.add(search)
            self._polish()

    def _go_on(self, rest: Tensor, values: Floats, coefficients: Tensor) -> None:
        """The next step of a search for copies."""
        self._frontier = self._next(rest)
        if self.basis.size + len(self._frontier) > max(self._limit, self._locked + BEYOND_LOCKED):
            self._restart(values, coefficients, start=self._locked)

    def _sees_copies(self, found: Floats) -> bool:
        """Would the random vectors of this search have seen further copies of what was found?"""
        if self.reach.begun == 1 or self.wanted.magnitude or self.tol > JOINT:
            return False
        return not crowded(found, self._allowed(found), self.wanted, self.reach.begun)

    def _alone(self, values: Floats, coefficients: Tensor, lengths: Floats, keep: list[int]) -> Search | None:
        """The random vectors together, if they have ruled out a further pair, or the next pair has converged below."""
        if len(values) <= self.wanted.total:
            return None
        search = self._without(values, coefficients, keep)
        ends = zip((-1 - self.wanted.top, self.wanted.bottom), self.said.several, strict=True)
        settled = all(lengths[end] <= self._allowed(values)[end] for end, several in ends if several)
        self.said.add(search)
        found = values[keep]
        return search if settled or self.said.rules_out(search, found, self._allowed(found)) else None

    def _polish(self) -> None:
        """Expand by the residual of the worst wanted pair until all are within tolerance."""
        self._phase = "polish"
        if self._within():
            self._done = True
            return
        values, coefficients = self.basis.ritz()
        if self.basis.size + 1 > max(self._limit, self._locked + BEYOND_LOCKED):
            keep = self._kept(values, len(self.wanted.indices(values)) + self._locked)
            self.basis.replace(coefficients[:, keep])
            values, coefficients = self.basis.ritz()
        keep = self.wanted.indices(values)
        excess = self._residual_norms(values[keep], coefficients[:, keep]) / self._allowed(values[keep])
        worst = keep[int(excess.argmax())]
        self._frontier = self._next(self.basis.residual(values[worst], coefficients[:, [worst]]))

    # -- moves ----------------------------------------------------------------------------------------------------

    def _restart(self, values: Floats, coefficients: Tensor, start: int) -> None:
        """Thick restart: go on from the Ritz vectors nearest to the wanted ends; the locked rows stay."""
        room = max(self._limit, start + BEYOND_LOCKED) - start
        keep = self._kept(values, min(self.wanted.total + room // 3, room - 2 * len(self._frontier)))
        self.basis.replace(coefficients[:, keep], start)
        self.reach.restarted = True

    def _kept(self, values: Floats, count: int) -> list[int]:
        return self.wanted.of_size(min(count, len(values) - 1)).indices(values)

    def _next(self, rows: Tensor) -> Tensor:
        self._draws += 1
        return self.basis.outside(rows, self._norm, self._draw, 100_000 * self._draws)

    def _random(self) -> Tensor:
        self._draws += 1
        return self._draw(self._draws).to(self._device)
