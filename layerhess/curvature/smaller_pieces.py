"""What to do where memory runs out: process fewer examples at a time, or say how few would fit."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, TypeVar

from layerhess.curvature.device import is_out_of_memory
from layerhess.curvature.totals import Totals, add_up
from layerhess.errors import CheckError, InputError, ProcessError, first_line
from layerhess.objective.batches import leading_size, take
from layerhess.objective.objective import Objective

Made = TypeVar("Made")


class TooLarge(InputError):
    """A batch does not fit, and was not to be cut where that was seen; who called may know how."""


def in_pieces(
    objective: Objective,
    attempt: Callable[[Objective], Made],
    largest: Callable[[], int],
    refusal: Callable[[], InputError],
) -> tuple[Made, Objective]:
    """What an attempt gives; where memory runs out, that of the next one, in pieces of half as many examples.

    Args:
        attempt: is given the objective. largest: the examples of the largest batch, 0 where batches must not be cut.
            refusal: the error where pieces cannot be smaller. Both are asked only where memory ran out.

    Returns:
        What was made, and the objective in pieces that fitted.

    Raises:
        InputError: that refusal; or parts of batches cannot be used, so that they must not be cut.
        Exception: others of the attempt.
    """
    given, most = objective, -1
    while True:
        try:
            return objective.group.tried(functools.partial(_attempted, attempt, objective)), objective
        except Exception as error:  # user code that needs whole batches can raise anything
            ours = isinstance(error, (CheckError, ProcessError))
            if ours or not is_out_of_memory(error):
                if ours or objective is given:
                    raise
                raise _unusable(objective, error) from error
        gc.collect()  # errors of other ranks, and what they hold on to
        most = largest() if most < 0 else most
        if (smaller := halved(objective, most)) is None:
            break
        objective = smaller
    raise refusal()  # not in the handler: the error holds on to what was allocated


def _attempted(attempt: Callable[[Objective], Made], objective: Objective) -> Made:
    try:
        return attempt(objective)
    except TooLarge as error:
        raise MemoryError(str(error)) from error


def largest_batch(objective: Objective) -> int:
    """The examples of the largest batch of all ranks that can be cut; 0 where there is none, or norms tie batches."""
    if objective.tied_norms:
        return 0

    def share(batch: Any, totals: Totals) -> None:
        totals.append("sizes", leading_size(batch) or 0)

    return max(add_up(objective.batches(), share, group=objective.group).listed("sizes"), default=0)


def halved(objective: Objective, largest: int) -> Objective | None:
    """The objective in pieces of half as many examples; None where they cannot be smaller.

    Args:
        largest: the examples of the largest batch, 0 where batches must not be cut.
    """
    size = min(objective.batch_size or largest, largest)
    return objective.resized(size // 2) if size > 1 else None


def note_on(size: int | None) -> str:
    """A sentence for the reader."""
    return f"memory: it ran out, so batches were cut into pieces of {size} examples meanwhile"


def too_large(objective: Objective, attempt: Callable[[Any], None]) -> TooLarge:
    """The error for a batch that does not fit: a batch size that does is found by trial, and named.

    Args:
        attempt: makes the products of one batch.
    """
    batch: Any = max(objective.batches(), key=lambda b: leading_size(b) or 0, default=())
    whole = leading_size(batch)
    size = (whole or 1) // 2
    while size >= 1:
        try:
            attempt(take(batch, slice(0, size)))
            break
        except Exception as error:  # user code that needs whole batches can raise anything
            if not is_out_of_memory(error):
                whole, size = None, 0
            size //= 2
    return TooLarge(
        "out of memory while making Hessian-vector products",
        where=f"a batch of {leading_size(batch) or 'unknown size'} examples on {objective.device}",
        what_to_do=f"use batch_size={size}, which fits"
        if size
        else "not even one example fits: use a smaller model or another device"
        if whole
        else "give smaller batches: this one cannot be cut along dimension 0",
    )


def _unusable(objective: Objective, error: Exception) -> InputError:
    """The error for what goes wrong in pieces only."""
    pieces = f"memory ran out, and batches cannot be cut into pieces of {objective.batch_size} examples"
    if isinstance(error, InputError):
        return InputError(f"{pieces}: {error.message}", where=error.where, what_to_do=error.what_to_do)
    return InputError(
        f"{pieces}: {type(error).__name__}: {first_line(error)}",
        where=str(objective.device),
        what_to_do="give smaller batches, or free memory that other programs hold",
    )
