"""The loss of one batch as a function of the model's output: by example where the criterion says so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair

AT_ONCE = 1 << 24  # numbers of an output that are taken to float64 together
GROUPS = 32  # of examples, where a loss of its own for every example would take one call each


class Judge(Protocol):
    """The loss of a batch as a function of its output z, (rows, ...).

    Attributes:
        counts: (units,) float64, by what the loss sums of the units are to be divided.
    """

    counts: Tensor

    def losses(self, outputs: Tensor) -> Tensor:
        """(s, units) float64 loss sums for s outputs, (s, rows, ...)."""

    def sums(self, outputs: Tensor) -> Tensor:
        """(s,) float64 loss sums for s outputs, with a graph to them."""

    def taken(self, rows: Tensor) -> Judge | None:
        """The judge of some rows of the output alone, as one unit; None where rows cannot be taken."""

    def bent(self, output: Tensor, changes: Tensor) -> Tensor | None:
        """S dz, with S the second derivative in the output, for s changes, where a formula is known; else None."""

    def divergence(self, output: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
        """(units,) sums of KL(output || other) over predictions, and their number; None where there are none."""

    def same_as(self, other: Judge) -> bool:
        """Whether both are of the same targets, as far as that is known."""


class CriterionJudge:
    """Of a criterion of ``torch.nn`` whose losses are known for every example.

    Args:
        criterion: in float64. shape: of the output. target: of the batch. count: what the batch's loss sum is divided
            by. units: examples; by default the rows, where every row has losses of its own. along: the dimension along
            which outputs are log-probabilities; those to which changes were added are scaled to be such again.
    """

    def __init__(
        self,
        criterion: Criterion,
        shape: torch.Size,
        target: Tensor,
        count: float | None = None,
        units: int | None = None,
        along: int | None = None,
    ) -> None:
        self.criterion, self.target, self._shape, self._along = criterion, target, shape, along
        self.has_classes = criterion.has_classes
        self._indices = self.has_classes and not target.is_floating_point()
        self.aligned = _is_aligned(criterion, shape, target)
        self._units = units or (shape[0] if self.aligned else 1)
        kept = self._kept()
        share = _by_unit(kept, self._units)
        self._predictions = share
        weight = getattr(criterion.loss, "weight", None) if self._indices else None
        if weight is not None:
            index = torch.where(target == self._ignored, torch.zeros_like(target), target).long()
            share = _by_unit(kept * weight.double()[index], self._units)
        whole = float(share.sum())
        self.counts = (share * ((whole if count is None else count) / whole if whole else 0.0)).cpu()

    @property
    def _ignored(self) -> int:
        return int(self.criterion.loss.ignore_index)  # type: ignore[attr-defined]

    def _kept(self) -> Tensor:
        """1.0 for every target that takes part."""
        if self._indices:
            return (self.target != self._ignored).double()
        return torch.ones(self._units, dtype=torch.float64, device=self.target.device)

    def of_units(self, units: int) -> CriterionJudge:
        """The same with other units."""
        return CriterionJudge(
            self.criterion, self._shape, self.target, float(self.counts.sum()), units, along=self._along
        )

    def _losses(self, outputs: Tensor) -> Tensor:
        """All losses, (s, any number), in pieces where an output is large and nobody differentiates."""
        s, rows = outputs.shape[:2]
        if not self.aligned:
            return torch.stack([self._of(z, self.target).reshape(-1) for z in outputs])
        if s * math.prod(outputs.shape[1:]) <= AT_ONCE or outputs.requires_grad:
            target = self.target.repeat(s, *[1] * (self.target.ndim - 1)) if s > 1 else self.target
            return self._of(outputs.reshape(s * rows, *outputs.shape[2:]), target).reshape(s, -1)
        step = max(1, AT_ONCE * rows // math.prod(outputs.shape[1:]))
        pieces = [slice(begin, begin + step) for begin in range(0, rows, step)]
        return torch.stack([torch.cat([self._of(z[i], self.target[i]).reshape(-1) for i in pieces]) for z in outputs])

    def _of(self, output: Tensor, target: Tensor) -> Tensor:
        whole = output.double()
        losses = self.criterion.losses(whole if self._along is None else whole.log_softmax(self._along), target)
        assert losses is not None
        return losses

    def losses(self, outputs: Tensor) -> Tensor:
        """(s, units) float64 loss sums for s outputs, (s, rows, ...)."""
        return torch.stack([_by_unit(own, self._units) for own in self._losses(outputs).detach()]).cpu()

    def sums(self, outputs: Tensor) -> Tensor:
        """(s,) float64 loss sums for s outputs, with a graph to them."""
        return self._losses(outputs).sum(1)

    def bent(self, output: Tensor, changes: Tensor) -> Tensor | None:
        """S dz for s changes of one output, (s, rows, ...) float64, by the formula of a cross entropy; else None.

        S = diag(p) - p p' for every target that takes part, smoothed or not.
        """
        if type(self.criterion.loss) is not nn.CrossEntropyLoss or not self._indices or not self.aligned:
            return None
        if self.criterion.loss.weight is not None:
            return None
        shares = output.double().softmax(1)
        kept = self._kept().unsqueeze(1)
        found = torch.empty(changes.shape, dtype=torch.float64, device=changes.device)
        for place, change in enumerate(changes):
            wide = change.double()
            torch.mul(shares, wide - (shares * wide).sum(1, keepdim=True), out=found[place])
            found[place] *= kept
        return found

    def taken(self, rows: Tensor) -> CriterionJudge | None:
        """The judge of some rows of the output alone, each a unit."""
        if not self.aligned:
            return None
        shape = torch.Size((len(rows), *self._shape[1:]))
        per_row = None if self._indices else float(self.counts.sum()) * len(rows) / self._shape[0]
        target = self.target[rows.to(self.target.device)]
        return CriterionJudge(self.criterion, shape, target, per_row, along=self._along)

    def taking_part(self) -> Tensor:
        """Places of the rows that have a loss."""
        if self._indices and self.target.ndim == 1:
            return (self.target != self._ignored).nonzero()[:, 0].cpu()
        return torch.arange(self._shape[0])

    def divergence(self, output: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
        """(units,) sums of KL(output || other) over predictions, and their number; None where there are none."""
        kind = type(self.criterion.loss)
        if not self.aligned or not (self.criterion.has_classes or kind is nn.BCEWithLogitsLoss):
            return None
        step = max(1, AT_ONCE * len(output) // max(1, output.numel()))
        apart = torch.cat(
            [_divergence(z.double(), w.double(), self.criterion.has_classes)
             for z, w in zip(torch.split(output, step), torch.split(other, step), strict=True)]
        )  # fmt: skip
        kept = self._kept()
        if self._indices:
            if apart.shape != kept.shape:
                return None
            apart = apart * kept
            number = self._predictions
        else:
            number = _by_unit(torch.ones_like(apart), self._units)
        return _by_unit(apart, self._units).cpu(), number.cpu()

    def same_as(self, other: Judge) -> bool:
        """Whether both are of the same targets."""
        return isinstance(other, CriterionJudge) and torch.equal(self.target, other.target)


def _by_unit(values: Tensor, units: int) -> Tensor:
    """(units,) sums of equal parts."""
    return values.reshape(units, values.numel() // max(units, 1)).sum(1)


def _is_aligned(criterion: Criterion, shape: torch.Size, target: Tensor) -> bool:
    """Whether every row of the output has a row of the target, and weights of the criterion are none of rows."""
    indices = not target.is_floating_point() and (criterion.has_classes or type(criterion.loss) is nn.MultiMarginLoss)
    fewer = indices and target.ndim == len(shape) - 1
    if target.ndim == 0 or len(target) != shape[0] or not (target.ndim == len(shape) or fewer):
        return False
    own = [getattr(criterion.loss, name, None) for name in ("weight", "pos_weight")]
    return all(w is None or w.ndim < len(shape) or len(w) == 1 for w in own)


def _divergence(z: Tensor, w: Tensor, classes: bool) -> Tensor:
    if classes:
        p, q = F.log_softmax(z, 1), F.log_softmax(w, 1)
        return (p.exp() * (p - q)).sum(1)
    on, off = z.sigmoid(), (-z).sigmoid()
    return on * (F.logsigmoid(z) - F.logsigmoid(w)) + off * (F.logsigmoid(-z) - F.logsigmoid(-w))


class FunctionJudge:
    """Of any function of the output that returns (sum, count): one call for each of some groups of examples.

    Args:
        pair: called with an output and the same part of ``whole``. output: z, for its shape. whole: (output, rest).
    """

    def __init__(self, pair: Callable[[Tensor, Any], Pair], output: Tensor, whole: Any) -> None:
        self._pair = pair
        size = batches.leading_size(whole)
        number = len(output) if size == len(output) else 1
        edges = torch.linspace(0, number, min(number, GROUPS) + 1).round().long().tolist()
        self._parts = [slice(a, b) for a, b in itertools.pairwise(edges)] if number > 1 else [slice(None)]
        rest = (output.detach(), whole[1])
        self._wholes = [batches.take(rest, part) for part in self._parts] if number > 1 else [rest]
        self._whole = rest
        counts = [pair(piece[0], piece)[1] for piece in self._wholes]
        self.counts = torch.tensor(counts, dtype=torch.float64)

    @torch.no_grad()
    def losses(self, outputs: Tensor) -> Tensor:
        """(s, groups) float64 loss sums for s outputs, (s, rows, ...)."""
        rows = [
            [float(self._pair(z[part], whole)[0]) for part, whole in zip(self._parts, self._wholes, strict=True)]
            for z in outputs.to(self._whole[0].dtype)
        ]
        return torch.tensor(rows, dtype=torch.float64)

    def sums(self, outputs: Tensor) -> Tensor:
        """(s,) float64 loss sums for s outputs, with a graph to them."""
        return torch.stack([self._pair(z, self._whole)[0].double() for z in outputs.to(self._whole[0].dtype)])

    def bent(self, output: Tensor, changes: Tensor) -> None:
        """No formula is known."""

    def taken(self, rows: Tensor) -> None:
        """Unknown: the function may look at the whole batch."""

    def divergence(self, output: Tensor, other: Tensor) -> None:
        """Unknown."""

    def same_as(self, other: Judge) -> bool:
        """What the function compares with is not known."""
        return isinstance(other, FunctionJudge)
