"""What to do where a pass runs out of memory: process fewer examples at a time, or say how few would fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layerhess.curvature.device import is_out_of_memory
from layerhess.errors import InputError
from layerhess.objective.batches import leading_size, take
from layerhess.objective.objective import Objective


def halved(objective: Objective, largest: int) -> Objective | None:
    """The objective in pieces of half as many examples; None where they cannot be smaller.

    Args:
        largest: the examples of the largest batch, 0 where batches must not be cut.
    """
    size = min(objective.batch_size or largest, largest)
    return objective.resized(size // 2) if size > 1 else None


def too_large(objective: Objective, attempt: Callable[[Any], None]) -> InputError:
    """The error for a batch that does not fit: a batch size that does is found by trial, and named.

    Args:
        attempt: makes the products of one batch.
    """
    batch: Any = max(objective.batches(), key=lambda b: leading_size(b) or 0, default=())
    size = (leading_size(batch) or 1) // 2
    while size >= 1:
        try:
            attempt(take(batch, slice(0, size)))
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
    return InputError(
        "out of memory while making Hessian-vector products",
        where=f"a batch of {leading_size(batch) or 'unknown size'} examples on {objective.device}",
        what_to_do=f"use batch_size={size}, which fits"
        if size
        else "not even one example fits: use a smaller model or another device"
        if leading_size(batch)
        else "give smaller batches: this one cannot be cut along dimension 0",
    )
