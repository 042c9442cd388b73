"""One block among those that share random probes: what is known of it, and its samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.blocks import Block
from layerhess.estimates import DiagonalEstimate
from layerhess.estimators.deflation import Deflation
from layerhess.estimators.diagonal import Diagonal, DiagonalSamples, FlatDiagonal
from layerhess.estimators.stopping import MINIMUM
from layerhess.estimators.trace import Trace, TraceSamples
from layerhess.memory import Budget
from layerhess.vectors import random_signs

ROOM_SHARE = 0.1  # of the free memory, for rows of the model's length


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
        flat.converged,
        flat.required,
    )


def is_open(count: int, options: Trace | Diagonal, excess: float) -> bool:
    """Whether samples of this count and excess call for more."""
    if options.probes is not None:
        return count < options.probes
    return count < MINIMUM or (count < options.max_probes and cautious(count, excess) > 1.0)


def cautious(count: int, excess: float) -> float:
    """The excess, with a margin for how uncertain a standard error from ``count`` skewed samples is itself.

    Who stops as soon as the standard error looks small enough stops on those that are too small by luck: without the
    margin 95 % intervals covered 78 to 95 % on a trained network (16 probes and more).
    """
    return excess * (1.0 + 4.0 / math.sqrt(max(count, 1)))


def part_of(full: Block, block: Block, rows: Tensor) -> Tensor:
    """The block's components, (s, P_b), of (s, P) rows over all parameters of ``full``."""
    offsets, start = {}, 0
    for name, shape in zip(full.parameters, full.shapes, strict=True):
        offsets[name] = (start, start + shape.numel())
        start += shape.numel()
    return torch.cat([rows[:, slice(*offsets[name])] for name in block.parameters], dim=1)


def room_for(numel: int, device: torch.device, memory: Budget = Budget()) -> int:  # noqa: B008  (frozen)
    """How many float64 rows of ``numel`` entries fit a tenth of the free memory, or of the budget; at most 64."""
    return int(min(64, max(1, ROOM_SHARE * memory.free(device) // (8 * numel))))
