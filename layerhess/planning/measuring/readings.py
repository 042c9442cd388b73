"""One batch as a plan reads it: a loss for every example, and the loss as a function of the model's output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import CheckError
from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair
from layerhess.objective.evaluation import Evaluation, gradients_on
from layerhess.objective.losses import CriterionLoss, batch_loss
from layerhess.objective.model_loss import HF_IGNORE_INDEX, ModelLoss
from layerhess.planning.measuring.judges import CriterionJudge, FunctionJudge, Judge

PIECES = 16  # of a batch whose loss says nothing of single examples
SAME_LOSS = {torch.float64: 1e-6, torch.float32: 1e-4}  # relative; other dtypes: SAME_LOSS_HALF
SAME_LOSS_HALF = 0.05
NORMALISED = 1e-2  # of the logarithm of a sum of probabilities, from 0
ROUNDINGS = 2.0  # of the largest output, by which one loss may be off beside that


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
        exact = self.criterion(criterion, output.device)
        along = _log_probabilities(exact.loss, output)
        judge = CriterionJudge(exact, output.shape, target, count, along=along)
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
        if found is None and count > 0.0:
            reader.unexplained()
        elif found is not None and batches.is_mapping(batch):  # labels (N, T) were flattened: a sequence is an example
            found = _by_example(found, batches.leading_size(batch))
    elif isinstance(evaluation, batch_loss) and evaluation.output is not None:
        output = evaluation.output(model, batch)
        loss, count = evaluation.judge(output, batch)
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim and len(output):
            found = reader.of_function(output, (output, batch), lambda z, part: evaluation.judge(z, part[1]))
        elif count > 0.0:
            reader.unexplained()
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


def _log_probabilities(loss: Any, output: Tensor) -> int | None:
    """The dimension along which the output of a loss of log-probabilities is such; None where it is none."""
    dimensions = {nn.NLLLoss: (1,), nn.KLDivLoss: (1, output.ndim - 1)}.get(type(loss), ())
    for along in dimensions if output.ndim > 1 else ():
        if bool((output.logsumexp(along).abs() <= NORMALISED).all()):
            return along
    return None


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
    largest = max(map(abs, map(float, torch.aminmax(output)))) if output.numel() else 0.0
    rounding = ROUNDINGS * torch.finfo(output.dtype).eps * largest * losses if math.isfinite(largest) else 0.0
    return _same(float(found.losses.sum()), loss, SAME_LOSS.get(dtype, SAME_LOSS_HALF), rounding)


def _same(value: float, other: float, tolerance: float = SAME_LOSS[torch.float64], rounding: float = 0.0) -> bool:
    return abs(value - other) <= tolerance * max(abs(value), abs(other)) + rounding + 1e-30


_CROSS_ENTROPY = Criterion(nn.CrossEntropyLoss(ignore_index=HF_IGNORE_INDEX))
