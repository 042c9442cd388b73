"""Densities in the passes of an analysis, and what their first products give to traces, diagonals and couplings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from layerhess.analysis.probing.block_samples import part_of
from layerhess.curvature.data_pass import Request
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.density import StochasticLanczos
from layerhess.objective.blocks import Block

INDEPENDENT = 0.1  # singular value of unit rows below which what is left of a Krylov basis is mostly rounding


@dataclass
class Start:
    """The first products of an operator's density.

    Attributes:
        vectors, products: (s, n) Rademacher v and A v, float64, to be used as any other probes.
        nuclear: norm of A, by the density.
        squares: for the first of them, ||H_cb v||^2 over all blocks c, where whole columns were made.
        basis: (m, n) unit vectors and their products, of further probes that are none of ``vectors``; or None.
    """

    vectors: Tensor
    products: Tensor
    nuclear: float
    squares: list[list[float]] = field(default_factory=list)
    basis: tuple[Tensor, Tensor] | None = None


@dataclass
class DensityEstimator:
    """An estimator around the density of one operator: it remembers its first products.

    A Lanczos process begins with A v / sqrt(n). With signs for v this is a probe like those of Hutchinson's trace, of
    Bekas' diagonal and, as a whole column H[:, b] v, of the couplings, so that none of them has to make it again. The
    Krylov spaces of some of the probes, if kept, deflate the others, which are independent of them.

    Args:
        key, block, process: the density; its random vectors are signs over sqrt(n). full: where whole columns live.
        others: the blocks whose norms a whole column is made for. columns: how many starts are made as whole columns.
        remembers: keep the first products (probes x n float64). keeps_basis: also the Krylov space of the last probe
            (2 x steps x n float64), where there are two probes or more.
    """

    key: str
    block: Block
    process: StochasticLanczos
    full: Block
    others: Mapping[str, Block]
    columns: int = 0
    remembers: bool = False
    bases: int = 0
    _first: tuple[Tensor, Tensor] | None = None
    _squares: list[list[float]] = field(default_factory=list)
    _basis: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True when the process is."""
        return self.process.done

    def requests(self) -> dict[str, Request]:
        """The next Lanczos vectors; the first time, some of them with whole columns for answers."""
        rows = self.process.ask()
        columns = 0 if self.process.started else self.columns
        asked = {
            self.key: Request(self.block, rows[columns:]),
            self._whole: Request(self.block, rows[:columns], rows=self.full),
        }
        return {key: request for key, request in asked.items() if len(request.vectors)}

    def tell(self, products: Mapping[str, Tensor]) -> None:
        """Hand the products on, and remember what will be of use."""
        rows, own = self.process.ask(), []
        if self._whole in products:
            whole = products[self._whole]
            length = math.sqrt(self.block.numel)
            parts = [part_of(self.full, other, length * whole) for other in self.others.values()]
            self._squares = torch.stack([part.square().sum(dim=1) for part in parts], dim=1).tolist()
            own.append(part_of(self.full, self.block, whole))
        if self.key in products:
            own.append(products[self.key])
        told = torch.cat(own)
        if self.remembers and not self.process.started:
            self._first = rows.clone(), told
        rowed = [row for row, probe in enumerate(self.process.asked) if probe >= self._sampled]
        if rowed:
            self._basis.append((rows[rowed], told[rowed]))
        self.process.tell(told)

    def start(self) -> Start | None:
        """What was remembered, once, since it is large; None before the first product."""
        if self._first is None:
            return None
        vectors, products = (math.sqrt(self.block.numel) * rows for rows in self._first)
        vectors, products = vectors[: self._sampled], products[: self._sampled]
        basis = None
        if self._basis:
            basis = torch.cat([q for q, _ in self._basis]), torch.cat([w for _, w in self._basis])
        found = Start(vectors, products, self.block.numel * self.process.magnitude, self._squares, basis)
        self._first, self._basis = None, []
        return found

    @property
    def _whole(self) -> str:
        return f"(column) {self.key}"

    @property
    def _sampled(self) -> int:
        """Number of the first probe that gives a basis instead of a sample."""
        return self.process.options.probes - self.bases


def widened(known: Deflation, basis: tuple[Tensor, Tensor] | None) -> Deflation:
    """A deflation of the span of both; ``basis`` (q, A q) need not be orthogonal to anything.

    Neighbours of different probes, and those of one probe once the short recurrence has lost orthogonality, are nearly
    in each other's span. Such directions are dropped: the same combination makes q and A q, and a small divisor would
    blow up the rounding of A q.
    """
    if basis is None:
        return known
    q, w = basis
    for _ in range(2):  # the second time takes away what rounding left of the first
        share = q @ known.q.T
        q, w = q - share @ known.q, w - share @ known.w
    sizes, directions = torch.linalg.eigh(q @ q.T)
    kept = sizes > INDEPENDENT**2
    combined = (directions[:, kept] / sizes[kept].sqrt()).T
    return Deflation(torch.cat([known.q, combined @ q]), torch.cat([known.w, combined @ w]))
