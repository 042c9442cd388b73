"""Picks a few examples that stand for the data, for the self-check and the measurement of rounding."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from layerhess.linalg.described import Described, Description
from layerhess.linalg.numbers import counted, number
from layerhess.objective import batches
from layerhess.objective.containers import tensors
from layerhess.objective.evaluation import Seen
from layerhess.objective.group import Group
from layerhess.objective.objective import Objective
from layerhess.objective.sent_batches import of_all_ranks

SMALLEST, LARGEST, SHARE = 8, 32, 16  # a sixteenth of the examples, but 8 to 32: checks should cost little
MOST_PIECES = 3
WHOLE = 1 << 28  # parameters times numbers in the data: up to that, a product in float64 costs milliseconds
MOST_BATCHES = 1000  # of them: each is kept, and is a pass of its own however small it is
MANY_TERMS = 32  # of the loss in an example (the tokens of a text): then half as many examples are still many items
UNEVEN = 2.0  # times their mean: if no item of the output is more curved, evenly spread examples stand for all


@dataclass(frozen=True, repr=False)
class Sample(Described):
    """Examples that rounding is measured on.

    Attributes:
        pieces: parts of batches, prepared. excess: their curvature per example over that of the data, at least 1.
        curvature: mean over the output items of all data, if some are far more curved than others; else 0.
        seen: the outputs of the pieces, if there is that curvature. whole: the pieces are all the data. most: examples
            that a piece may have, where memory is short.
    """

    pieces: list[Any]
    excess: float = 1.0
    curvature: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    whole: bool = False
    most: int | None = None

    def _describe(self) -> Description:
        of = "all the data" if self.whole else f"{number(self.excess, 2)} times as curved as the data"
        return Description(f"Sample for rounding: {counted(len(self.pieces), 'piece')}, {of}")

    def cut(self, objective: Objective, size: int) -> Sample:
        """In pieces of at most so many examples (in session)."""
        pieces = [part for piece in self.pieces for part in counting_parts(objective, piece, size)]
        with torch.no_grad():
            seen = [objective.evaluation.surveyed(objective.model, piece, "a sample") for piece in pieces]
        return replace(self, pieces=pieces, seen=seen if self.seen else [], most=size)


def counting_parts(objective: Objective, batch: Any, size: int) -> list[Any]:
    """A batch in parts of at most so many examples, without those that count nothing; whole where it cannot be cut."""
    if (batches.leading_size(batch) or 0) <= size:
        return [batch]
    with torch.no_grad():
        return [part for part in batches.pieces(batch, size) if objective.terms(part)[1] > 0.0] or [batch]


def by_example(batch: Any, curvature: Tensor | None) -> Tensor | None:
    """(examples,) the curvature of each example of a batch, summed over its output items; None where unknown."""
    size = batches.leading_size(batch)
    if curvature is None or not size or len(curvature) % size:
        return None
    return curvature.reshape(size, -1).sum(dim=1)


class WholeData:
    """Keeps all batches and their outputs while a product with them costs next to nothing.

    No choice of examples can then miss the one that rounding matters for.

    Args:
        parameters: how many the model has.
    """

    def __init__(self, parameters: int) -> None:
        self._room = self._most = WHOLE / max(parameters, 1)
        self._kept: list[tuple[Any, Seen]] = []

    def offer(self, batch: Any, seen: Seen) -> None:
        """Take the next batch and what was seen of it."""
        self._room -= sum(tensor.numel() for tensor in tensors(batch))
        if len(self._kept) == MOST_BATCHES:
            self._room = -1.0
        if self._room >= 0.0:
            self._kept.append((batch, seen))
        else:
            self._kept.clear()

    def sample(self, objective: Objective) -> Sample | None:
        """All the data, of all ranks; None where that is too much.

        Args:
            objective: in session.
        """
        group, kept = objective.group, self._kept
        rooms = group.gathered(self._room)
        if sum(rooms) < (len(rooms) - 1) * self._most:
            return None
        if group.size > 1:
            every = of_all_ranks([(None, batch) for batch, _ in kept], group, objective.device)
            with torch.no_grad():
                kept = [
                    (batch, objective.evaluation.surveyed(objective.model, batch, "a sample"))
                    for _, batch in itertools.chain(*every)
                ]
        return Sample([batch for batch, _ in kept], seen=[seen for _, seen in kept], whole=True) if kept else None


class _Piece(NamedTuple):
    """Part of a batch: where it is from, the batch's mean loss, itself."""

    place: str
    loss: float
    batch: Any


class Sampler:
    """Keeps small slices of three batches: the first, that of the largest loss, and the middle one.

    Examples within a slice are spread evenly over its batch. A batch that cannot be cut is kept whole.

    Args:
        objective: in session.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._first: _Piece | None = None
        self._largest: _Piece | None = None
        self._others: list[_Piece] = []
        self._ignored: _Piece | None = None  # the first batch, while none counted
        self._stride = 1
        self._seen = 0
        self._terms = 0.0  # of the loss per example, in the batch that has most
        self._curved: list[tuple[Tensor, Any]] = []

    def offer(self, place: str, batch: Any, value: float, count: float, curvature: Tensor | None = None) -> None:
        """Take the batch at ``place`` with its loss sum and count; a batch of count 0 is ignored.

        Args:
            curvature: (examples,) of its output, see :func:`by_example`.
        """
        if count <= 0.0:
            self._ignored = self._ignored or _Piece(place, 0.0, batch)
            return
        size = abs(value) / count
        self._seen += 1
        self._terms = max(self._terms, count / (batches.leading_size(batch) or math.inf))
        if curvature is not None and len(curvature):
            self._offer_curved(batch, curvature)
        if self._first is None:
            self._first = _Piece(place, size, self._cut(batch, LARGEST))
            return
        if self._largest is None or size > self._largest.loss:
            self._largest = _Piece(place, size, self._cut(batch, LARGEST))
        if (self._seen - 1) % self._stride == 0:
            self._others.append(_Piece(place, size, self._cut(batch, LARGEST)))
            if len(self._others) > 8:  # saves memory; the middle can still be found
                self._others, self._stride = self._others[1::2], 2 * self._stride

    def meet(self, group: Group) -> None:
        """After the last batch: the same choice on all ranks, from what each has seen."""
        if group.size == 1:
            return
        own = [piece for piece in (self._first, self._largest, self._middle, self._ignored) if piece is not None]
        roles = [piece is not self._ignored for piece in own]
        kept = [((place, loss, counts), batch) for (place, loss, batch), counts in zip(own, roles, strict=True)]
        curved = [(values.cpu(), piece) for values, piece in self._curved]
        device = self._objective.device
        every = [
            (_Piece(place, loss, batch), counts)
            for (place, loss, counts), batch in itertools.chain(*of_all_ranks(kept, group, device))
        ]
        self._curved = list(itertools.chain(*of_all_ranks(curved, group, device)))
        self._curved = sorted(self._curved, key=lambda pair: -float(pair[0][0]))[:MOST_PIECES]
        self._terms = max(group.gathered(self._terms))
        counted = list({piece.place: piece for piece, counts in every if counts}.values())
        self._first, self._others = next(iter(counted), None), counted[1:]
        self._largest = max(self._others, key=lambda piece: piece.loss, default=None)
        self._ignored = next((piece for piece, counts in every if not counts), None)

    @property
    def _middle(self) -> _Piece | None:
        middle = [other for other in self._others if self._largest is None or other.place != self._largest.place]
        return middle[len(middle) // 2] if middle else None

    def chosen(self, examples: int) -> list[tuple[str, Any]]:
        """(the batch's place, part of it); the parts together are a share of all ``examples``.

        Where no batch counted, which is possible with reduction="sum" only, the first batch.
        """
        if self._first is None:
            return [] if self._ignored is None else [(self._ignored.place, self._ignored.batch)]
        wanted, fewest = self._wanted(examples)
        pieces = [self._first]
        if self._largest is not None:
            pieces.append(self._largest)
        if self._middle is not None and wanted >= 2 * fewest * MOST_PIECES:
            pieces.append(self._middle)
        return [(one.place, self._cut(one.batch, max(fewest, wanted // len(pieces)))) for one in pieces]

    def measured(self, pieces: list[Any], examples: int, mean: float, mean_item: float) -> Sample:
        """Half of the chosen parts, and the most curved examples of all; the chosen parts if no example stands out.

        Evenly spread examples of a confident network may miss the few uncertain ones that carry its curvature, and so
        the rounding that matters.

        Args:
            pieces: the chosen parts. examples: of all the data. mean, mean_item: curvature of the output in an example,
                and in one item of it, over all the data.
        """
        if not self._curved or float(self._curved[0][0][0]) <= UNEVEN * mean:
            return Sample(pieces)
        wanted, fewest = self._wanted(examples)
        half = max(SMALLEST, wanted // 2)
        every = torch.cat([own for own, _ in self._curved])
        order = every.argsort(descending=True, stable=True)[:half]
        made, start = [batches.spread_slice(piece, max(fewest // 2, half // len(pieces))) for piece in pieces], 0
        for own, piece in self._curved:
            inside = order[(order >= start) & (order < start + len(own))] - start
            start += len(own)
            if len(inside):
                made.append(batches.take(piece, inside.sort().values))
        whole = batches.joined(made)
        for together in [made] if whole is None else [[whole], made]:
            seen = [one for piece in together if (one := self._evaluated(piece)) is not None]
            if len(seen) == len(together):
                size = sum(batches.leading_size(piece) or 0 for piece in together)
                excess = float(every[order].sum()) / size / mean
                return Sample(together, max(1.0, excess), mean_item, seen)
        return Sample(pieces)

    def _offer_curved(self, batch: Any, curvature: Tensor) -> None:
        most = torch.topk(curvature, min(len(curvature), LARGEST // 2))
        if len(self._curved) == MOST_PIECES and float(most.values[0]) <= float(self._curved[-1][0][0]):
            return
        self._curved.append((most.values, batches.take(batch, most.indices)))
        self._curved = sorted(self._curved, key=lambda pair: -float(pair[0][0]))[:MOST_PIECES]

    def _wanted(self, examples: int) -> tuple[int, int]:
        """How many examples to take in all, and from each batch."""
        wanted = min(LARGEST, max(SMALLEST, examples // SHARE))
        return (wanted // 2, 2) if self._terms >= MANY_TERMS else (wanted, 4)

    def _cut(self, batch: Any, size: int) -> Any:
        """A few evenly spread examples; the whole batch if such a slice cannot be evaluated or has count 0."""
        small = batches.spread_slice(batch, size)
        return small if small is batch or self._evaluated(small) is not None else batch

    def _evaluated(self, piece: Any) -> Seen | None:
        """None where it cannot be evaluated or has count 0; a model may need a fixed batch size."""
        try:
            with torch.no_grad():
                seen = self._objective.evaluation.surveyed(self._objective.model, piece, "a sample")
        except Exception:  # of the model or user code, or dimension 0 is not the examples
            return None
        return seen if seen.count > 0.0 and math.isfinite(float(seen.loss.detach())) else None
