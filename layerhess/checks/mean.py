"""Checks, batch by batch, that a callable or a model's own loss is the mean that its count says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.randomness import randomness_refused, repeats
from layerhess.curvature.device import is_out_of_memory
from layerhess.errors import InputError
from layerhess.objective import batches
from layerhess.objective.criteria import Criterion, Pair
from layerhess.objective.evaluation import Seen
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved

MOST_NUMBERS = 1 << 22  # of an output that is moved; of a larger one, some examples stand for all
FEW = 2  # examples of a batch that are joined with those of another
IN_FLOAT64 = 1e-5  # relative difference of two sums; the callable may still cast to float32 inside
BATCH_LOSS = "use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count), which says how batches add up"


@dataclass(frozen=True)
class _Unit:
    """What is cut: the output and the target of a batch, or the batch itself.

    Attributes:
        content: (output, target), or the batch. judge: its loss as a pair. batch: prepared. where: its name.
            whole_model: has to run for its parts.
    """

    content: Any
    judge: Callable[[Any], Pair]
    batch: Any
    where: str
    whole_model: bool


class MeanCheck:
    """Holds batches against their parts: for a mean over the counted items, their sums add up.

    At one point that can hold by accident: behind a head of zeros all examples have the same loss, and a penalty on a
    batch may be zero. So it must hold at moved outputs as well, or at moved weights where only the whole model gives
    the loss. And a few examples of each batch are joined with those of another: within a batch of one class, class
    weights cancel, and a batch of a single example has no parts.

    Args:
        objective: in session, and gradients off.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._criterion: Criterion | None = getattr(objective.evaluation, "criterion", None)
        self._first: tuple[Any, Seen] | None = None
        self._partners: dict[bool, Any] = {}  # a few examples of the first batch that can be split, by whole_model
        self._number = 0
        self._held = False

    def offer(self, batch: Any, seen: Seen) -> None:
        """Check the next batch. A single batch may be summed up in any way, so the first one waits for the second.

        Raises:
            InputError: it is no mean; or the loss is random, and the modules are named.
        """
        if self._objective.evaluation.count_is_exact:
            return
        if not self._number:
            self._first = batch, seen
        elif self._first is not None:
            self._look(*self._first, 0)
            self._first = None
        if self._number:
            self._look(batch, seen, self._number)
        self._number += 1

    def close(self, number: int) -> None:
        """After the last batch of ``number``, on all ranks together.

        Raises:
            InputError: there was more than one batch, and none could be held against its parts; see :meth:`offer`.
        """
        group = self._objective.group
        if number < 2 or self._objective.evaluation.count_is_exact:
            return
        group.tried(self._look_at_waiting)
        if not any(group.gathered(self._held)) and not self._objective.tied_norms:
            raise InputError(
                f"more than one batch needs {self._objective.evaluation.name} to be the mean over the first dimension, "
                "and no batch can be cut in two to see whether it is",
                where="loss",
                what_to_do=BATCH_LOSS,
            )

    def _look_at_waiting(self) -> None:
        """At a batch that is the only one of its rank."""
        if self._first is not None:
            with torch.no_grad():
                self._look(*self._first, 0)

    def _look(self, batch: Any, seen: Seen, number: int) -> None:
        if seen.count <= 0.0:
            return
        for unit in self._units(batch, seen, f"batch {self._objective.group.place(number)}"):
            if self._held_against(unit):
                return

    def _units(self, batch: Any, seen: Seen, where: str) -> Iterator[_Unit]:
        """What may be cut: output and target, or else the batch, of which the model has to run on the parts."""
        criterion = self._criterion
        if criterion is not None:
            yield _Unit((seen.output, seen.target), functools.partial(_of_pair, criterion), batch, where, False)
        if not self._objective.tied_norms:  # under those, a part of a batch has other outputs
            judge = functools.partial(self._objective.evaluation, self._objective.model)
            yield _Unit(batch, judge, batch, where, True)

    def _held_against(self, unit: _Unit) -> bool:
        """Hold a unit against its parts, and a few of its examples against those of another; False if neither goes."""
        if not batches.leading_size(unit.content):
            return False
        parts = batches.halves(unit.content)
        held = bool(parts) and self._compare(unit, unit.content, parts or ())
        few = replace(unit, content=batches.spread_slice(unit.content, FEW))
        partner = self._partners.setdefault(unit.whole_model, few.content)
        joined = partner is not few.content and not (unit.whole_model and _told_apart(partner, few.content))
        if joined and (together := batches.joined([partner, few.content])) is not None:
            held |= self._compare(few, together, (partner, few.content))
        self._held |= held
        return held

    def _compare(self, unit: _Unit, whole: Any, parts: Sequence[Any]) -> bool:
        """False where the parts cannot be evaluated."""
        dtype, point = self._objective.dtype, ""
        try:
            apart = _differing(compared(unit.judge, unit.judge(whole), [parts], dtype))
        except Exception as error:  # user code that takes no parts can raise anything
            if is_out_of_memory(error):
                raise
            return False
        if apart is not None:
            again = float(unit.judge(whole)[0])
            if not repeats(apart.whole, again, dtype):
                raise randomness_refused(self._objective, unit.batch, apart.whole, again)
        elif unit.whole_model:
            point = ", with the weights moved a little,"
            with moved(self._objective.parameters.values()):
                apart = _apart_if_any(unit.judge, whole, dtype)
        elif self._criterion is not None:
            point = ", with the outputs moved a little,"
            apart = _apart_at_moved_outputs(self._criterion, *whole)
        if apart is not None:
            kind, one, other = apart.told
            raise InputError(
                f"{self._objective.evaluation.name} is not the mean over its first dimension: a batch's "
                f"{'loss times its count' if kind == 'loss' else 'count'} is{point} {one:.6g}, its two parts give "
                f"{other:.6g}",
                where=unit.where,
                what_to_do=BATCH_LOSS,
            )
        return True


def _told_apart(one: Any, other: Any) -> bool:
    """Whether an input is the same for all examples of either part, but not of both: a model may take it for a flag."""
    rows = zip(batches.shared_rows(one), batches.shared_rows(other), strict=False)
    return any(a is not None and b is not None and a.shape == b.shape and bool((a != b).any()) for a, b in rows)


def adds_up(
    whole: float, parts: Sequence[float], count: float, counts: Sequence[float], dtype: torch.dtype,
    least: float = 1e-4,
) -> bool:  # fmt: skip
    """True if sums and counts of the parts add up to those of the whole, but for the order of summation.

    The tolerance is relative to the parts, which may cancel.
    """
    size = max(abs(whole), sum(abs(part) for part in parts))
    same = abs(whole - sum(parts)) <= tolerance(dtype, least) * size
    return same and abs(count - sum(counts)) <= 1e-6 * max(count, *counts)


def tolerance(dtype: torch.dtype, least: float = 1e-4) -> float:
    """What the order of summation may change of a sum, relative; wide, since the model's own casts are unknown."""
    return max(least, 30.0 * torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Comparison:
    """The loss sum of a batch, and that of its parts.

    Attributes:
        adds_up: they are the same but for the order of summation, and so are the counts.
        counts: of the batch, and of its parts together.
    """

    whole: float
    parts: float
    adds_up: bool
    counts: tuple[float, float] = (0.0, 0.0)

    @property
    def finite(self) -> bool:
        """Neither is NaN or infinite."""
        return math.isfinite(self.whole) and math.isfinite(self.parts)

    @property
    def told(self) -> tuple[str, float, float]:
        """What differs, of the batch and of its parts: "loss", or "count" where only that does."""
        count, counted = self.counts
        if self.off <= 1e-5 and abs(count - counted) > 1e-6 * max(count, counted):
            return "count", count, counted
        return "loss", self.whole, self.parts

    @property
    def off(self) -> float:
        """Relative difference."""
        return abs(self.whole - self.parts) / max(abs(self.whole), abs(self.parts), 1e-300)


def cuts(content: Any) -> list[tuple[Any, ...]]:
    """A batch in two parts, twice: halves show what the order of the examples hides, mixed parts what only it shows.

    Empty if it cannot be split.
    """
    halves = batches.halves(content)
    return [] if halves is None else [halves, batches.mixed(content)]


def compared(
    judge: Callable[[Any], Pair], whole: Pair, cut: Iterable[Sequence[Any]], dtype: torch.dtype, least: float = 1e-4
) -> Comparison:
    """Hold a batch's pair against those of its parts, by every way to cut it until one does not add up.

    Returns:
        That one, or else the one that is furthest off.
    """
    value, count = float(whole[0]), whole[1]
    furthest = Comparison(value, value, True)
    for parts in cut:
        pairs = [(float(v), n) for v, n in map(judge, parts)]
        same = adds_up(value, [v for v, _ in pairs], count, [n for _, n in pairs], dtype, least)
        found = Comparison(value, sum(v for v, _ in pairs), same, (count, sum(n for _, n in pairs)))
        if not same:
            return found
        furthest = max(furthest, found, key=lambda one: one.off)
    return furthest


def _differing(found: Comparison) -> Comparison | None:
    """The comparison where they differ; None where they add up, or the whole is not finite."""
    return None if found.adds_up or not math.isfinite(found.whole) else found


def _apart_if_any(judge: Callable[[Any], Pair], whole: Any, dtype: torch.dtype) -> Comparison | None:
    """The same for two parts with examples from all over the batch, where they can be evaluated."""
    try:
        return _differing(compared(judge, judge(whole), [batches.mixed(whole)], dtype))
    except Exception:  # user code at other weights than its own can raise anything
        return None


def _apart_at_moved_outputs(criterion: Criterion, output: Any, target: Any) -> Comparison | None:
    """The same at outputs that differ from example to example; None also where the criterion takes none of them."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    each = max(1, output.numel() // len(output))
    pair = batches.spread_slice((output.detach(), target), max(2, MOST_NUMBERS // each))
    for precise in (torch.float64, output.dtype):  # on copies of a criterion that is a module: it may keep a state
        output, target = batches.cast(pair, precise) if precise == torch.float64 else pair
        for other in _moved(output):
            try:
                judged = criterion.to(
                    None if precise == pair[0].dtype else precise, output.device
                )  # a copy: it may count
                whole = judged(other, target)
                dtype = whole[0].dtype
                if not math.isfinite(float(whole[0])):
                    continue
                least = IN_FLOAT64 if dtype == torch.float64 else 1e-4
                judge = functools.partial(_of_pair, judged)
                return _differing(compared(judge, whole, cuts((other, target)), dtype, least))
            except Exception:  # user code: it takes no float64, or no such outputs
                continue
    return None


def _of_pair(criterion: Criterion, pair: Any) -> Pair:
    return criterion(*pair)


def _moved(output: Tensor) -> Iterator[Tensor]:
    """Other outputs of about the same size, within the range of the given ones where those are of one sign.

    Outside its range a criterion may raise, and on a GPU that ends the process's use of it. Nothing is drawn, and the
    changes have one sign: they do not cancel in a sum.
    """
    shape = (len(output), -1)
    rows, columns = (
        0.5 + 0.5 * torch.sin(step * torch.arange(size, dtype=output.dtype, device=output.device) + 1.0).view(view)
        for step, size, view in ((2.4, len(output), (-1, 1)), (1.7, output.reshape(shape).shape[1], (1, -1)))
    )
    share = (rows * columns).view(output.shape)
    smaller = output * (1.0 - 0.5 * share)
    if bool((output >= 0.0).all() or (output <= 0.0).all()) and bool((output != 0.0).any()):
        yield smaller
        return
    yield output + share * max(1.0, float(output.square().mean().sqrt()))
    yield smaller
