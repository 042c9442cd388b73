"""Runs that are killed and resumed: small ones of every kind, and each of them uninterrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

import layerhess as lh

EVERYTHING: Any = {
    "trace": True,
    "diagonal": lh.Diagonal(max_probes=4),
    "density": lh.Density(probes=2, steps=4),
    "coupling": lh.Coupling(probes=3),
    "sampling": True,
}


class Streamed:
    """Batches that could be different ones at every pass, for all one knows."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def network(activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 9), activation(), nn.Linear(9, 8), activation(), nn.Linear(8, 3)).to(dtype)


def data(dtype: torch.dtype = torch.float64, n: int = 4, seed: int = 1) -> list[Any]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(12, 5, generator=g).to(dtype), torch.randint(3, (12,), generator=g)) for _ in range(n)]


def analyze(of: lh.Objective, **arguments: Any) -> lh.Analysis:
    return lh.analyze(of, **{"blocks": "module", **arguments})


def objective(**changed: Any) -> lh.Objective:
    given = {"model": network(), "data": data(), "loss": nn.CrossEntropyLoss(), **changed}
    return lh.Objective(given.pop("model"), given.pop("data"), given.pop("loss"), **given)


def factored() -> lh.Objective:
    single = torch.float32
    return objective(model=network(nn.ReLU, single), data=Streamed(data(single)))


KINDS: dict[str, tuple[Callable[[], lh.Objective], dict[str, Any]]] = {
    "top": (objective, {"top": 2, "bottom": 1}),
    "estimates": (objective, EVERYTHING),
    "factors that stream": (factored, {"top": 2, "trace": True, "diagonal": True, "sampling": True}),
    "rows": (lambda: objective(model=network(nn.ReLU)), {"path": "gram", **EVERYTHING}),
}


@cache
def uninterrupted(kind: str) -> lh.Analysis:
    make, arguments = KINDS[kind]
    return analyze(make(), **arguments)
