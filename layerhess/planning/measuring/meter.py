"""Measures what options do to the loss: forward passes with changed weights, paired with those of the float model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerhess.curvature.record_file import digest_of
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError
from layerhess.linalg.estimates import Floats
from layerhess.objective import batches
from layerhess.objective.interrupts import safe_point
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values, preserved_random_state
from layerhess.planning.measuring.judges import CriterionJudge, Judge
from layerhess.planning.measuring.readings import SAME_LOSS, SAME_LOSS_HALF, Reader, Reading
from layerhess.planning.weights.applied import changed
from layerhess.results.options import Option
from layerhess.results.plan import Score

LOSS, COUNT, KL, PREDICTIONS, OUTPUT, WHY = "loss", "count", "kl", "predictions", "output", "why"  # kinds of lists
Choice = Mapping[str, Option]  # weight name -> option; weights it does not name stay as they are
MOST_UNITS = 1 << 16  # numbers kept of one measurement; neighbouring examples are joined beyond


@dataclass(frozen=True)
class Measurement:
    """The loss of one choice over the data.

    Attributes:
        losses: (units,) float64 loss sums by example, or by group of neighbours. kl: KL(float || this) by example, or
            None. predictions: (units,) what kl is divided by. outputs: changes of the outputs of each batch of this
            process, where they were asked for. why: what went wrong; "" if nothing did.
    """

    losses: Floats
    kl: Floats | None = None
    predictions: Floats | None = None
    outputs: tuple[Tensor, ...] = ()
    why: str = ""


@dataclass
class FloatModel:
    """What the unchanged model does, batch by batch; whatever is measured is paired with it.

    Attributes:
        losses, counts: (units,) of all data. outputs, judges, rows, targets: of each batch of this process: the kept
            rows of the output, the loss as a function of them, which rows these are (None: all), and the judge of all,
            for its targets.
            None where the loss is no known function of one output, or where outputs do not fit. own_counts: of each of
            these batches. first: losses of the first of them. share: of all rows that is kept.
    """

    losses: Floats
    counts: Floats
    outputs: list[Tensor | None] = field(default_factory=list)
    judges: list[Judge | None] = field(default_factory=list)
    rows: list[Tensor | None] = field(default_factory=list)
    targets: list[Judge | None] = field(default_factory=list)
    own_counts: list[Tensor] = field(default_factory=list)
    first: Tensor = field(default_factory=lambda: torch.zeros(0))
    share: float = 1.0

    @property
    def batches(self) -> int:
        """Of this process."""
        return len(self.judges)

    @property
    def has_outputs(self) -> bool:
        """Whether outputs of every batch are kept that has a loss."""
        pairs = list(zip(self.judges, self.own_counts, strict=True))
        return any(judge for judge, _ in pairs) and not any(judge is None and count.any() for judge, count in pairs)

    def change(self, place: int, output: Tensor) -> Tensor:
        """What became of the kept rows of a batch's output, float32 (float64 of a float64 model), on the CPU."""
        before = self.outputs[place]
        assert before is not None
        moved = _rows(output, self.rows[place]) - before
        return (moved if moved.dtype == torch.float64 else moved.float()).detach().cpu()


@dataclass(frozen=True)
class Room:
    """What may be kept.

    Attributes:
        weights: bytes of changed weights. outputs: bytes of outputs. copies: how many times an output is kept, with all
            changes of it. batches: how many there are about. seed: of the sample of rows, where not all fit.
    """

    weights: float = 0.0
    outputs: float = math.inf
    copies: float = 1.0
    batches: int = 1
    seed: int = 0


class Meter:
    """Forward passes over an objective's data with changed weights (in session).

    Args:
        objective: in session for as long as the meter is used. room: what may be kept. told: called with the number of
            forward passes over the data made since the last call.

    Attributes:
        float_model: what everything is compared with. forwards: passes over the data so far, in numbers of them.
    """

    def __init__(
        self, objective: Objective, *, room: Room | None = None, told: Callable[[float], None] = lambda forwards: None
    ) -> None:
        self.objective = objective
        self.reader = Reader(objective.evaluation)
        self.forwards = 0.0
        self._told = told
        self._room = room or Room()
        self._left = self._room.weights
        self._kept: dict[tuple[str, Option], Tensor] = {}
        self._batches = 0
        self.float_model = self._float_model()

    @property
    def scale(self) -> float:
        """What loss sums over the data are divided by."""
        return 1.0 if self.objective.evaluation.is_sum else float(self.float_model.counts.sum())

    @property
    def loss(self) -> float:
        """The float model's mean loss."""
        return float(self.float_model.losses.sum()) / self.scale

    def _float_model(self, most: float = 1.0) -> FloatModel:
        """Read the unchanged model; ``most``: of the rows of outputs that is kept."""
        made = FloatModel(np.zeros(0), np.zeros(0), share=most)

        def share(batch: Any, totals: Totals) -> None:
            reading = self.reader.read(self.objective.model, batch)
            totals.append(LOSS, reading.losses)
            totals.append(COUNT, reading.counts)
            self._keep(made, reading, generator)

        generator = torch.Generator().manual_seed(self._room.seed)
        was = self.reader.coarse
        totals = add_up(self.objective.batches(), share, group=self.objective.group)
        self._batches = made.batches
        self.forwards += 1.0
        self._told(1.0)
        told = self.objective.group.gathered((self.reader.coarse, made.share, made.batches))
        if any(coarse for coarse, *_ in told) and not was:  # the output does not explain the loss: by batch then
            self.reader.coarse = True
            return self._float_model(most)
        shares = {share for _, share, own in told if own}
        if len(shares) > 1:  # one sample of all data has one share
            return self._float_model(min(shares))
        self.reader.settled = True
        made.losses, made.counts = _joined(totals.listed(LOSS)), _joined(totals.listed(COUNT))
        return made

    def _keep(self, made: FloatModel, reading: Reading, generator: torch.Generator) -> None:
        """Keep a batch's output, or a random sample of its rows where all would not fit."""
        output, judge = reading.output, reading.judge
        if not made.targets:
            made.first = reading.losses
        made.targets.append(judge if isinstance(judge, CriterionJudge) else None)  # others hold the whole batch
        made.own_counts.append(reading.counts)
        rows = None
        if output is not None:
            width = 8 if output.dtype == torch.float64 else 4
            if not made.outputs:
                needed = output.numel() * width * (self._room.copies + 1.0) * max(self._room.batches, 1)
                made.share = min(made.share, self._room.outputs / max(needed, 1.0))
            if made.share < 1.0:
                rows, judge = _sampled(judge, made.share, generator)
                output = None if rows is None else output
        made.rows.append(rows)
        made.outputs.append(None if output is None else _rows(output.detach(), rows).clone())
        made.judges.append(None if output is None else judge)

    def measure(self, choices: Sequence[Choice], *, outputs: bool = False) -> list[Measurement]:
        """The loss with each of these choices, all of a batch one after the other; the weights are put back.

        Args:
            outputs: keep the changes of the outputs, where those of the float model are kept.

        Returns:
            One for each choice. One whose loss is NaN or infinite says why.

        Raises:
            InputError: the data changed; weights that cannot be made. Exceptions of model, data and loss come through.
        """
        names = [name for name in self.objective.parameters if any(name in choice for choice in choices)]
        weights = {name: self.objective.parameters[name] for name in names}
        here = [weight.detach().clone() for weight in weights.values()]
        known = dict(zip(names, here, strict=True))
        place = -1

        def share(batch: Any, totals: Totals) -> None:
            nonlocal place
            place += 1
            with kept_values(weights.values(), here):
                for number, choice in enumerate(choices):
                    with torch.no_grad():
                        for name, weight in weights.items():
                            weight.copy_(
                                self._changed(known[name], name, choice[name]) if name in choice else known[name]
                            )
                    self._read(number, place, batch, totals, outputs)
                    self._told(1.0 / self._batches)

        totals = add_up(
            self.objective.batches(),
            share,
            group=self.objective.group,
            asked=digest_of([[sorted((name, str(option)) for name, option in choice.items()) for choice in choices]]),
        )
        self.forwards += len(choices)  # the same on all ranks, however many batches they have
        if place + 1 != self._batches:
            raise self._changed_data(f"it has {place + 1} batches where it had {self._batches}")
        return [self._measurement(number, totals) for number in range(len(choices))]

    def _measurement(self, number: int, totals: Totals) -> Measurement:
        losses = _joined(totals.listed((LOSS, number)))
        why = next(iter(totals.listed((WHY, number))), "")
        kl = totals.listed((KL, number))
        return Measurement(
            losses,
            _joined(kl) if kl else None,
            _joined(totals.listed((PREDICTIONS, number))) if kl else None,
            tuple(totals.listed((OUTPUT, number))),
            why,
        )

    def _read(
        self,
        number: int,
        place: int,
        batch: Any,
        totals: Totals,
        outputs: bool,
    ) -> None:
        safe_point()
        reading = self.reader.read(self.objective.model, batch)
        self._refuse_other(place, reading)
        if not bool(torch.isfinite(reading.losses).all()):
            totals.append((WHY, number), "the loss is NaN or infinite")
        totals.append((LOSS, number), reading.losses)
        before, judge = self.float_model.outputs[place], self.float_model.judges[place]
        if before is None or judge is None or reading.output is None:
            return
        apart = judge.divergence(before, _rows(reading.output, self.float_model.rows[place]))
        if apart is not None:
            totals.append((KL, number), apart[0])
            totals.append((PREDICTIONS, number), apart[1])
        if outputs:
            totals.append((OUTPUT, number), self.float_model.change(place, reading.output))

    def _refuse_other(self, place: int, reading: Reading) -> None:
        if place >= self._batches:
            raise self._changed_data(f"it has more than {self._batches} batches now")
        judge, counts = self.float_model.targets[place], self.float_model.own_counts[place]
        if not torch.equal(reading.counts, counts) or (
            judge is not None and reading.judge is not None and not reading.judge.same_as(judge)
        ):
            raise self._changed_data(f"the targets of batch {place} are others")

    def _changed_data(self, how: str) -> InputError:
        return InputError(
            f"the data changed between two passes: {how}",
            where="data",
            what_to_do="pass a list of batches, or a DataLoader with shuffle=False and no random augmentation",
        )

    def _changed(self, weight: Tensor, name: str, option: Option) -> Tensor:
        """The changed weight, kept while there is room."""
        known = self._kept.get((name, option))
        if known is None:
            known = changed(option, weight, name)
            size = known.numel() * known.element_size()
            if size <= self._left:
                self._left -= size
                self._kept[name, option] = known
        return known

    # -- numbers ------------------------------------------------------------------------------------------------------

    def increase(self, measured: Measurement, other: Measurement | None = None) -> Score:
        """How much larger the mean loss is than the float model's, or than another measurement's (paired)."""
        if measured.why or (other is not None and other.why):
            return Score(math.inf if measured.why and not (other and other.why) else math.nan)
        before = self.float_model.losses if other is None else other.losses
        apart = measured.losses - before
        return ratio(apart, None if self.objective.evaluation.is_sum else self.float_model.counts)

    def divergence(self, measured: Measurement) -> Score:
        """Mean KL of the predictions from the float model's."""
        if measured.kl is None or measured.predictions is None:
            return Score(math.nan)
        return Score(math.inf) if measured.why else ratio(measured.kl, measured.predictions)

    def refuse_random(self) -> None:
        """Refuse a loss that is not the same when it is computed again; two more passes over the first batch.

        Raises:
            CheckError: it is another. InputError: the batch is another one every time (random augmentation).
        """
        first = next(iter(self.objective.batches()), None)
        if first is None:
            return
        again = self.reader.read(self.objective.model, first).losses
        own = self.reader.read(self.objective.model, first).losses
        alike = SAME_LOSS.get(self.objective.dtype, SAME_LOSS_HALF)
        if not _are_same(again, own, alike):
            modules = ", ".join(self.objective.random_modules[:4])
            raise CheckError(
                "the loss of a batch is another when it is computed again",
                where=f"active randomness in {modules}" if modules else "the loss or the model",
                what_to_do="use mode='eval' to switch dropout off, and a loss without randomness",
            )
        if not _are_same(own, self.float_model.first, alike):
            raise self._changed_data("the inputs of batch 0 are others")


def _are_same(losses: Tensor, others: Tensor, tolerance: float) -> bool:
    """Whether losses of examples are the same, but for what a device rounds differently every time."""
    if losses.shape != others.shape:
        return False
    apart = torch.nan_to_num(losses - others, posinf=0.0, neginf=0.0).abs().sum()
    return bool(
        apart <= tolerance * torch.nan_to_num(others).abs().sum() + torch.finfo(torch.float32).eps * len(others)
    )


def ratio(sums: Floats, counts: Floats | None) -> Score:
    """sum(sums) / sum(counts), or sum(sums), with its standard error over units (Cochran 1977, section 6.4)."""
    units = len(sums)
    if counts is None:
        value = float(sums.sum())
        rest = sums - value / max(units, 1)
        scale = 1.0
    else:
        scale = float(counts.sum())
        if scale == 0.0:
            return Score(math.nan)
        value = float(sums.sum()) / scale
        rest = sums - value * counts
    if units < 2:
        return Score(value)
    return Score(value, math.sqrt(units / (units - 1) * float((rest * rest).sum())) / scale)


def _joined(parts: Sequence[Tensor]) -> Floats:
    """One array of all parts; neighbours are added up where there are very many."""
    whole: Floats = torch.cat([torch.zeros(0, dtype=torch.float64), *parts]).numpy()
    if len(whole) <= MOST_UNITS:
        return whole
    return np.add.reduceat(whole, np.arange(0, len(whole), math.ceil(len(whole) / MOST_UNITS)))


def fixed(objective: Objective) -> tuple[Objective, str]:
    """The objective with its batches in one order, and a sentence where they were drawn anew for every pass."""
    if not batches.is_shuffling(objective.data):
        return objective, ""
    with preserved_random_state():
        listed = list(batches.iterate(objective.data, arrays=True))
    note = "the loader shuffles: its batches of one pass are held in memory, and used for every measurement"
    return objective.varied(data=listed), note


def _sampled(judge: Judge | None, share: float, generator: torch.Generator) -> tuple[Tensor | None, Judge | None]:
    """Some of the rows that have a loss, and the judge of them; None where rows cannot be taken."""
    if not isinstance(judge, CriterionJudge) or not judge.aligned:
        return None, None
    places = judge.taking_part()
    most = min(len(places), math.floor(share * len(places) + torch.rand((), generator=generator).item()))
    index = places[torch.randperm(len(places), generator=generator)[:most].sort().values]
    return index, judge.taken(index)


def _rows(output: Tensor, index: Tensor | None) -> Tensor:
    return output if index is None else output[index.to(output.device)]
