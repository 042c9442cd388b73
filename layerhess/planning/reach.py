"""Refuses a budget that no plan meets, in the budget's own units, with the plan that comes nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from layerhess.errors import InputError
from layerhess.planning.allocation.nearest import nearest
from layerhess.planning.allocation.problem import Problem
from layerhess.planning.budget import Budget
from layerhess.planning.layers import Layers


def refuse_unreachable(layers: Layers, budget: Budget, why_not: Sequence[Sequence[str]]) -> None:
    """Refuse a budget that no plan of the allowed options meets.

    Args:
        why_not: (L)(K) sentences, "" where an option is allowed.

    Raises:
        InputError: saying what the nearest plan takes; its details, which plan that is.
    """
    out = np.array([[math.inf if why else 0.0 for why in row] for row in why_not])
    problem = Problem(out, budget.uses, budget.limits, tied=layers.tied, pinned=layers.pinned)
    near = nearest(problem)
    over = near.over > 0.0
    if not over.any():
        return
    alone = [j for j in np.flatnonzero(over) if near.least[j] > problem.groups.room[j]]
    places = alone[:1] or list(np.flatnonzero(over))
    told = " and ".join(_amount(budget, int(j), near.least[j] if alone else near.uses[j]) for j in places)
    raise InputError(
        f"no plan keeps to {budget.text}: the {'least' if alone else 'nearest plan'} "
        f"{'that can be reached is' if alone else 'takes'} {told}",
        where="budget",
        what_to_do="allow more, give options of fewer bits, or unpin layers",
        details=[
            f"the nearest plan: {name} {option}"
            for name, option in {n: str(o) for n, o in layers.choice(near.choice).items()}.items()
        ],
    )


def _amount(budget: Budget, place: int, use: float) -> str:
    name = budget.names[place]
    if name == "bits":
        return f"{use / budget.numel:.4g} bits a weight"
    if name == "bytes":
        return f"{use / 1e6:.4g} MB" if use >= 1e4 else f"{use:.6g} bytes"
    return f"{use:.6g} of {'latency' if name == 'latency' else 'bit operations'}"
