"""Runs a density estimate within an analysis; its first products are reused for traces, diagonals and couplings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from layerhess.analysis.probing.block_samples import part_of
from layerhess.curvature.data_pass import Request
from layerhess.linalg.estimates import Floats
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.density import StochasticLanczos
from layerhess.objective.blocks import Block

INDEPENDENT = 0.1  # singular value of unit rows below which a Krylov direction is mostly rounding


@dataclass
class Start:
    """The first products of an operator's density.

    Attributes:
        vectors, products: (s, n) Rademacher v and A v, float64, usable like any other probes.
        nuclear: norm of A, by the density.
        grams: (B, s, s), v_i' H_cb' H_cb v_j of the first vectors over all blocks c, where whole columns were made.
        basis: (m, n) unit vectors and their products, from probes that are not in ``vectors``; or None.
    """

    vectors: Tensor
    products: Tensor
    nuclear: float
    grams: Floats | None = None
    basis: tuple[Tensor, Tensor] | None = None


@dataclass
class DensityEstimator:
    """An estimator that runs the density of one operator and remembers its first products.

    A Lanczos process begins with A v / sqrt(n). With random signs for v this is a probe as for Hutchinson's trace,
    Bekas' diagonal and, as a whole column H[:, b] v, the couplings, so none of them has to make it again. The Krylov
    spaces of some probes, if kept, deflate the others, which are independent of them.

    Args:
        key, block, process: the density; its random vectors are signs over sqrt(n). full: the block of whole columns.
        others: the blocks c of the norms ||H_cb v||. columns: how many first products are made as whole columns.
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
    _grams: Floats | None = None
    _basis: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """True when the process is done."""
        return self.process.done

    def requests(self) -> dict[str, Request]:
        """The next Lanczos vectors; the first time, whole columns are requested for some of them."""
        rows = self.process.ask()
        columns = 0 if self.process.started else self.columns
        asked = {
            self.key: Request(self.block, rows[columns:]),
            self._whole: Request(self.block, rows[:columns], rows=self.full),
        }
        return {key: request for key, request in asked.items() if len(request.vectors)}

    def tell(self, products: Mapping[str, Tensor]) -> None:
        """Pass the products on to the process, and remember what will be reused."""
        rows, own = self.process.ask(), []
        if self._whole in products:
            whole = products[self._whole]
            length = math.sqrt(self.block.numel)
            parts = [part_of(self.full, other, length * whole) for other in self.others.values()]
            self._grams = np.stack([(part @ part.T).numpy(force=True) for part in parts])
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
        """What was remembered, returned only once, since it is large; None before the first product."""
        if self._first is None:
            return None
        vectors, products = (math.sqrt(self.block.numel) * rows for rows in self._first)
        vectors, products = vectors[: self._sampled], products[: self._sampled]
        basis = None
        if self._basis:
            basis = torch.cat([q for q, _ in self._basis]), torch.cat([w for _, w in self._basis])
        found = Start(vectors, products, self.block.numel * self.process.magnitude, self._grams, basis)
        self._first, self._basis = None, []
        return found

    @property
    def _whole(self) -> str:
        return f"(column) {self.key}"

    @property
    def _sampled(self) -> int:
        """Number of the first probe that is used for the basis and not as a sample."""
        return self.process.options.probes - self.bases


def widened(known: Deflation, basis: tuple[Tensor, Tensor] | None) -> Deflation:
    """A deflation of the span of both; the rows of ``basis`` (q, A q) need not be orthogonal.

    Krylov vectors of different probes, and those of one probe after the short recurrence has lost orthogonality, are
    nearly linearly dependent. Such directions are dropped: q and A q are divided by the same number, and a small
    divisor would amplify the rounding of A q.
    """
    if basis is None:
        return known
    q, w = basis
    for _ in range(2):  # the second time removes what rounding left in the first
        share = q @ known.q.T
        q, w = q - share @ known.q, w - share @ known.w
    sizes, directions = torch.linalg.eigh(q @ q.T)
    kept = sizes > INDEPENDENT**2
    combined = (directions[:, kept] / sizes[kept].sqrt()).T
    return Deflation(torch.cat([known.q, combined @ q]), torch.cat([known.w, combined @ w]))
