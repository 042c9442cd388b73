"""Plans beside the best one: which of many are Pareto-minimal, and random ones that spend a budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerhess.errors import InputError
from layerhess.planning.allocation.allocation import allocated
from layerhess.planning.allocation.problem import Choices, Problem


def pareto(sizes: Any, values: Any) -> Choices:
    """The indices of points that no other point beats in size or value without being worse in the other.

    In the order of their sizes; of equal points the first. NaN is never among them.

    >>> pareto([3.0, 1.0, 2.0, 2.0], [1.0, 5.0, 2.0, 4.0]).tolist()
    [1, 2, 0]
    """
    size, value = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if size.shape != value.shape or size.ndim != 1:
        raise InputError(
            f"sizes have shape {size.shape}, values {value.shape}",
            where="pareto",
            what_to_do="give two lists of one length",
        )
    order = np.lexsort((np.arange(len(size)), value, size))
    order = order[~np.isnan(size[order]) & ~np.isnan(value[order])]
    if not len(order):
        return order
    best = np.minimum.accumulate(value[order])
    return np.asarray(order[np.concatenate([[True], value[order][1:] < best[:-1]])])


def random_plans(
    problem: Problem, number: int, rng: np.random.Generator, *, near: Any = None, redrawn: float = 1.0
) -> Choices:
    """Random plans (number, L) that meet the limits and spend them.

    Each layer's option is drawn uniformly from those allowed. While the plan breaks a limit, a layer drawn at random
    goes to its next smaller option; then layers in random order go to their next larger one, again and again, until no
    layer can. A layer's options are ordered by the sum of their uses, each relative to its limit. Tied layers are one
    layer. Without limits the plans are uniform; plans may be equal.

    Args:
        problem: options and limits. number: of plans. rng: draws them. near: (L,) a plan of which only some layers are
            drawn anew. redrawn: the probability of that for each layer.

    Raises:
        InputError: no plan meets the limits.
    """
    groups = problem.groups
    limited = np.isfinite(groups.room)
    uses, room = groups.uses[limited], groups.room[limited]
    scale = np.where(np.abs(room) > 0.0, np.abs(room), 1.0)
    size = np.where(groups.allowed, (uses / scale[:, None, None]).sum(axis=0), np.inf)
    order = np.argsort(size, axis=1, kind="stable")
    steps = groups.allowed.sum(axis=1)
    sorted_uses = np.take_along_axis(uses, order[None], axis=2)
    safe = np.zeros(len(size), dtype=np.int64)
    if not (sorted_uses[:, :, 0].sum(axis=1) <= room).all():
        choice = problem.of_groups(allocated(problem).choice)
        safe = np.argmax(order == choice[:, None], axis=1)
    every = np.arange(len(size))
    plans = np.empty((number, len(size)), dtype=np.int64)
    kept = None if near is None else np.argmax(order == problem.of_groups(near)[:, None], axis=1)
    for plan in plans:
        place = rng.integers(0, steps)
        if kept is not None:
            place = np.where(rng.random(len(place)) < redrawn, place, kept)
        if len(room):
            _lowered(place, safe, sorted_uses, room, rng)
            _raised(place, steps, sorted_uses, room, rng)
        plan[:] = order[every, place]
    return problem.of_layers(plans)


def _lowered(place: Choices, safe: Choices, uses: Any, room: Any, rng: np.random.Generator) -> None:
    every = np.arange(len(place))
    used = uses[:, every, place].sum(axis=1)
    while (used > room).any() and (place > 0).any():
        g = rng.choice(np.flatnonzero(place > 0))
        used = used + uses[:, g, place[g] - 1] - uses[:, g, place[g]]
        place[g] -= 1
    for g in rng.permutation(len(place)):  # what is smaller in sum may be larger in one use
        if (uses[:, every, place].sum(axis=1) <= room).all():
            return
        place[g] = safe[g]


def _raised(place: Choices, steps: Choices, uses: Any, room: Any, rng: np.random.Generator) -> None:
    every = np.arange(len(place))
    used = uses[:, every, place].sum(axis=1)
    moved = True
    while moved:
        moved = False
        for g in rng.permutation(len(place)):
            if place[g] + 1 < steps[g]:
                after = used + uses[:, g, place[g] + 1] - uses[:, g, place[g]]
                if (after <= room).all():
                    used, moved = after, True
                    place[g] += 1
