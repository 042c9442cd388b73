"""Plans made by hand, for what is done with a plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from layerhess.results.options import Option, option_of
from layerhess.results.plan import PlannedWeight, PlanRecord


def planned_weights(model: nn.Module, names: list[str]) -> tuple[PlannedWeight, ...]:
    """As lh.plan describes the weights of a model."""
    everywhere = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for name in names:
        parameter = everywhere[name]
        aliases = tuple(other for other, same in everywhere.items() if same is parameter and other != name)
        dtype, shape = str(parameter.dtype).removeprefix("torch."), tuple(parameter.shape)
        module = type(model.get_submodule(name.rpartition(".")[0])).__name__
        found.append(PlannedWeight(name, shape, dtype, parameter.numel(), module, aliases))
    return tuple(found)


def plan_of(model: nn.Module, choice: Mapping[str, Option | int]) -> PlanRecord:
    """A plan with this choice and nothing measured."""
    options = {name: option_of(value) for name, value in choice.items()}
    size = len(options)
    return PlanRecord(
        choice=options,
        weights=planned_weights(model, list(options)),
        options=tuple(dict.fromkeys(options.values())),
        rows=(),
        budget="4bit",
        mean_bits=4.0,
        size_bytes=0.0,
        float_bytes=0.0,
        loss=0.0,
        predicted=0.0,
        predicted_block=0.0,
        measured=0.0,
        measured_error=0.0,
        interactions=np.zeros((size, size)),
    )
