"""One batch as a plan reads it: a loss for every example, and the loss as a function of the model's output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.errors import CheckError
from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair
from layerhess.objective.evaluation import Evaluation, gradients_on
from layerhess.objective.losses import CriterionLoss, batch_loss
from layerhess.objective.model_loss import HF_IGNORE_INDEX, ModelLoss

AT_ONCE = 1 << 24  # numbers of an output that are taken to float64 together
PIECES = 16  # of a batch whose loss says nothing of single examples
GROUPS = 32  # of examples, where a loss of its own for every example would take one call each
SAME_LOSS = {torch.float64: 1e-6, torch.float32: 1e-4}  # relative; other dtypes: SAME_LOSS_HALF
SAME_LOSS_HALF = 0.05
ROUNDINGS = 2.0  # of the largest output, by which one loss may be off beside that


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

    def divergence(self, output: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
        """(units,) sums of KL(output || other) over predictions, and their number; None where there are none."""

    def same_as(self, other: Judge) -> bool:
        """Whether both are of the same targets, as far as that is known."""


@dataclass(frozen=True)
class Reading:
    """A batch read once.

    Attributes:
        losses, counts: (units,) float64 by example, or by group of them: loss sums, and what they are divided by.
        output: (rows, ...) what the judge takes; None where the loss is no known function of one output.
        judge: of that output.
    """

    losses: Tensor
    counts: Tensor
    output: Tensor | None = None
    judge: Judge | None = None


class Reader:
    """Reads batches of one objective.

    Attributes:
        coarse: losses are known by batch only. A reader becomes so where the losses it made of an output do not add up
            to the loss itself; what was read before is then to be read again. settled: what was read stays as it is: no
            batch may make the reader coarse any more.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.coarse = self.settled = False
        self._form = ""  # of a model's own loss, once known
        self._piecewise: bool | None = None  # a batch's loss is the sum of those of its pieces
        self._exact: dict[torch.device, Criterion] = {}

    @torch.no_grad()
    def read(self, model: nn.Module, batch: Any) -> Reading:
        """One forward pass (in session).

        Raises:
            CheckError: settled, and the losses of this output do not add up to the loss. Whatever the model or the loss
                raise.
        """
        made: Reading = _read(self, model, batch)
        return made

    def unexplained(self) -> None:
        """The output does not explain a loss."""
        if self.settled:
            raise CheckError(
                "the loss is a function of the model's output before the weights are changed, and no longer afterwards",
                where="loss",
                what_to_do="give lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count)",
            )
        self.coarse = True

    def criterion(self, criterion: Criterion, device: torch.device) -> Criterion:
        """The same in float64."""
        if device not in self._exact:
            self._exact[device] = criterion.to(torch.float64, device)
        return self._exact[device]

    def of_criterion(self, criterion: Criterion, output: Any, target: Any, count: float) -> Reading | None:
        """By example; None where that is unknown."""
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.ndim or not len(output):
            return None
        if not criterion.known or not isinstance(target, Tensor):
            return self.of_function(output, (output, target), lambda z, part: criterion(z, part[1]))
        if criterion.has_classes and output.ndim < 2:
            return None
        judge = CriterionJudge(self.criterion(criterion, output.device), output.shape, target, count)
        return Reading(judge.losses(output[None])[0], judge.counts, output, judge)

    def of_function(self, output: Tensor, whole: Any, pair: Callable[[Tensor, Any], Pair]) -> Reading:
        """Of a function of the output and ``whole`` that says (sum, count): by group of examples, or by batch."""
        judge = FunctionJudge(pair, output.detach(), whole)
        return Reading(judge.losses(output[None])[0], judge.counts, output, judge)

    def of_whole(self, model: nn.Module, batch: Any) -> Reading:
        """Of a loss that says nothing of single examples: by a few pieces of the batch, so that errors are known.

        By the whole batch where its first one is not the sum of its pieces (BatchNorm in train mode), or cannot be cut.
        """
        size = batches.leading_size(batch)
        if self._piecewise is False or not size or size < 2:
            return _whole(self.evaluation(model, batch))
        edges = torch.linspace(0, size, min(size, PIECES) + 1).round().long().tolist()
        pairs = [self.evaluation(model, batches.take(batch, slice(a, b))) for a, b in itertools.pairwise(edges)]
        made = [_whole((loss.detach(), count)) for loss, count in pairs]
        found = Reading(torch.cat([one.losses for one in made]), torch.cat([one.counts for one in made]))
        if self._piecewise is None:
            whole = _whole(self.evaluation(model, batch))
            tolerance = SAME_LOSS.get(pairs[0][0].dtype, SAME_LOSS_HALF)
            alike = _same(float(found.losses.sum()), float(whole.losses), tolerance)
            self._piecewise = alike and _same(float(found.counts.sum()), float(whole.counts))
            return found if self._piecewise else whole
        return found

    def of_model(self, result: Any, labels: Any, loss: float, count: float) -> Reading | None:
        """Of a model's own loss, where it is a cross entropy of its logits, at each label or at the next one."""
        logits = getattr(result, "logits", None)
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or labels.dtype != torch.long:
            return None
        if labels.shape != logits.shape[:-1]:
            return None
        forms = ["same", "next"] if labels.ndim >= 2 else ["same"]
        for form in [self._form] if self._form else forms:
            z, y = (logits, labels) if form == "same" else (logits[:, :-1], labels[:, 1:])
            rows, target = z.reshape(-1, z.shape[-1]), y.reshape(-1)
            judge = CriterionJudge(_CROSS_ENTROPY, rows.shape, target, units=len(labels))
            losses = judge.losses(rows[None])[0]
            reading = Reading(losses, judge.counts, rows, judge)
            if self._form and not math.isfinite(loss):
                return reading
            if _explains(reading, loss, logits.dtype) and float(judge.counts.sum()) == count:
                self._form = form
                return reading
        return None


@gradients_on
def _read(reader: Reader, model: nn.Module, batch: Any) -> Reading:
    evaluation = reader.evaluation
    if reader.coarse:
        return reader.of_whole(model, batch)
    found: Reading | None = None
    if isinstance(evaluation, CriterionLoss):
        output, target = evaluation.output_and_target(model, batch)
        loss, count = evaluation.criterion(output, target)
        found = reader.of_criterion(evaluation.criterion, output, target, count)
        if found is not None and batches.is_mapping(batch):  # labels (N, T) were flattened: a sequence is an example
            found = _by_example(found, batches.leading_size(batch))
    elif isinstance(evaluation, batch_loss) and evaluation.output is not None:
        output = evaluation.output(model, batch)
        loss, count = evaluation.judge(output, batch)
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim and len(output):
            found = reader.of_function(output, (output, batch), lambda z, part: evaluation.judge(z, part[1]))
    elif isinstance(evaluation, ModelLoss) and batches.is_mapping(batch):
        loss, count, result = evaluation.with_result(model, batch)
        found = reader.of_model(result, batch.get("labels"), float(loss.detach()), count)
        if found is None and count > 0.0:
            reader.unexplained()
    else:
        return reader.of_whole(model, batch)
    value = float(loss.detach().double())
    if found is None:
        return _whole((loss, count))
    if not math.isfinite(value):  # so it is in the model's dtype; it says nothing about the reader
        return replace(found, losses=torch.full_like(found.losses, value))
    if not _explains(found, value, loss.dtype) or not _same(float(found.counts.sum()), count):
        reader.unexplained()
    return found


def _whole(pair: Pair) -> Reading:
    loss, count = pair
    return Reading(loss.detach().double().reshape(1).cpu(), torch.tensor([count], dtype=torch.float64))


def _by_example(found: Reading, examples: int | None) -> Reading:
    units = len(found.losses)
    if examples is None or units == examples or not examples or units % examples:
        return found
    if isinstance(found.judge, CriterionJudge):
        judge = found.judge.of_units(examples)
        return Reading(found.losses.reshape(examples, -1).sum(1), judge.counts, found.output, judge)
    return found


def _explains(found: Reading, loss: float, dtype: torch.dtype) -> bool:
    """Whether the losses add up to the loss that was computed in this dtype.

    A loss of a sure prediction is a difference of large outputs, so it is rounded as they are.
    """
    assert found.output is not None
    output = found.output.detach()
    losses = output.numel() / (output.shape[1] if getattr(found.judge, "has_classes", False) else 1)
    rounding = ROUNDINGS * torch.finfo(output.dtype).eps * float(output.abs().max()) * losses if output.numel() else 0.0
    return _same(float(found.losses.sum()), loss, SAME_LOSS.get(dtype, SAME_LOSS_HALF), rounding)


def _same(value: float, other: float, tolerance: float = SAME_LOSS[torch.float64], rounding: float = 0.0) -> bool:
    return abs(value - other) <= tolerance * max(abs(value), abs(other)) + rounding + 1e-30


class CriterionJudge:
    """Of a criterion of ``torch.nn`` whose losses are known for every example.

    Args:
        criterion: in float64. shape: of the output. target: of the batch. count: what the batch's loss sum is divided
            by. units: examples; by default the rows, where every row has losses of its own.
    """

    def __init__(
        self,
        criterion: Criterion,
        shape: torch.Size,
        target: Tensor,
        count: float | None = None,
        units: int | None = None,
    ) -> None:
        self.criterion, self.target, self._shape = criterion, target, shape
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
        return CriterionJudge(self.criterion, self._shape, self.target, float(self.counts.sum()), units)

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
        losses = self.criterion.losses(output.double(), target)
        assert losses is not None
        return losses

    def losses(self, outputs: Tensor) -> Tensor:
        """(s, units) float64 loss sums for s outputs, (s, rows, ...)."""
        return torch.stack([_by_unit(own, self._units) for own in self._losses(outputs).detach()]).cpu()

    def sums(self, outputs: Tensor) -> Tensor:
        """(s,) float64 loss sums for s outputs, with a graph to them."""
        return self._losses(outputs).sum(1)

    def taken(self, rows: Tensor) -> CriterionJudge | None:
        """The judge of some rows of the output alone, each a unit."""
        if not self.aligned:
            return None
        shape = torch.Size((len(rows), *self._shape[1:]))
        per_row = None if self._indices else float(self.counts.sum()) * len(rows) / self._shape[0]
        return CriterionJudge(self.criterion, shape, self.target[rows.to(self.target.device)], per_row)

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

    def taken(self, rows: Tensor) -> None:
        """Unknown: the function may look at the whole batch."""

    def divergence(self, output: Tensor, other: Tensor) -> None:
        """Unknown."""

    def same_as(self, other: Judge) -> bool:
        """What the function compares with is not known."""
        return isinstance(other, FunctionJudge)


_CROSS_ENTROPY = Criterion(nn.CrossEntropyLoss(ignore_index=HF_IGNORE_INDEX))
