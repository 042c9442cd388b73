"""The first pass over the data: how much there is, and whether every batch can be used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from layerhess.checks.forward_trace import non_finite_weight, trace
from layerhess.checks.mean import MeanCheck
from layerhess.checks.sample import Sample, Sampler, WholeData, by_example, counting_parts
from layerhess.checks.saturation import LOG, Saturation, saturated
from layerhess.checks.suspects import LOGITS
from layerhess.curvature.counters import Counters
from layerhess.curvature.data_pass import FULL, DataPass, Request
from layerhess.curvature.device import beside, is_out_of_memory
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.factors.output_hessian import item_curvature
from layerhess.curvature.smaller_pieces import in_pieces, largest_batch
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError, add_note
from layerhess.linalg.described import Described, Description
from layerhess.linalg.numbers import counted, number
from layerhess.objective import batches
from layerhess.objective.blocks import make_block
from layerhess.objective.containers import all_finite, tensors
from layerhess.objective.evaluation import Seen, differentiates
from layerhess.objective.interrupts import safe_point
from layerhess.objective.loaders import left_out
from layerhess.objective.losses import batch_loss
from layerhess.objective.model_call import described, refused
from layerhess.objective.objective import Objective
from layerhess.objective.shares import OwnData, same_notes
from layerhess.objective.workers import refuse_repeated_examples

LOSS, COUNT, SIZE, CURVED = "loss", "count", "size", "curved"  # kinds of sums
CURVATURE, EXAMPLES, ITEMS, SATURATION = "curvature", "examples", "items", "saturation"


@dataclass(frozen=True, repr=False)
class Survey(Described):
    """Totals over the data, and a small sample of it.

    Attributes:
        loss_sum, count: their ratio is the loss (the sum itself for reduction="sum").
        examples: sum of the first dimensions, 0 where unknown. batches: how many were evaluated.
        samples: prepared parts of up to three batches, see :class:`layerhess.checks.sample.Sampler`. sample_size: their
            examples together, 0 if unknown. longest: the most terms summed up in one batch.
        places: which batches the samples are parts of. largest: the examples of the largest batch, 0 if unknown.
        measured: what rounding is measured on. curved: how many directions of all outputs the loss curves at most,
            where it is known to be convex in them; else None. note: what is to be said of the loss, or "".
        several: two examples of one batch, where samples were cut into single ones. pieces: examples at a time, where
        memory ran out; else None.
    """

    loss_sum: float
    count: float
    examples: int
    batches: int
    samples: list[Any]
    sample_size: int
    longest: float
    places: list[str]
    largest: int
    measured: Sample
    curved: int | None = None
    note: str = ""
    several: Any = None
    pieces: int | None = None

    def _describe(self) -> Description:
        loss = self.loss_sum / self.count if self.count else float("nan")
        data = f"{counted(self.batches, 'batch', 'batches')}, {counted(self.examples, 'example')}"
        return Description(
            f"Survey of the data: loss {number(loss, 6)} over {data}",
            (f"{counted(self.sample_size, 'example')} set aside for checks, from {', '.join(self.places)}", self.note),
        )

    def cut(self, objective: Objective, size: int | None, data: bool = False) -> Survey:
        """With samples of at most so many examples, of which sums are the same (in session); ``data`` is cut too."""
        whole = [batches.leading_size(piece) or 0 for piece in (*self.samples, *self.measured.pieces)]
        if data and size is not None:
            self = replace(self, largest=min(self.largest, size))
        if size is None or max(whole) <= size:
            return self
        made = [(place, part) for place, one in zip(self.places, self.samples, strict=True)
                for part in counting_parts(objective, one, size)]  # fmt: skip
        return replace(
            self, samples=[part for _, part in made], places=[place for place, _ in made],
            measured=self.measured.cut(objective, size),
            several=batches.spread_slice(max(self.samples, key=lambda one: batches.leading_size(one) or 0), 2),
        )  # fmt: skip

    @property
    def sample(self) -> Any:
        """The first sample, for checks that need one batch only."""
        return self.samples[0]


def survey(
    objective: Objective,
    counters: Counters,
    checkpoint: Callable[[], None] = safe_point,
    witness: Callable[[], Callable[[Any], None]] = lambda: lambda batch: None,
) -> Survey:
    """One forward pass over the data (in session). Where memory runs out, another one, in smaller pieces of batches.

    Args:
        checkpoint: called between batches; raises to stop (on an interrupt). witness: makes what is shown every batch.

    Raises:
        CheckError: torch's BCELoss behind saturated outputs.
        InputError: empty data; a batch that cannot be used; a loss that is NaN or infinite (naming the batch and the
            first module with a non-finite output or weight); every target ignored; a callable that does not return a
            mean; out of memory with batches that must not be cut, or with single examples.
    """
    found, cut = in_pieces(
        objective,
        lambda cut: _survey(cut, counters, checkpoint, witness()),
        lambda: largest_batch(objective),
        lambda: too_large(objective),
    )
    return found if cut is objective else replace(found, pieces=cut.batch_size)


def too_large(objective: Objective) -> InputError:
    """The error for a forward pass that ran out of memory; the batch size it names is one that fits products."""
    full = make_block(FULL, objective.parameters)
    place = beside(full, objective.parameters)
    probe = Request(full, torch.ones((1, full.numel), dtype=torch.float64, device=place))
    try:
        DataPass(objective, list(objective.parameters), Counters(), keep=0.0).run({FULL: probe})
    except InputError as refusal:
        return refusal
    return InputError(
        "out of memory, although a second attempt had enough",
        where=str(objective.device),
        what_to_do="free memory that other programs hold, or use a smaller batch_size",
    )


def _survey(
    objective: Objective, counters: Counters, checkpoint: Callable[[], None], witness: Callable[[Any], None]
) -> Survey:
    group = objective.group
    sampler, given = Sampler(objective), OwnData(group)
    whole = WholeData(sum(p.numel() for p in objective.parameters.values()))
    mean = MeanCheck(objective)

    def share(numbered: tuple[int, Any], totals: Totals) -> None:
        number, batch = numbered
        where = f"batch {group.place(number)}"
        witness(batch)
        known = None
        while known != (known := differentiates(objective.evaluation)):  # the first evaluation may tell
            with (saturation := Saturation()).watching():
                seen = _surveyed(objective, batch, where)
            counters.count("forwards")
        for kind, figure in vars(saturation).items():
            totals.add((SATURATION, kind), figure)
        value, count = float(seen.loss.double()), seen.count
        given.offer(batch)
        if not math.isfinite(value):
            raise _not_finite(objective, batch, where, value)
        curvature = None if seen.again is None else item_curvature(seen.output, seen.again)
        totals.add(LOSS, value)
        totals.add(COUNT, count)
        if seen.curved is None and count > 0.0:
            totals.drop(CURVED, "not known to be convex")
        totals.add(CURVED, seen.curved or 0)
        totals.append(COUNT, count)
        totals.append(SIZE, batches.leading_size(batch))
        own = by_example(batch, curvature)
        if own is not None and curvature is not None and count > 0.0:
            totals.add(CURVATURE, float(own.sum()))
            totals.add(EXAMPLES, len(own))
            totals.add(ITEMS, len(curvature))
        sampler.offer(group.place(number), batch, value, count, own)
        whole.offer(batch, seen)
        with torch.no_grad():
            mean.offer(batch, seen)

    def numbered() -> Iterator[tuple[int, Any]]:
        refuse_repeated_examples(objective.data)
        yield from enumerate(objective.batches())

    totals = add_up(numbered(), share, group=group, checkpoint=checkpoint)
    total, sizes = totals.total(COUNT), totals.listed(SIZE)
    given.refuse_same()
    mean.close(len(sizes))
    dropped = left_out(objective.data, 0 if None in sizes else sum(sizes), group.size)
    objective.notes += [dropped] if dropped and dropped not in objective.notes else []
    for sentence in same_notes(objective.notes, group):
        objective.notes.append(sentence)
    saturation = Saturation(**totals.totals(SATURATION))
    if not sizes:
        raise InputError("the data is empty", where="data", what_to_do="give at least one batch")
    examples = 0 if None in sizes else sum(sizes)
    if total == 0.0 and not objective.evaluation.is_sum:
        what, advice = "every target is ignored", "check ignore_index (or the class weights) against the targets"
        if examples == 0 and None not in sizes:
            what, advice = "the batches hold no examples", "give at least one example"
        raise InputError(f"{what}: the total count of the loss is 0", where="data", what_to_do=advice)
    saturation.refuse()
    sampler.meet(group)
    chosen = sampler.chosen(examples)
    places, samples = [index for index, _ in chosen], [piece for _, piece in chosen]
    lengths = [batches.leading_size(piece) or 0 for piece in samples]
    by_examples, by_items = (totals.total(CURVATURE) / max(totals.total(kind), 1) for kind in (EXAMPLES, ITEMS))
    return Survey(
        loss_sum=totals.total(LOSS),
        count=total,
        examples=examples,
        batches=len(sizes),
        samples=samples,
        sample_size=sum(lengths) if all(lengths) else 0,
        longest=max(1.0, *totals.listed(COUNT), *(size or 1 for size in sizes)),
        places=places,
        largest=max(size or 0 for size in sizes),
        measured=whole.sample(objective) or sampler.measured(samples, examples, by_examples, by_items),
        curved=None if CURVED in totals.dropped else int(totals.total(CURVED)),
        note=saturation.note(totals.total(LOSS) / (1.0 if objective.evaluation.is_sum else total)),
    )


def _surveyed(objective: Objective, batch: Any, where: str) -> Seen:
    """The loss sum and count, with refusals that name the batch; other exceptions get a note that says what it is."""
    # In the form that products have: of derivatives that almost match their targets another one rounds otherwise.
    form = Rewritten() if differentiates(objective.evaluation) else nullcontext()
    try:
        with torch.no_grad(), form:
            return objective.evaluation.surveyed(objective.model, batch, where)
    except InputError as error:
        if error.where == where:
            raise
        raise InputError(error.message, where=f"{where}, {error.where}", what_to_do=error.what_to_do) from None
    except Exception as error:  # user code can raise anything
        if is_out_of_memory(error) or isinstance(error, CheckError):
            raise
        if (refusal := _refused(objective, batch, where, error)) is None:
            add_note(error, described(objective.model, batch, where))
            raise
        raise refusal from error


def _refused(objective: Objective, batch: Any, where: str, error: Exception) -> InputError | None:
    """The refusal that an exception of the first forward pass stands for, if any."""
    # torch's cross entropy, inside a model or a callable of the user
    if isinstance(error, IndexError) and (found := re.fullmatch(r"Target (-?\d+) is out of bounds\.?", str(error))):
        return InputError(
            f"class index {found[1]} is out of range",
            where=where,
            what_to_do="use targets from 0 to one less than the number of classes, or ignore_index (-100) to leave out",
        )
    return refused(objective.model, batch, where, error, own_call=isinstance(objective.evaluation, batch_loss))


def _not_finite(objective: Objective, batch: Any, where: str, value: float) -> InputError:
    weight = non_finite_weight(objective)
    module = "" if weight else trace(objective, batch).non_finite
    advice = "repair that weight or batch; a model that diverged has no curvature to measure"
    if weight:
        culprit = f", the weight {weight!r} holds a NaN or an infinity"
    elif not all(map(all_finite, tensors(batch))):
        culprit = ", the batch itself holds a NaN or an infinity"
    elif module:
        culprit = f", first seen in the output of module {module!r}"
    elif saturated(objective, [batch]) == LOG:
        culprit, advice = f", first seen in the loss, which takes {LOG}", LOGITS
    else:
        culprit = ", first seen in the loss"
    return InputError(
        f"the loss is {value}",
        where=f"{where}{culprit}",
        what_to_do=advice,
    )
