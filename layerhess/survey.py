"""The first pass: how much data there is, and whether every batch of it can be used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from layerhess import batches
from layerhess.errors import InputError
from layerhess.ledger import Ledger
from layerhess.objective import Objective
from layerhess.trace import non_finite_weight, trace

SAMPLE = 32  # examples that the self-checks and the rounding measurement look at


@dataclass(frozen=True)
class Survey:
    """Totals over the data, and a small sample of it.

    Attributes:
        loss_sum, count: their ratio is the loss (the sum itself for reduction="sum").
        examples: sum of the first dimensions, 0 where unknown. batches: pieces evaluated.
        samples: prepared pieces of batches, together about 32 examples: spread over the first batch that counts, and
            over those after it while it is smaller. sample_size: their examples, 0 where unknown.
    """

    loss_sum: float
    count: float
    examples: int
    batches: int
    samples: list[Any]
    sample_size: int

    @property
    def sample(self) -> Any:
        """The first piece, for checks that need one batch only."""
        return self.samples[0]


def survey(objective: Objective, ledger: Ledger) -> Survey:
    """One forward pass over the data (in session).

    Raises:
        InputError: empty data; a batch that cannot be used; a loss that is NaN or infinite (naming the batch and the
            first module with a non-finite output or weight); every target ignored; a callable that is no mean.
    """
    loss_sum = total = 0.0
    examples: int | None = 0
    number = 0
    samples: list[Any] = []
    missing = SAMPLE
    several = not batches.is_single(objective.data) or objective.batch_size is not None
    for number, batch in enumerate(objective.batches(), 1):
        where = f"batch {number - 1}"
        try:
            with torch.no_grad():
                value, count = objective.evaluation.surveyed(objective.model, batch, where)
        except InputError as error:
            if error.where == where:
                raise
            raise InputError(error.message, where=f"{where}, {error.where}", what_to_do=error.what_to_do) from None
        ledger.count("forwards")
        if not math.isfinite(float(value)):
            raise _not_finite(objective, batch, number - 1, float(value))
        loss_sum += float(value.double())
        total += count
        size = batches.leading_size(batch)
        examples = None if size is None or examples is None else examples + size
        if missing > 0 and count > 0.0:
            samples.append(_sample(objective, batch, missing))
            missing -= batches.leading_size(samples[-1]) or SAMPLE
        if several and not objective.evaluation.count_is_exact:
            refuse_unless_mean(objective, batch, float(value), count, where)
    if number == 0:
        raise InputError("the data is empty", where="data", what_to_do="give at least one batch")
    if total == 0.0 and not objective.evaluation.is_sum:
        what = "every target is ignored" if examples != 0 else "the batches hold no examples"
        raise InputError(
            f"{what}: the total count of the loss is 0",
            where="data",
            what_to_do="check ignore_index (or the class weights) against the targets",
        )
    if not samples:  # reduction="sum" over batches that count nothing
        samples.append(next(iter(objective.batches())))
    sizes = [batches.leading_size(piece) or 0 for piece in samples]
    return Survey(loss_sum, total, examples or 0, number, samples, sum(sizes) if all(sizes) else 0)


def refuse_unless_mean(objective: Objective, batch: Any, value: float, count: float, where: str) -> None:
    """A batch against its two parts: a mean over the counted items satisfies sum = sum + sum.

    Raises:
        InputError: pointing to ``batch_loss``.
    """
    parts = halves(batch)
    if parts is None:
        return
    total = summed = 0.0
    with torch.no_grad():
        for part in parts:
            part_value, part_count = objective.evaluation(objective.model, part)
            summed += float(part_value)
            total += part_count
    if not _close(summed, value, objective.dtype) or abs(total - count) > 1e-6 * max(total, count):
        raise InputError(
            f"{objective.evaluation.name} is not the mean over its first dimension: a batch's loss times its count is "
            f"{value:.6g}, its two parts give {summed:.6g}",
            where=where,
            what_to_do="use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count), which says how batches add up",
        )


def halves(batch: Any) -> tuple[Any, Any] | None:
    """The batch in two unequal parts, or None if it cannot be split."""
    size = batches.leading_size(batch)
    if size is None or size < 2:
        return None
    cut = max(1, size // 3)
    return batches.take(batch, slice(0, cut)), batches.take(batch, slice(cut, size))


def additive_tolerance(dtype: torch.dtype) -> float:
    """Relative difference that summation order may cause; wide, since the model's own casts are unknown."""
    return max(1e-4, 30.0 * torch.finfo(dtype).eps)


def _close(a: float, b: float, dtype: torch.dtype) -> bool:
    return abs(a - b) <= additive_tolerance(dtype) * max(abs(a), abs(b), 1e-30)


def _sample(objective: Objective, batch: Any, size: int) -> Any:
    """A spread of a few examples, or the whole batch where such a slice cannot be evaluated or counts nothing."""
    small = batches.spread_slice(batch, size)
    if small is batch:
        return batch
    try:
        with torch.no_grad():
            value, count = objective.terms(small)
    except Exception:  # a model tied to its batch size, or dimension 0 is not the examples after all
        return batch
    return small if count > 0.0 and math.isfinite(float(value)) else batch


def _not_finite(objective: Objective, batch: Any, index: int, value: float) -> InputError:
    weight = non_finite_weight(objective)
    module = "" if weight else trace(objective, batch).non_finite
    if weight:
        culprit = f", the weight {weight!r} holds a NaN or an infinity"
    elif any(not bool(torch.isfinite(t).all()) for t in batches.tensors(batch) if t.is_floating_point()):
        culprit = ", the batch itself holds a NaN or an infinity"
    else:
        culprit = f", first seen in the output of module {module!r}" if module else ", first seen in the loss"
    return InputError(
        f"the loss is {value}",
        where=f"batch {index}{culprit}",
        what_to_do="repair that weight or batch; a model that diverged has no curvature to measure",
    )
