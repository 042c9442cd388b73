"""The samples that random probes have given for one block, and what its eigenvalue solver knows of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.linalg.estimates import DiagonalEstimate
from layerhess.linalg.random_vectors import random_signs
from layerhess.linalg.stochastic.deflation import Deflation
from layerhess.linalg.stochastic.diagonal import DiagonalSamples, FlatDiagonal
from layerhess.linalg.stochastic.trace import TraceSamples
from layerhess.objective.blocks import Block


@dataclass(frozen=True)
class Known:
    """What the eigenvalue solver knows of a block.

    Attributes:
        deflation: from its basis, or None. diagonal: (n,) all entries, where the whole block was read.
        lengths: (n,) of the columns, given with the diagonal. zero: the block counts as zero.
        matrix: (n, n), where it is at hand. square: its squared Frobenius norm, where that is known.
    """

    deflation: Deflation | None = None
    diagonal: Tensor | None = None
    zero: bool = False
    lengths: Tensor | None = None
    matrix: Tensor | None = None
    square: float | None = None

    @property
    def exact(self) -> bool:
        """No probe is needed."""
        return self.zero or self.diagonal is not None


@dataclass
class Samples:
    """Trace and diagonal accumulators that use the same products.

    Attributes:
        free: how many of the probes were made for other estimates.
    """

    trace: TraceSamples
    diagonal: DiagonalSamples | None
    free: int = 0

    def add(self, v: Tensor, x: Tensor, ax: Tensor) -> None:
        """Add samples from rows v, x = P v and A x."""
        self.trace.add(v, x, ax)
        if self.diagonal is not None:
            self.diagonal.add(v, x, ax)

    def add_free(self, v: Tensor, av: Tensor) -> Tensor:
        """Add samples from existing rows v and A v. Returns A P v, since P v = v - Q'Q v and A Q' = W' is known."""
        known = self.trace.deflation
        ax = av - (v @ known.q.T) @ known.w
        self.add(v, known.project(v), ax)
        self.free += len(v)
        return ax

    @property
    def count(self) -> int:
        """Probes so far."""
        return self.trace.count


@dataclass
class Member:
    """One block with what is known of it, and samples of two kinds.

    Attributes:
        own: from products of the block alone. joint: from full products, in which other blocks add noise.
    """

    name: str
    block: Block
    known: Known
    deflation: Deflation
    own: Samples
    joint: Samples
    enough: int
    drawn: int = 0
    sketched: bool = False
    spent: int = 0

    @property
    def device(self) -> torch.device:
        """Of its vectors."""
        return self.deflation.q.device

    @property
    def exact(self) -> bool:
        """No probe is needed."""
        return self.known.exact

    @property
    def best(self) -> Samples:
        """The block's own samples if there are enough: they have no noise from other blocks. Else the joint ones.

        The choice is not by standard error: with skewed samples the smaller one is small by luck, and so is its mean.
        """
        if self.own.count >= self.enough:
            return self.own
        return max((self.joint, self.own), key=lambda kind: kind.count)

    def beside(self, samples: Samples) -> int:
        """Products of this block that are not in these samples."""
        return self.spent - (samples.count - samples.free)

    def draw(self, count: int, seed: int) -> Tensor:
        """The next (count, n) Rademacher rows."""
        rows = [random_signs(self.block.numel, seed, self.name, self.drawn + i, self.device) for i in range(count)]
        self.drawn += count
        return torch.stack(rows)


def shaped(block: Block, flat: FlatDiagonal) -> DiagonalEstimate:
    """A flat diagonal as parameter-shaped tensors on the CPU."""
    value, error = block.split(flat.value.cpu()), block.split(flat.standard_error.cpu())
    return DiagonalEstimate(
        {name: part.clone() for name, part in value.items()},
        {name: part.clone() for name, part in error.items()},
        flat.probes,
        flat.method,
        flat.status,
        flat.converged,
        flat.required,
        rounding=flat.rounding,
    )


def part_of(full: Block, block: Block, rows: Tensor) -> Tensor:
    """The block's components, (s, P_b), of (s, P) rows over all parameters of ``full``."""
    offsets, start = {}, 0
    for name, shape in zip(full.parameters, full.shapes, strict=True):
        offsets[name] = (start, start + shape.numel())
        start += shape.numel()
    return torch.cat([rows[:, slice(*offsets[name])] for name in block.parameters], dim=1)
