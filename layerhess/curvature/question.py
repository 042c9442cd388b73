"""What a pass is asked, in a few numbers: by which a question is known again, bit by bit or nearly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.record_file import digest_of

CLOSE = 64.0 * torch.finfo(torch.float64).eps  # relative to a vector's norm: last digits, those of the sums included
WEIGHTS = 4  # random weighted sums of a vector
_PERIOD = 4096  # numbers after which the weights repeat, times a weight of the period's own
_PIECE = _PERIOD << 8  # numbers that are converted to float64 at once


@dataclass(frozen=True)
class Question:
    """What a pass is asked.

    Attributes:
        exact: a digest of everything. outline: of all but the numbers. sums: for each vector how far its sums may be
            off, and its sums with random weights: those of two vectors differ about by the norm of their difference.
        by_batch: the answer has entries of single batches, so it holds for one way of sharing the data out.
    """

    exact: str
    outline: str
    sums: tuple[float, ...] = ()
    by_batch: bool = False

    @classmethod
    def of(cls, parts: Iterable[Any], by_batch: bool = False, nearly: bool = True) -> Question:
        """The question with these texts and (s, n) vectors; without ``nearly`` it is known again bit by bit only."""
        parts = list(parts)
        outline = [f"{p.dtype}{tuple(p.shape)}" if isinstance(p, Tensor) else p for p in parts]
        rows = [row for part in parts if nearly and isinstance(part, Tensor) for row in part]
        sums = [number for row in rows for number in weighted_sums(row)]
        return cls(digest_of(parts), digest_of(outline), tuple(sums), by_batch)

    @classmethod
    def read(cls, kept: dict[str, Any]) -> Question:
        """The question that was :meth:`written`."""
        return cls(kept["exact"], kept["outline"], tuple(kept["sums"]), kept["by_batch"])

    def written(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)

    def is_close(self, other: Question) -> bool:
        """Whether the other asks for the same products of vectors that agree up to their last digits."""
        if (self.outline, self.by_batch, len(self.sums)) != (other.outline, other.by_batch, len(other.sums)):
            return False
        width = 1 + WEIGHTS
        for place in range(0, len(self.sums), width):
            (level, *own), (_, *others) = self.sums[place : place + width], other.sums[place : place + width]
            if not all(abs(a - b) <= level for a, b in zip(own, others, strict=True)):
                return False
        return True


def weighted_sums(vector: Tensor) -> list[float]:
    """How far they may be off, and WEIGHTS sums of a vector (n,) with random weights of mean square 1."""
    drawn = torch.Generator().manual_seed(0)
    inner = torch.randn(_PERIOD, WEIGHTS, generator=drawn, dtype=torch.float64).to(vector.device)
    outer = torch.randn(math.ceil(len(vector) / _PERIOD), WEIGHTS, generator=drawn, dtype=torch.float64)
    total, square = torch.zeros(WEIGHTS, dtype=torch.float64), 0.0
    for start in range(0, len(vector), _PIECE):
        piece = vector[start : start + _PIECE].double()
        square += float(piece.square().sum())
        place, whole = start // _PERIOD, len(piece) // _PERIOD
        parts = piece[: whole * _PERIOD].reshape(whole, _PERIOD) @ inner
        rest = piece[whole * _PERIOD :]
        parts = torch.cat([parts, (rest @ inner[: len(rest)])[None]]).cpu()
        own = outer[place : place + whole + 1]
        total += (own * parts[: len(own)]).sum(dim=0)
    return [(CLOSE + torch.finfo(vector.dtype).eps) * math.sqrt(square), *total.tolist()]
