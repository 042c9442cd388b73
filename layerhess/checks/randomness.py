"""For a loss that differs from call to call: finds the modules that draw random numbers or keep a state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from layerhess.checks.forward_trace import state_versions
from layerhess.errors import InputError
from layerhess.objective.objective import Objective
from layerhess.objective.snapshot import kept_values, random_states

NUDGE = 0.1  # relative to a tensor's mean size
SETTLED = 1e-9  # relative difference of two float64 losses


def repeats(first: float, second: float, dtype: torch.dtype) -> bool:
    """True if two evaluations of the same batch agree to what the order of summation may change in ``dtype``."""
    return abs(first - second) <= 100.0 * torch.finfo(dtype).eps * max(abs(first), abs(second)) or first == second


def randomness_refused(objective: Objective, batch: Any, first: float, second: float) -> InputError:
    """The error for a loss that gave two values for one batch; traces another call to name the modules (in session).

    Args:
        batch: the prepared batch. first, second: the two values.
    """
    drawn, stateful = _culprits(objective, batch)
    values = f"the same batch gave {first:.9g}, then {second:.9g}"
    if drawn or not stateful:
        message, where = f"the loss is random: {values}", f"active randomness in {', '.join(drawn[:5]) or 'the model'}"
        advice = "remove the random numbers from the model's forward or the loss"
    else:
        message, where = f"the loss changes from call to call: {values}", "a state kept by " + ", ".join(stateful[:5])
        advice = "keep that state as it is while the model is analysed"
    if _eval_helps(objective, batch):
        advice = "use mode='eval' (--eval), in which the loss of that batch stays the same"
    return InputError(message, where=where, what_to_do=advice)


def refuse_state_that_follows(objective: Objective, batch: Any, modules: list[str]) -> None:
    """Refuse a loss whose modules adapt a state to the weights in every call, as spectral_norm does in train mode.

    Such a loss repeats once the state has settled, but its derivatives treat the state as a constant. So the weights
    are moved a little; the loss must repeat there as well.

    Args:
        objective: a float64 copy of the one to analyse, in session. modules: those whose buffers change in a call.

    Raises:
        InputError: naming ``modules``.
    """
    with kept_values(objective.parameters.values()), torch.no_grad():
        for parameter in objective.parameters.values():
            ramp = torch.linspace(-1.0, 1.0, parameter.numel(), dtype=parameter.dtype, device=parameter.device)
            parameter.add_(ramp.view_as(parameter) * parameter.abs().mean(), alpha=NUDGE)
        first, second = (objective.terms(batch)[0].item() for _ in range(2))
    if abs(first - second) > SETTLED * max(abs(first), abs(second)):
        raise InputError(
            "the loss depends on a state that every call adapts to the weights, and derivatives take for a constant",
            where="the buffers of " + ", ".join(modules[:5]),
            what_to_do="use mode='eval' (--eval), in which that state stays as it is",
        )


def _eval_helps(objective: Objective, batch: Any) -> bool:
    if objective.mode == "eval":
        return False
    modes = [(module, module.training) for module in objective.model.modules()]
    try:
        objective.model.eval()
        first, second = (objective.terms(batch)[0].item() for _ in range(2))
    except Exception:  # a model that cannot run in eval mode: no advice to give
        return False
    finally:
        for module, training in modes:
            module.training = training
    return repeats(first, second, objective.dtype)


def _culprits(objective: Objective, batch: Any) -> tuple[list[str], list[str]]:
    """(modules that draw random numbers, modules whose buffers change) in one call, each as "name (type)"."""
    before = state_versions(objective.model)
    with _watching(objective) as drawn:
        objective.terms(batch)
    changed = [name for name, version in state_versions(objective.model).items() if before.get(name) != version]
    modules = dict(objective.model.named_modules())
    owners = dict.fromkeys(name.rpartition(".")[0] for name in changed)
    return list(drawn), [f"{name or '(root)'} ({type(modules[name]).__name__})" for name in owners if name in modules]


@contextmanager
def _watching(objective: Objective) -> Iterator[dict[str, None]]:
    """Compares the random states at every entry to and exit from a module; yields the modules where one moved."""
    names = {id(module): name or "(root)" for name, module in objective.model.named_modules()}
    stack = ["the loss"]
    drawn: dict[str, None] = {}
    last = random_states()

    def look() -> None:
        nonlocal last
        now = random_states()
        if now != last:
            drawn[stack[-1]] = None
        last = now

    def enter(module: nn.Module, inputs: Any) -> None:
        look()
        name = names.get(id(module))
        stack.append(f"{name} ({type(module).__name__})" if name else type(module).__name__)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        look()
        if len(stack) > 1:
            stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        yield drawn
        look()
    finally:
        for handle in handles:
            handle.remove()
