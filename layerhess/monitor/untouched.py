"""The state in which the monitor looks at a model, and what else it must leave as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from layerhess.objective.batch_norm import tied_norms
from layerhess.objective.objective import Objective

OFF = "dropout is off, since a random loss has no curvature; modules are in eval mode, but for BatchNorm"
OTHER_MODE = (
    "the objective is in eval mode, and the optimizer's state was made in train mode, where BatchNorm uses the batch's "
    "statistics: weights before it may have far more curvature in eval mode than P knows of, and the ratio to the "
    "stability threshold then says nothing; give the monitor an objective with mode='as-is'"
)


@contextmanager
def as_the_training_has_it(objective: Objective, notes: list[str]) -> Iterator[None]:
    """In session: without dropout, since a random loss has no curvature; random generators of the data are put back.

    BatchNorm stays in the training's mode. The session's end restores the modes.

    Args:
        notes: get a sentence if there was dropout.
    """
    if objective.random_modules:
        for module in objective.model.modules():
            if module.training and not isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.training = False
        if OFF not in notes:
            notes.append(OFF)
    states = [(generator, generator.get_state()) for generator in _generators(objective.data)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def said_of_mode(objective: Objective, optimizer: Optimizer | None) -> str:
    """A sentence where an optimizer's state does not belong to the objective's mode; else ""."""
    if optimizer is None or isinstance(optimizer, SGD) or objective.mode != "eval":
        return ""
    return OTHER_MODE if tied_norms(objective.model, "as-is").training else ""


def _generators(data: Any) -> list[torch.Generator]:
    """Those that a loader draws from, beside torch's own, which a session restores."""
    samplers = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    found = (getattr(one, "generator", None) for one in samplers)
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())
