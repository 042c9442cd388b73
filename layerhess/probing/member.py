"""One block among those that share random probes: what is known of it, and its samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.blocks import Block
from layerhess.estimates import DiagonalEstimate
from layerhess.estimators.deflation import Deflation
from layerhess.estimators.diagonal import DiagonalSamples, FlatDiagonal
from layerhess.estimators.trace import TraceSamples
from layerhess.vectors import random_signs


@dataclass(frozen=True)
class Known:
    """What the eigenvalue solver leaves behind for a block.

    Attributes:
        deflation: from its basis; None for nothing. diagonal: (n,) all entries, where the whole block was read.
        zero: the block counts as zero.
    """

    deflation: Deflation | None = None
    diagonal: Tensor | None = None
    zero: bool = False


@dataclass
class Samples:
    """Trace and diagonal accumulators that take the same products."""

    trace: TraceSamples
    diagonal: DiagonalSamples | None

    def add(self, v: Tensor, x: Tensor, ax: Tensor) -> None:
        """Rows v, x = P v and A x."""
        self.trace.add(v, x, ax)
        if self.diagonal is not None:
            self.diagonal.add(v, x, ax)

    @property
    def count(self) -> int:
        """Probes so far."""
        return self.trace.count


@dataclass
class Member:
    """One block on its way: what is known of it, and samples of two kinds.

    Attributes:
        own: from products of the block alone. joint: from full products, with what other blocks add as noise.
    """

    name: str
    block: Block
    known: Known
    deflation: Deflation
    own: Samples
    joint: Samples
    drawn: int = 0
    sketched: bool = False

    @property
    def exact(self) -> bool:
        """No probe is needed."""
        return self.known.zero or self.known.diagonal is not None

    def draw(self, count: int, seed: int) -> Tensor:
        """The next (count, n) Rademacher rows."""
        device = self.deflation.q.device
        rows = [random_signs(self.block.numel, seed, self.name, self.drawn + i, device) for i in range(count)]
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
    )
