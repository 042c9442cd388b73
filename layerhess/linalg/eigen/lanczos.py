"""Thick-restart Lanczos with full reorthogonalisation: both ends of the spectrum, with right multiplicities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.krylov_basis import BREAKDOWN, Basis, frame, row_norms
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, excludes, far_excluded, reach_outside
from layerhess.linalg.eigen.process import Candidates, Floats, Search, Source, Wanted, known_gaps, neighbours, tolerated

ARITHMETIC = 16.0 * float(np.finfo(np.float64).eps)
LARGEST_BLOCK = 4  # vectors at a time once copies of an eigenvalue were found
LEAST_STEPS = 6  # that a basis must have room for before a restart; a wider start would leave too few


def comfortable_basis(wanted: Wanted) -> int:
    """Rows before a restart if memory is no concern: restarts cost steps, and steps cost more than vectors."""
    return max(2 * wanted.total + 24, 160)


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

    Cost: ``width`` products a step while searching; memory 2 * basis_limit * n float64 at most.

    Args:
        n: dimension. wanted: which pairs. tol: relative, see :func:`layerhess.linalg.bounds.certify`.
        draw: number -> random unit vector (n,). basis_limit: rows before a restart. device: of the vectors.
        width: random vectors to begin with. More of them need fewer steps and more products.
        starts: (k, n) vectors to begin with in addition, such as eigenvectors of a similar matrix. They help to find
            pairs, but prove nothing: only the random vectors exclude further eigenvalues.
            :func:`layerhess.linalg.eigen.missed.far_excluded` says when such a search may end.
    """

    path = "lanczos"

    def __init__(
        self,
        n: int,
        wanted: Wanted,
        tol: float,
        draw: Source,
        *,
        basis_limit: int | None = None,
        device: torch.device | None = None,
        width: int = 1,
        starts: Tensor | None = None,
    ) -> None:
        self.n = n
        self.wanted = wanted
        self.tol = tol
        self._draw = draw
        self._device = device or torch.device("cpu")
        self._limit = min(n, max(basis_limit or comfortable_basis(wanted), wanted.total + 6))
        self._basis = Basis(n, self._device)
        self._widest = max(1, min(n, (self._limit - wanted.total) // LEAST_STEPS))
        self._width = max(1, min(width, self._widest))
        self._given = starts is not None
        rows = [draw(number).to(self._device) for number in range(self._width)]
        rows += [] if starts is None else list(starts.to(self._device)[: self._widest - self._width])
        self._frontier: Tensor = frame(torch.stack(rows))  # the random ones first
        self._draws = self._width
        self._rounding = 0.0
        self._phase = "search"
        self._locked = 0
        self._steps = 0
        self._begun = self._width  # random vectors that this search began with
        self._seen: tuple[Floats, Floats, Floats] | None = None  # see Search: values, first, outside
        self._extremes = (np.inf, -np.inf)  # smallest and largest Ritz value since the last random start
        self._restarted = False
        self._searches: dict[str, tuple[Search, ...]] = {}
        self._done = False
        self._estimate = np.inf
        self._norm = 0.0

    # -- ask, tell, result ----------------------------------------------------------------------------------------

    def ask(self) -> Tensor:
        """The next (s, n) orthonormal vectors."""
        return self._frontier

    def tell(self, products: Tensor) -> None:
        """Take the products, do Rayleigh-Ritz, decide what comes next."""
        rest = self._basis.append(self._frontier, products)
        self._steps += len(products)
        self._decide(rest)

    def candidates(self) -> Candidates:
        """The wanted Ritz pairs of the present basis, whatever their residuals."""
        values, coefficients = self._basis.ritz()
        keep = self.wanted.indices(values)
        theta = values[keep]
        chosen = coefficients[:, keep]
        residuals = row_norms(self._basis.residuals(theta, chosen))
        near = neighbours(values, keep)
        others = row_norms(self._basis.residuals(values[near], coefficients[:, near]))
        return Candidates(
            values=theta,
            vectors=self._basis.vectors(chosen),
            residuals=residuals,
            gaps=known_gaps(np.abs(theta - values[near]), residuals, others),
            ends=self.wanted.ends(len(keep)),
            norm=max(self._norm, float(np.abs(values).max())),  # restarts drop Ritz values, but the norm stays known
            spectrum=values[::-1].copy() if self._basis.size == self.n else None,
            searches=dict(self._searches) if self._done else {},
            steps=self._steps,
        )

    @property
    def proposes(self) -> bool:
        """True when every wanted pair is within tolerance and no further copy must be searched for."""
        return self._done

    @property
    def found(self) -> bool:
        """True once the first search has all wanted pairs, even if copies are still being searched for."""
        return self._done or self._phase != "search"

    @property
    def steps(self) -> int:
        """Products spent."""
        return self._steps

    @property
    def rounding(self) -> float:
        """Absolute rounding error of a product near the candidates; 0 until measured."""
        return self._rounding

    @rounding.setter
    def rounding(self, value: float) -> None:
        self._rounding = value
        if self._done and self._basis.size < self.n and not self._within():
            self._done = False
            if self._phase == "polish" or self._phase == "verify":
                self._polish()

    @property
    def basis(self) -> tuple[Tensor, Tensor]:
        """(m, n) orthonormal rows and their products: what is known of the operator."""
        return self._basis.q, self._basis.w

    @property
    def relative_residual(self) -> float:
        """Largest residual of a wanted pair (estimated) over the norm; for deciding when rounding matters."""
        return self._estimate / self._norm if self._norm else 0.0

    # -- decisions ----------------------------------------------------------------------------------------------

    def _record(self, rest: Tensor, values: Floats, coefficients: Tensor) -> None:
        """Note what this search has reached, as long as nothing of its space was dropped."""
        self._extremes = (min(self._extremes[0], float(values[0])), max(self._extremes[1], float(values[-1])))
        if not self._restarted:
            rows = coefficients.numpy()
            floor = BREAKDOWN * self._norm if self._basis.size < self.n else np.inf
            outside = reach_outside(rest, rows[len(rows) - len(rest) :], floor)
            self._seen = values, rows[: self._begun], outside

    def _allowed(self, values: Floats) -> Floats:
        return np.maximum(tolerated(values, self._norm, self.tol) - self._rounding, self._rounding)

    def _decide(self, rest: Tensor) -> None:
        values, coefficients = self._basis.ritz()
        self._norm = max(self._norm, float(np.abs(values).max()))
        if self._basis.size == self.n:
            self._done, self._estimate = True, 0.0
            return
        if self._phase == "polish":
            self._polish()
        elif self._phase == "verify":
            self._verify(rest)
        else:
            self._search(rest, values, coefficients)

    def _search(self, rest: Tensor, values: Floats, coefficients: Tensor) -> None:
        keep = self.wanted.indices(values)
        self._record(rest, values, coefficients)
        every = row_norms(coefficients[-len(rest) :].T.to(rest.device) @ rest)
        lengths = every[keep]
        self._estimate = float(lengths.max())
        enough = len(keep) == self.wanted.total and self._other_end_is_smaller(values, every, values[keep])
        near = enough and bool(np.all(lengths <= 1.1 * self._allowed(values[keep])))
        if near and self._within() and self._trusted():
            search = self._searched(self.n)
            self._searches = {"top": (search,), "bottom": (search,)}
            if self._copies_possible():
                if self._begun == 1 or self._restarted or self.wanted.magnitude or self._crowded(values[keep]):
                    self._lock(coefficients[:, keep])
                    return
                self._done = self._alone(values, every, keep)
            else:
                self._done = True
        # The next vector is made even when done: a rounding measured later may make more steps necessary.
        self._frontier = self._next(rest)
        if self._basis.size + len(self._frontier) > self._limit:
            self._restart(values, coefficients, start=0)

    def _within(self) -> bool:
        values, coefficients = self._basis.ritz()
        keep = self.wanted.indices(values)
        lengths = row_norms(self._basis.residuals(values[keep], coefficients[:, keep]))
        self._estimate = float(lengths.max())
        return bool(np.all(lengths <= self._allowed(values[keep])))

    def _trusted(self) -> bool:
        """Given vectors may converge before the random ones: have these ruled out eigenvalues well above?"""
        return not self._given or self._restarted or far_excluded(self._searched(self.n), self._norm)

    def _copies_possible(self) -> bool:
        return max(self.wanted.top, self.wanted.bottom, self.wanted.magnitude) >= 2

    # -- locking ------------------------------------------------------------------------------------------------

    def _lock(self, coefficients: Tensor) -> None:
        """Keep these pairs only, and start from a random vector orthogonal to them."""
        self._basis.replace(coefficients)
        self._locked = self._basis.size
        self._phase = "verify"
        self._extremes = (np.inf, -np.inf)
        self._restarted = False
        draws = [self._random() for _ in range(min(self._width, self.n - self._locked))]
        self._frontier = self._next(torch.stack(draws))
        self._begun = len(self._frontier)

    def _verify(self, rest: Tensor) -> None:
        """End the search for copies once the deflated operator's extreme pair has converged and is not wanted."""
        values, coefficients = self._basis.ritz(self._locked)
        self._record(rest, values, coefficients)
        lengths = row_norms(coefficients[-len(rest) :].T.to(rest.device) @ rest)
        settled = lengths <= self._allowed(values)
        ends = self._ends_to_verify(values)
        clear = self._other_end_is_smaller(values, lengths, self._basis.ritz(stop=self._locked)[0])
        if not (all(settled[end] for end in ends) and clear) and not self._excluded():
            self._estimate = float(max(lengths[end] for end in ends))
            self._frontier = self._next(rest)
            if self._basis.size + len(self._frontier) > max(self._limit, self._locked + 12):
                self._restart(values, coefficients, start=self._locked)
            return
        found = [i for i in self._belonging(values) if settled[i]]
        embedded = torch.zeros((self._basis.size, self._locked + len(found)), dtype=torch.float64)
        embedded[: self._locked, : self._locked] = torch.eye(self._locked, dtype=torch.float64)
        embedded[self._locked :, self._locked :] = coefficients[:, found]
        if found:
            self._width = max(self._width, min(2 * self._width, LARGEST_BLOCK))
            self._lock(embedded)
            return
        self._add_search(self._searched(self.n - self._locked))
        self._polish()

    def _add_search(self, search: Search) -> None:
        """Add what a search for copies has found out to that of the first search."""
        if self.wanted.top >= 2 or self.wanted.magnitude:
            self._searches["top"] = (self._searches["top"][0], search)
        if self.wanted.bottom >= 2 or self.wanted.magnitude:
            self._searches["bottom"] = (self._searches["bottom"][0], search)

    def _excluded(self) -> bool:
        """Has this start ruled out any further pair beyond the last ones wanted, converged or not?"""
        locked = self._basis.ritz(stop=self._locked)[0]
        search = self._searched(self.n - self._locked)
        return not self.wanted.magnitude and self._rules_out(search, locked[self.wanted.indices(locked)])

    def _crowded(self, found: Floats) -> bool:
        """Do as many wanted values agree as a search of this width can see copies?"""
        allowed = self._allowed(found)
        ends = [slice(0, self.wanted.top), slice(self.wanted.top, len(found))]
        return any(
            bool(np.any(values[: 1 - self._begun] - values[self._begun - 1 :] <= 2.0 * slack[self._begun - 1 :]))
            for values, slack in ((found[end], allowed[end]) for end in ends)
            if len(values) >= self._begun
        )

    def _alone(self, values: Floats, lengths: Floats, keep: list[int]) -> bool:
        """Have all random vectors together ruled out a further pair, or has the next pair converged below?"""
        if len(values) <= self.wanted.total:
            return False
        search = self._searched(self.n, without=keep)
        ends = [len(values) - 1 - self.wanted.top] if self.wanted.top >= 2 else []
        ends += [self.wanted.bottom] if self.wanted.bottom >= 2 else []
        settled = all(lengths[end] <= self._allowed(values)[end] for end in ends)
        self._add_search(search)
        return settled or self._rules_out(search, values[keep])

    def _rules_out(self, search: Search, found: Floats) -> bool:
        limits = found + np.where(np.arange(len(found)) < self.wanted.top, 1.0, -1.0) * self._allowed(found)
        p = 0.5 * MISSED_PROBABILITY  # the other half is the first search's, see bounds.certify
        top, bottom = limits[self.wanted.top - 1], limits[-self.wanted.bottom] if self.wanted.bottom else 0.0
        return bool(
            (self.wanted.top < 2 or (search.largest <= top and excludes(search, float(top), p)))
            and (self.wanted.bottom < 2 or (search.smallest >= bottom and excludes(search, float(bottom), p)))
        )

    def _searched(self, n: int, without: list[int] | None = None) -> Search:
        """The random search that ends here; its extremes are those of all its steps, restarts included.

        Args:
            n: dimension searched. without: positions of Ritz pairs that are no longer searched for.
        """
        assert self._seen is not None
        values, first, outside = self._seen
        smallest, largest = self._extremes
        if without is not None:
            rest = np.setdiff1d(np.arange(len(values)), without)
            values, first, outside = values[rest], first[:, rest], outside[:, rest]
            smallest, largest = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
        return Search(n, largest, smallest, values, first, outside, among=1 if without is None else len(without))

    def _other_end_is_smaller(self, values: Floats, lengths: Floats, found: Floats) -> bool:
        """For the largest in modulus: can neither end of the spectrum still grow past what was found?"""
        if not self.wanted.magnitude:
            return True
        smallest = np.sort(np.abs(found))[-min(self.wanted.magnitude, len(found))]
        growing = [end for end in (0, len(values) - 1) if lengths[end] > self._allowed(values)[end]]
        return all(abs(values[end]) + lengths[end] <= smallest for end in growing)

    def _ends_to_verify(self, values: Floats) -> list[int]:
        if self.wanted.magnitude:
            return [int(np.abs(values).argmax())]
        ends = [len(values) - 1] if self.wanted.top >= 2 else []
        return ends + ([0] if self.wanted.bottom >= 2 else [])

    def _belonging(self, values: Floats) -> list[int]:
        """Which Ritz values of the deflated operator belong among the wanted ones."""
        locked, coefficients = self._basis.ritz(stop=self._locked)
        keep = self.wanted.indices(locked)
        lengths = row_norms(self._basis.residuals(locked[keep], coefficients[:, keep]))
        # Values this close cannot be told apart by the bounds; otherwise the search in a null space would never end.
        slack = 0.5 * float(lengths.max()) + max(self._rounding, ARITHMETIC * self._norm)
        belongs = np.zeros(len(values), dtype=bool)
        if self.wanted.magnitude:
            belongs |= np.abs(values) > np.abs(locked[keep]).min() + slack
        if self.wanted.top >= 2:
            belongs |= values > locked[keep[self.wanted.top - 1]] + slack
        if self.wanted.bottom >= 2:
            belongs |= values < locked[keep[self.wanted.top]] - slack
        return [int(i) for i in np.flatnonzero(belongs)]

    def _polish(self) -> None:
        """Expand by the residual of the worst wanted pair until all are within tolerance."""
        self._phase = "polish"
        if self._within():
            self._done = True
            return
        values, coefficients = self._basis.ritz()
        if self._basis.size + 1 > max(self._limit, self._locked + 12):
            keep = self._kept(values, len(self.wanted.indices(values)) + self._locked)
            self._basis.replace(coefficients[:, keep])
            values, coefficients = self._basis.ritz()
        keep = self.wanted.indices(values)
        residuals = self._basis.residuals(values[keep], coefficients[:, keep])
        excess = row_norms(residuals) / self._allowed(values[keep])
        self._frontier = self._next(residuals[int(excess.argmax())][None])

    # -- moves ----------------------------------------------------------------------------------------------------

    def _restart(self, values: Floats, coefficients: Tensor, start: int) -> None:
        """Thick restart: go on from the Ritz vectors nearest to the wanted ends; the locked rows stay."""
        room = max(self._limit, start + 12) - start
        keep = self._kept(values, min(self.wanted.total + room // 3, room - 2 * len(self._frontier)))
        if start == 0:
            self._basis.replace(coefficients[:, keep])
        else:
            embedded = torch.zeros((self._basis.size, start + len(keep)), dtype=torch.float64)
            embedded[:start, :start] = torch.eye(start, dtype=torch.float64)
            embedded[start:, start:] = coefficients[:, keep]
            self._basis.replace(embedded)
        self._restarted = True

    def _kept(self, values: Floats, count: int) -> list[int]:
        count = min(count, len(values) - 1)
        if self.wanted.magnitude:
            return Wanted(magnitude=count).indices(values)
        if not self.wanted.bottom:
            return Wanted(top=count).indices(values)
        if not self.wanted.top:
            return Wanted(bottom=count).indices(values)
        return Wanted(top=count - count // 2, bottom=count // 2).indices(values)

    def _next(self, rows: Tensor) -> Tensor:
        self._draws += 1
        return self._basis.outside(rows, self._norm, self._draw, 100_000 * self._draws)

    def _random(self) -> Tensor:
        self._draws += 1
        return self._draw(self._draws).to(self._device)
