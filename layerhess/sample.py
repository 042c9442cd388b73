"""A few examples that stand for the data: what the self-checks and the rounding measurement look at."""

from __future__ import annotations

import math
from typing import Any

import torch

from layerhess import batches
from layerhess.objective import Objective

SMALLEST, LARGEST, SHARE = 8, 32, 16  # a sixteenth of the examples, but 8 to 32: checks should cost little
MOST_PIECES = 3
MANY_TERMS = 32  # of the loss in an example (the tokens of a text): half as many examples are then still many items


class Sampler:
    """Sees every batch once and keeps small slices of three: the first, that of the largest loss, and the middle one.

    Examples within a slice are spread evenly over its batch. A batch that cannot be cut is kept whole.

    Args:
        objective: in session.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._first: tuple[int, Any] | None = None
        self._largest: tuple[float, int, Any] = (-math.inf, -1, None)
        self._others: list[tuple[int, Any]] = []
        self._stride = 1
        self._seen = 0
        self._terms = 0.0  # of the loss in an example, in the batch that has most

    def offer(self, index: int, batch: Any, value: float, count: float) -> None:
        """Note batch number ``index`` with its loss sum and count; one that counts nothing is passed over."""
        if count <= 0.0:
            return
        self._seen += 1
        self._terms = max(self._terms, count / (batches.leading_size(batch) or math.inf))
        if self._first is None:
            self._first = index, self._cut(batch, LARGEST)
            return
        if abs(value) / count > self._largest[0]:
            self._largest = (abs(value) / count, index, self._cut(batch, LARGEST))
        if (self._seen - 1) % self._stride == 0:
            self._others.append((index, self._cut(batch, LARGEST)))
            if len(self._others) > 8:  # keeps memory small, and the middle findable
                self._others, self._stride = self._others[1::2], 2 * self._stride

    def chosen(self, examples: int) -> list[tuple[int, Any]]:
        """(batch, piece of it), cut to the share that ``examples`` in all deserve; empty if no batch counted."""
        if self._first is None:
            return []
        wanted = min(LARGEST, max(SMALLEST, examples // SHARE))
        fewest = 4
        if self._terms >= MANY_TERMS:
            wanted, fewest = wanted // 2, 2
        pieces = [self._first]
        if self._largest[1] > 0:
            pieces.append(self._largest[1:])
        middle = [other for other in self._others if other[0] != self._largest[1]]
        if middle and wanted >= 2 * fewest * MOST_PIECES:
            pieces.append(middle[len(middle) // 2])
        return [(index, self._cut(piece, max(fewest, wanted // len(pieces)))) for index, piece in pieces]

    def _cut(self, batch: Any, size: int) -> Any:
        """A spread of a few examples; the whole batch where such a slice cannot be evaluated or counts nothing."""
        small = batches.spread_slice(batch, size)
        if small is batch:
            return batch
        try:
            with torch.no_grad():
                value, count = self._objective.terms(small)
        except Exception:  # a model tied to its batch size, or dimension 0 is not the examples after all
            return batch
        return small if count > 0.0 and math.isfinite(float(value)) else batch
