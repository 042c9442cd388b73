"""Where the rounding of a solver's products is to be measured: at its pairs, and at random signs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerhess.checks.matrix_rounding import FEWER, SIGNS, directions
from layerhess.linalg.eigen.dense import Dense
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Process
from layerhess.objective.blocks import Block

VECTORS = 5  # of a block's candidates, spread from the first to the last


@dataclass(frozen=True)
class Candidate:
    """Where the rounding of a block's products is to be measured.

    Attributes:
        vectors: (k, P_b) unit vectors. norm: the largest |eigenvalue| among them.
        directions: (s, P_b) of :func:`layerhess.checks.matrix_rounding.directions`, where the matrix is read whole.
        images: (s, P_b) what the solver knows as the products of :attr:`rows`; None: they are multiplied once more.
    """

    block: Block
    vectors: Tensor
    norm: float
    directions: Tensor | None = None
    images: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(s, P_b) at which products are made: the outermost vectors, and the directions."""
        chosen = outermost(self.vectors)
        return chosen if self.directions is None else torch.cat([chosen, self.directions])


def candidate(block: Block, process: Process) -> Candidate | None:
    """Where the products of a solver's operator are to be measured; None before it has pairs."""
    found = process.candidates()
    if not len(found.values):
        return None
    if found.spectrum is None:
        one = Candidate(block, found.measured, float(abs(found.values).max()))
    else:
        count = SIGNS if isinstance(process, Dense) else FEWER
        z = directions(block.numel, block.name, count, found.vectors.device)
        one = Candidate(block, found.measured, found.norm, z)
    return replace(one, images=_images(process, one.rows))


def _images(process: Process, rows: Tensor) -> Tensor | None:
    """The products of these vectors as far as they follow from those that were made.

    A bound rests on these. A product made anew may be luckier: where large terms cancel, most do so to the last digit.
    """
    if isinstance(process, Dense):
        return rows @ process.matrix
    if isinstance(process, Lanczos):
        return process.space.whole(process.basis.images(process.space.cut(rows)))
    return None


def outermost(vectors: Tensor) -> Tensor:
    """At most :data:`VECTORS` of the (k, n) vectors, from the first to the last."""
    if len(vectors) <= VECTORS:
        return vectors
    return vectors[torch.linspace(0, len(vectors) - 1, VECTORS).long()]
