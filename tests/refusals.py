"""Tables of bad input: each entry makes a model and a call, which must be refused in words; see ``check``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import layerhess as lh
from witness import refused

Call = Callable[[], Any]
Case = Callable[[], tuple[nn.Module | None, Call]]

CE = nn.CrossEntropyLoss()
generator = torch.Generator().manual_seed(0)
X = torch.randn(12, 4, generator=generator)
Y = torch.arange(12) % 3
PAIRS = [(X[:7], Y[:7]), (X[7:], Y[7:])]
P = 43  # parameters of mlp()


class Table(dict[str, tuple[Case, tuple[str, ...]]]):
    """Name of a case -> what to do, and the words that must be said."""

    def case(self, name: str, *matches: str) -> Callable[[Case], Case]:
        """Enter a function that makes a model (or None) and a call, which must be refused with these words."""

        def enter(make: Case) -> Case:
            assert name not in self, name
            self[name] = make, matches
            return make

        return enter

    def check(self, name: str) -> None:
        """Run one case: refused with what, where and what to do, and the model untouched."""
        make, matches = self[name]
        model, call = make()
        with refused(model, *matches):
            call()


def mlp(*extra: nn.Module, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *extra, nn.Linear(5, outputs))


def analysis(
    data: Any = PAIRS,
    loss: Any = CE,
    model: Callable[[], nn.Module] = mlp,
    options: dict[str, Any] | None = None,
    **arguments: Any,
) -> Case:
    """Refused while the objective is made or analysed."""

    def make() -> tuple[nn.Module, Call]:
        made = model()
        given = data() if callable(data) else data
        return made, lambda: lh.analyze(lh.Objective(made, given, loss, **(options or {})), **arguments)

    return make
