"""Models whose loss stays the same while its derivative changes, for tests of runs that go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import layerhess as lh
from on_ranks import place
from resumed import analyze, data, network, objective

OUT = "CHANGED_DERIVATIVE"  # the variable with the folder of a run


class Squared(torch.autograd.Function):
    """x^2, with a factor in its derivative."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2.0 * Squared.factor * x * given[0]


class Changeable(nn.Module):
    """A layer whose value is the same whatever its derivative is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.changed = kind, False
        self.register_buffer("one", torch.ones((), dtype=torch.float64))
        if kind == "hook of the module":
            self.register_full_backward_hook(lambda _, given, __: (self.scaled(given[0]),))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "custom":
            Squared.factor = 0.5 if self.changed else 1.5
            return Squared.apply(x)
        if self.kind == "detach":
            return x * torch.tanh(x).detach() if self.changed else x.detach() * torch.tanh(x)
        y = x * self.one
        if self.kind == "hook":
            y.register_hook(self.scaled)
        return y

    def scaled(self, gradient: Tensor) -> Tensor:
        return gradient * (3.0 if self.changed else 1.5)


def made(kind: str, changed: bool, batches: list[Any] | None = None) -> lh.Objective:
    layer = Changeable(kind)
    layer.changed = changed
    model = nn.Sequential(*list(network())[:2], layer, *list(network())[2:])
    rank, ranks = place()
    batches = data()[rank::ranks] if batches is None else batches
    return objective(model=model, data=batches, stop_gradients="constant")


ASKED: Any = {"operator": "gauss_newton", "full": False, "path": "exact", "skip_failed": True}


def elsewhere() -> dict[str, str]:
    """How a run goes on with these ranks, with another derivative and with its own."""
    found = {}
    for changed in (True, False):
        try:
            analysis = analyze(made("detach", changed), out=Path(os.environ[OUT]), resume=True, **ASKED)
            found[str(changed)] = str(analysis.converged)
        except lh.InputError as error:
            found[str(changed)] = str(error)
    return found
