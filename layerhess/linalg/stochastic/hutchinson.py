"""Hutchinson's estimator of trace and diagonal, Hutch++, and the choice between them after sixteen probes."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from layerhess.linalg.eigen.process import Source
from layerhess.linalg.stochastic.deflation import Deflation, orthonormal_rows
from layerhess.linalg.stochastic.stopping import MINIMUM, next_target, probes_needed, rows_at_a_time
from layerhess.linalg.stochastic.unit_vectors import UnitVectors

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)

SKETCH = 16  # products whose span is deflated
WORTH_A_SKETCH = 64  # probes from which on two rounds of sixteen products cost less than they save


class Samples(Protocol[E_co]):
    """The accumulator of probes: TraceSamples or DiagonalSamples."""

    @property
    def count(self) -> int:
        """Probes so far."""

    @property
    def excess(self) -> float:
        """Standard error over the tolerated one."""

    def add(self, v: Tensor, x: Tensor, ax: Tensor) -> None:
        """Probes v, projected probes x, products A x, (s, n) each."""

    def estimate(self, method: str | None = None) -> E_co:
        """The result so far."""


class Goal(Protocol[E_co]):
    """How accurate the estimate should be: Trace or Diagonal."""

    @property
    def probes(self) -> int | None:
        """Products to spend exactly, or None."""

    @property
    def max_probes(self) -> int:
        """Products to spend at most."""

    def samples(self, deflation: Deflation) -> Samples[E_co]:
        """An empty accumulator."""

    def exact(self, diagonal: Tensor, lengths: Tensor | None = None) -> E_co:
        """The result when all (n,) entries were read; ``lengths`` are those of the columns."""


class EstimatorProcess(Protocol[E_co]):
    """An estimator in ask/tell form: it never runs a pass itself."""

    def ask(self) -> Tensor:
        """The (s, n) float64 vectors whose products are needed next."""

    def tell(self, products: Tensor) -> None:
        """Receive the (s, n) products of the vectors last asked for."""

    @property
    def done(self) -> bool:
        """True when no more products are needed."""

    def estimate(self) -> E_co:
        """The result so far."""


class Hutchinson(Generic[E]):
    """Rademacher probes (Hutchinson 1990), in the complement of a deflated space where one is given.

    Checks the standard error after 16 probes, then after the number that the variance requires. An operator with no
    more dimensions than needed probes is read with unit vectors instead: exact, at no higher cost.

    Cost: one product a probe.

    Args:
        n: dimension. goal: :class:`layerhess.Trace` or :class:`layerhess.Diagonal`. draw: number -> Rademacher (n,)
            float64, independent of the deflation. deflation: what is known. first: number of the first draw. spent:
            products that the caller has used already; they count against the goal's limit. method: name for the result.
    """

    def __init__(
        self,
        n: int,
        goal: Goal[E],
        draw: Source,
        *,
        deflation: Deflation | None = None,
        first: int = 0,
        spent: int = 0,
        method: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.n = n
        self._goal = goal
        self._draw = draw
        self._deflation = Deflation.none(n, device) if deflation is None else deflation
        self.samples = goal.samples(self._deflation)
        self._first = first
        self._method = method
        self._limit = max(2, (goal.probes or goal.max_probes) - spent)
        self._target = self._limit if goal.probes else min(MINIMUM, self._limit)
        self._asked: Tensor | None = None
        self._device = self._deflation.q.device
        self.unit = UnitVectors(n, self._device) if n <= self._target else None
        self._done = False

    @property
    def done(self) -> bool:
        """True when the tolerance is met, the probes are spent, or everything was read."""
        return self._done if self.unit is None else self.unit.done

    def ask(self) -> Tensor:
        """Projected probes (s, n), or unit vectors."""
        if self.unit is not None:
            return self.unit.ask()
        start = self.samples.count
        stop = min(self._target, start + rows_at_a_time(self.n))
        self._asked = torch.stack([self._draw(self._first + number) for number in range(start, stop)])
        self._asked = self._asked.to(self._device)
        return self._deflation.project(self._asked)

    def tell(self, products: Tensor) -> None:
        """Add the products to the samples; check the error when the target number is reached."""
        if self.unit is not None:
            self.unit.tell(products)
            return
        if self._asked is None:
            raise RuntimeError("tell before ask")
        self.samples.add(self._asked, self._deflation.project(self._asked), products)
        if self.samples.count < self._target:
            return
        count, excess = self.samples.count, self.samples.excess
        if self._goal.probes or excess <= 1.0 or count >= self._limit:
            self._done = True
        elif self.n <= min(probes_needed(count, excess), self._limit) - count:
            self.unit = UnitVectors(self.n, self._device)
        else:
            self._target = next_target(count, excess, self._limit)

    def estimate(self) -> E:
        """The result so far."""
        if self.unit is not None and self.unit.done:
            return self._goal.exact(self.unit.diagonal, self.unit.lengths)
        return self.samples.estimate(self._method)


class HutchPP(Generic[E]):
    """Hutch++ (Meyer, Musco, Musco & Woodruff 2021, algorithm 1), with a goal instead of a fixed budget.

    The products of a few random vectors are orthonormalised to Q, the products of Q give A on that space, and new
    probes see only the rest: error 1/m instead of 1/sqrt(m) where the spectrum decays. The standard error is that of
    the new probes.

    Departures from the paper: 1. a sketch of 16 vectors and as many probes as the error calls for, or thirds where
    ``goal.probes`` fixes the products; 2. the part of A between Q and its complement counts as known too, because W = A
    Q is available (it changes the diagonal's variance, not the trace's).

    Args:
        n, goal, draw: see :class:`Hutchinson`. products: (s, n) existing products of s draws, used as sketch.
        first: number of the first draw not used yet. spent: products spent before. method: name for the result.
    """

    def __init__(
        self,
        n: int,
        goal: Goal[E],
        draw: Source,
        *,
        products: Tensor | None = None,
        first: int = 0,
        spent: int = 0,
        method: str = "hutch++",
        device: torch.device | None = None,
    ) -> None:
        self.n = n
        self._goal = goal
        self._draw = draw
        self._method = method
        self._device = device
        self._spent = spent
        self._next = first
        third = (goal.probes or goal.max_probes) // 3
        self._sketch = third if goal.probes else min(SKETCH, third)
        self._told = [] if products is None else [products]
        self._q: Tensor | None = None
        self._w: list[Tensor] = []
        self._inner: Hutchinson[E] | None = None
        if products is not None:
            self._span(products)
        elif n <= 3 * self._sketch:
            self._probe(Deflation.none(n, device), unit=True)

    @property
    def done(self) -> bool:
        """True when the new probes are done."""
        return self._inner is not None and self._inner.done

    @property
    def count(self) -> int:
        """New probes so far."""
        return 0 if self._inner is None else self._inner.samples.count

    def ask(self) -> Tensor:
        """Sketch vectors, then the basis, then projected probes."""
        if self._inner is not None:
            return self._inner.ask()
        step = rows_at_a_time(self.n)
        if self._q is not None:
            start = sum(len(w) for w in self._w)
            return self._q[start : start + step]
        start = sum(len(rows) for rows in self._told)
        stop = min(self._sketch, start + step)
        return torch.stack([self._draw(self._next + number) for number in range(start, stop)]).to(self._device)

    def tell(self, products: Tensor) -> None:
        """Take the products and go on to the next stage when this one is complete."""
        if self._inner is not None:
            self._inner.tell(products)
            return
        self._spent += len(products)
        if self._q is not None:
            self._w.append(products)
            w = torch.cat(self._w)
            if len(w) == len(self._q):
                self._probe(Deflation(self._q, w))
            return
        self._told.append(products)
        told = torch.cat(self._told)
        if len(told) == self._sketch:
            self._next += self._sketch
            self._span(told)

    def estimate(self) -> E:
        """The result so far; before the first new probe, one with an infinite error."""
        inner = self._inner or Hutchinson(self.n, self._goal, self._draw, device=self._device)
        return inner.estimate()

    def _span(self, products: Tensor) -> None:
        self._told = []
        self._q = orthonormal_rows(products)
        if not len(self._q):
            self._probe(Deflation.none(self.n, products.device))

    def _probe(self, deflation: Deflation, unit: bool = False) -> None:
        self._q = None
        self._inner = Hutchinson(
            self.n,
            self._goal,
            self._draw,
            deflation=deflation,
            first=self._next,
            spent=self._spent,
            method=self._method,
        )
        if unit:
            self._inner.unit = UnitVectors(self.n, self._device)


class Adaptive(Generic[E]):
    """Sixteen plain probes; if many more are needed, their products become a sketch that is deflated.

    The probes after that are new ones: the sixteen determined Q and cannot be averaged with it. An operator of up to
    128 dimensions is read whole instead. If the goal fixes ``probes``, only plain probes are used.

    Args:
        n, goal, draw: see :class:`Hutchinson`.
    """

    def __init__(self, n: int, goal: Goal[E], draw: Source, *, device: torch.device | None = None) -> None:
        self.n = n
        self._goal = goal
        self._draw = draw
        self._device = device
        self._plain = Hutchinson(n, goal, draw, device=device)
        self._sketched: HutchPP[E] | None = None
        self._told: list[Tensor] | None = None if goal.probes else []

    @property
    def done(self) -> bool:
        """True when the tolerance is met or the products are spent."""
        return (self._sketched or self._plain).done

    def ask(self) -> Tensor:
        """The next (s, n) vectors."""
        return (self._sketched or self._plain).ask()

    def tell(self, products: Tensor) -> None:
        """Take the products; after sixteen, choose."""
        (self._sketched or self._plain).tell(products)
        if self._told is None:
            return
        self._told.append(products)
        count = self._plain.samples.count
        if count < min(MINIMUM, self._goal.max_probes):
            return
        told, self._told = torch.cat(self._told), None
        needed = min(probes_needed(count, self._plain.samples.excess), self._goal.max_probes)
        reads = self._plain.unit is not None and self.n <= 2 * WORTH_A_SKETCH
        if needed > WORTH_A_SKETCH and not reads:
            self._sketched = HutchPP(
                self.n,
                self._goal,
                self._draw,
                products=told,
                first=count,
                spent=count,
                method="deflated",
                device=self._device,
            )

    def estimate(self) -> E:
        """The result so far: of the plain probes until there are new ones."""
        if self._sketched is not None and (self._sketched.done or self._sketched.count >= 2):
            return self._sketched.estimate()
        return self._plain.estimate()
