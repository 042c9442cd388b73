"""Finds batches that show the gradient of tensors of which a sample shows nothing: units dead there, experts unused."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from layerhess.curvature.counters import Counters
from layerhess.curvature.double_backward.mode import Rewritten
from layerhess.curvature.gradient_sum import add_gradient
from layerhess.curvature.totals import Totals, add_up
from layerhess.objective.objective import Objective
from layerhess.objective.sent_batches import of_all_ranks

SILENT = 1e-9  # times the strongest tensor: a check along all tensors together says nothing of weaker ones
HEARD = {torch.float64: 1e-9, torch.float32: 1e-5}  # the same for a batch in its own dtype; below it is rounding
CLEAR = 1e-2  # louder than this in a batch, and no other batch is looked for


def strengths(objective: Objective, gradient: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Parameter -> ||gradient|| times ||parameter|| (1 for a zero one): what moving it by its own size may change."""
    sizes = {name: float(torch.linalg.vector_norm(objective.parameters[name].detach())) or 1.0 for name in gradient}
    return {
        name: 0.0 if part is None else float(torch.linalg.vector_norm(part.detach())) * sizes[name]
        for name, part in gradient.items()
    }


def silent_tensors(objective: Objective, gradient: Mapping[str, Tensor | None]) -> list[str]:
    """The parameters whose gradient is nothing beside those of others."""
    found = strengths(objective, gradient)
    strongest = max(found.values(), default=0.0)
    return [name for name, strength in found.items() if strength <= SILENT * strongest]


def speaking_batches(objective: Objective, silent: Collection[str], counters: Counters) -> list[Any]:
    """The batches in which the gradients of these parameters are largest, beside those of the others; each once.

    None where they are silent in all the data, as a bias before a normalisation is. Costs one gradient of the data at
    most; batches are left out once every parameter was heard clearly.

    Args:
        objective: in session, with all its data.
    """
    group = objective.group
    most: dict[str, tuple[float, str, Any]] = {}

    def share(numbered: tuple[int, Any], totals: Totals) -> None:
        number, batch = numbered
        if all(name in most and most[name][0] >= CLEAR for name in silent):
            return
        with Rewritten():
            loss, _ = objective.terms(batch)
        counters.count("forwards")
        if not loss.requires_grad:
            return
        found: dict[str, Tensor] = {}
        add_gradient(loss, objective.parameters, found)
        counters.count("backwards")
        heard = strengths(objective, {name: found.get(name) for name in objective.parameters})
        strongest = max(heard.values())
        least = HEARD.get(objective.dtype, 1e-2) * strongest
        for name in silent:
            if heard[name] > least and heard[name] / strongest > most.get(name, (0.0,))[0]:
                most[name] = heard[name] / strongest, group.place(number), batch

    add_up(enumerate(objective.batches()), share, group=group)
    heard_by = of_all_ranks([((n, s, place), batch) for n, (s, place, batch) in most.items()], group, objective.device)
    most = {}
    for (name, strength, place), batch in itertools.chain(*heard_by):
        if strength > most.get(name, (0.0,))[0]:
            most[name] = strength, place, batch
    return list({place: batch for _, place, batch in most.values()}.values())
