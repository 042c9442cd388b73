"""May batches go through the model together? Two of them are held against both by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from layerhess.checks.mean import compared, tolerance
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.errors import first_line
from layerhess.objective import batches
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import moved, preserved_random_state, random_states


def why_apart(objective: Objective, pair: Sequence[Any]) -> str:
    """Why two batches must not be joined, for the middle of a sentence; "" if they may be (in session).

    Loss, count and gradient of both together are held against the sums over the two, at these weights and at moved
    ones: at one point they may agree by accident, as behind a head of zeros.

    Args:
        pair: two prepared batches that are alike, see :func:`layerhess.objective.batches.shared_rows`.
    """
    with preserved_random_state():
        before = random_states()
        try:
            together = batches.joined(pair)
            if together is None:
                return "they are not alike"
            why = _differing(objective, together, pair)
            with moved(objective.parameters.values()):
                why = why or _differing(objective, together, pair)
        except Exception as error:  # user code that takes no such batch can raise anything
            return f"together they fail: {first_line(error)}"
        return why or ("the model draws random numbers" if random_states() != before else "")


def _differing(objective: Objective, together: Any, pair: Sequence[Any]) -> str:
    """What of both together is not the sum over the two, or is not finite; "" if nothing."""
    difference: dict[str, Tensor] = {}  # of gradients, beside which there is one more at a time
    size = 0.0

    def judge(batch: Any, weight: float = -1.0) -> tuple[Tensor, float]:
        nonlocal size
        loss, count = objective.terms(batch)
        own: dict[str, Tensor] = {}
        if loss.requires_grad:
            add_gradient(loss, objective.parameters, own, weight)
        size += _square(own) if weight < 0.0 else 0.0
        for name, part in own.items():
            difference[name] = difference[name].add_(part) if name in difference else part
        return loss.detach(), count

    found = compared(judge, judge(together, 1.0), [pair], objective.dtype)
    if not found.finite:
        return "their loss is not finite, or not at weights that are moved a little"
    if not found.adds_up:
        return f"their {found.told[0]} is not the sum over the two"
    same = _square(difference) <= tolerance(objective.dtype) ** 2 * size
    return "" if same else "their gradient is not the sum over the two"


def _square(parts: Mapping[str, Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts.values())
