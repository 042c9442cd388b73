"""XTrace and XDiag: estimates of trace and diagonal that use every random vector both for deflation and as a probe."""

from __future__ import annotations

import math
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Source
from layerhess.linalg.estimates import TraceEstimate
from layerhess.linalg.stochastic.deflation import orthonormal_rows
from layerhess.linalg.stochastic.diagonal import Diagonal, FlatDiagonal
from layerhess.linalg.stochastic.hutchinson import Goal
from layerhess.linalg.stochastic.stopping import MINIMUM, excess_of, rows_at_a_time
from layerhess.linalg.stochastic.trace import Trace
from layerhess.linalg.stochastic.unit_vectors import UnitVectors

E = TypeVar("E")
PAIRED = math.sqrt(2.0)  # see Exchangeable, "standard error"
LEVERAGE = 1e-8  # a vector whose leverage is within this of 1 carries a direction that the others lack


class Round(NamedTuple):
    """Random vectors (k, n), their products, orthonormal rows Q (r, n) that span these, and Q's products Z."""

    vectors: Tensor
    products: Tensor
    q: Tensor
    z: Tensor


class Exchangeable(Generic[E]):
    """What XTrace and XDiag share (Epperly, Tropp & Webber 2024): the growing sketch and its ask and tell.

    Keeps k random vectors w_i, their products y_i, orthonormal rows Q that span all y_i, and Z = A Q. Q is only
    extended, so that products stay valid when vectors are added. Memory: 4 k n float64; cost: 2 products a vector, and
    O(k^2 n) operations for each check of the error.

    Standard error: the k terms are not independent, and their spread over sqrt(k), which the paper uses, is too small
    by up to sqrt(2): where a term is a mean of g(w_i, w_j) over j, uncorrelated for different pairs, each pair enters
    two terms, the mean has variance 2 var(g) / (k (k - 1)), the spread suggests half of that. So it is taken times
    sqrt(2), which is right for slowly decaying spectra and too careful for others (measured: 1.0 to 1.4 too small
    without it).

    Args:
        n: dimension. goal: when to stop. draw: number -> random (n,) of the distribution the subclass needs.
    """

    def __init__(self, n: int, goal: Goal[E], draw: Source, *, device: torch.device | None = None) -> None:
        self.n = n
        self._goal = goal
        self._draw = draw
        empty = torch.empty((0, n), dtype=torch.float64, device=device)
        self._vectors, self._products, self._q, self._z = empty, empty, empty, empty
        self._round = Round(empty, empty, empty, empty)  # the last one that is complete
        self._limit = (goal.probes or goal.max_probes) // 2
        self._target = self._limit if goal.probes else min(MINIMUM, self._limit)
        self._unit = UnitVectors(n, device) if n <= 2 * self._target else None
        self._asked = empty
        self._done = False

    @property
    def done(self) -> bool:
        """True when the tolerance is met, the products are spent, or everything was read."""
        return self._done if self._unit is None else self._unit.done

    def ask(self) -> Tensor:
        """Random vectors, then the new part of the basis; (s, n)."""
        if self._unit is not None:
            return self._unit.ask()
        step = rows_at_a_time(self.n)
        if len(self._z) < len(self._q):
            return self._q[len(self._z) : len(self._z) + step]
        start = len(self._vectors)
        drawn = [self._draw(number) for number in range(start, min(self._target, start + step))]
        self._asked = torch.stack(drawn).to(self._vectors.device)
        return self._asked

    def tell(self, products: Tensor) -> None:
        """Take the products; check the error when the target number of vectors is reached."""
        if self._unit is not None:
            self._unit.tell(products)
            return
        if len(self._z) < len(self._q):
            self._z = torch.cat([self._z, products])
        else:
            self._vectors = torch.cat([self._vectors, self._asked])
            self._products = torch.cat([self._products, products])
            if len(self._products) == self._target:
                longest = float(torch.linalg.vector_norm(self._products, dim=1).max())
                self._q = torch.cat([self._q, orthonormal_rows(self._products, self._q, longest)])
        if len(self._products) == self._target and len(self._z) == len(self._q):
            self._decide()

    def estimate(self) -> E:
        """The result so far."""
        raise NotImplementedError

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one."""
        raise NotImplementedError

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """Coefficients C (k, r) of the y_i in Q, and S (k, r): Q_i, the basis of all y_j but y_i, is Q without S_i.

        S_i is the unit vector orthogonal to all rows of C but the i-th; zero where the others span everything
        without y_i (rank of A below k). The paper's column of R^-T is (C'C)^-1 c_i here, through the SVD, which
        serves when R is singular too.
        """
        c = self._round.products @ self._round.q.T
        u, sizes, v = torch.linalg.svd(c, full_matrices=False)
        s = (u / sizes) @ v if len(sizes) else c
        alone = (u * u).sum(dim=1) > 1.0 - LEVERAGE
        lengths = torch.linalg.vector_norm(s, dim=1)
        return c, torch.where(alone & (lengths > 0.0), 1.0 / lengths, 0.0)[:, None] * s

    def _decide(self) -> None:
        self._round = Round(self._vectors, self._products, self._q, self._z)
        count = len(self._vectors)
        if self._goal.probes or count >= self._limit or self.excess <= 1.0:
            self._done = True
            return
        # The error may drop suddenly once the dominant part is found: do not extrapolate, take half as many more.
        self._target = min(self._limit, count + max(8, count // 2))
        if self.n <= 2 * (self._target - count):
            self._unit = UnitVectors(self.n, self._vectors.device)


class XTrace(Exchangeable[TraceEstimate]):
    """XTrace (Epperly, Tropp & Webber 2024): the mean over i of tr(Q_i A Q_i') + scaled x_i'A x_i.

    x_i = (I - Q_i'Q_i) w_i. Q_i does not depend on w_i, so each term is unbiased, and exchangeability makes their mean
    the best symmetric one. x_i is scaled to the length a random direction of the complement should have (as in
    their improved variant), which needs w_i of a rotation-invariant distribution: ``draw`` gives unit vectors.

    Departure from the paper: the rest's quadratic form is computed directly from x_i and A x_i = y_i - Z'(.), O(k^2 n);
    the paper has O(k^3 + k n) formulas with cancellation.

    Args:
        n: dimension. goal: :class:`Trace`; ``probes`` counts products, two a vector. draw: number -> (n,).
    """

    def __init__(self, n: int, goal: Trace, draw: Source, *, device: torch.device | None = None) -> None:
        super().__init__(n, goal, draw, device=device)
        self._options = goal

    def terms(self) -> Tensor:
        """The k exchangeable estimates, (k,)."""
        vectors, products, q, z = self._round
        _, s = self.leave_one_out()
        t = q @ z.T
        t = (t + t.T) / 2
        inside = t.trace() - ((s @ t) * s).sum(dim=1)
        w = vectors @ q.T
        taken = w - (w * s).sum(dim=1, keepdim=True) * s  # coefficients of Q_i'Q_i w_i
        x = vectors - taken @ q
        ax = products - taken @ z
        dimensions = self.n - len(q) + (s * s).sum(dim=1).round()
        lengths = (x * x).sum(dim=1)
        seen = lengths > 1e-24 * (vectors * vectors).sum(dim=1)
        return inside + torch.where(seen, dimensions * (x * ax).sum(dim=1) / lengths.clamp_min(1e-300), 0.0)

    def _figures(self) -> tuple[float, float, float]:
        if len(self._round.vectors) < 2:
            return 0.0, math.inf, 0.0
        terms = self.terms()
        t = self._round.q @ self._round.z.T
        nuclear = float(torch.linalg.eigvalsh(((t + t.T) / 2).cpu()).abs().sum())
        return float(terms.mean()), PAIRED * float(terms.std()) / math.sqrt(len(terms)), nuclear

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one."""
        value, error, nuclear = self._figures()
        return excess_of(error, self._options.tolerance(value, nuclear))

    def estimate(self) -> TraceEstimate:
        """The result so far."""
        if self._unit is not None and self._unit.done:
            return self._options.exact(self._unit.diagonal, self._unit.lengths)
        value, error, nuclear = self._figures()
        return self._options.estimate(value, error, probes=len(self._round.vectors), method="xtrace", nuclear=nuclear)


class XDiag(Exchangeable[FlatDiagonal]):
    """XDiag (Epperly, Tropp & Webber 2024): mean over i of diag(Q_i'Q_i A) + w_i * (I - Q_i'Q_i) A w_i.

    Unbiased for Rademacher w_i, as Q_i does not depend on w_i. (I - Q_i'Q_i) y_i is one direction only, Q'S_i.

    Args:
        n: dimension. goal: :class:`Diagonal`; ``probes`` counts products, two a vector. draw: number -> Rademacher.
    """

    def __init__(self, n: int, goal: Diagonal, draw: Source, *, device: torch.device | None = None) -> None:
        super().__init__(n, goal, draw, device=device)
        self._options = goal

    def _figures(self) -> tuple[Tensor, Tensor]:
        vectors, products, q, z = self._round
        if len(vectors) < 2:
            nothing = torch.zeros(self.n, dtype=torch.float64, device=vectors.device)
            return nothing, nothing + math.inf
        c, s = self.leave_one_out()
        whole = (q * z).sum(dim=0)
        outside = products - (c - (s * c).sum(dim=1, keepdim=True) * s) @ q
        terms = whole - (s @ q) * (s @ z) + vectors * outside
        return terms.mean(dim=0), PAIRED * terms.std(dim=0) / math.sqrt(len(terms))

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one."""
        return self._options.excess(*self._figures())

    def estimate(self) -> FlatDiagonal:
        """The result so far."""
        if self._unit is not None and self._unit.done:
            return self._options.exact(self._unit.diagonal, self._unit.lengths)
        return self._options.estimate(*self._figures(), probes=len(self._round.vectors), method="xdiag")
