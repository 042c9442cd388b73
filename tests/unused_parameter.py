"""A small network with an unused parameter on three unequal batches, and its dense Hessian by torch.func."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerhess.objective.blocks import make_block
from layerhess.objective.objective import Objective

CE = nn.CrossEntropyLoss()
SIZES = (5, 3, 4)


class Net(nn.Module):
    """With a parameter that nothing depends on, and one that enters linearly."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()
        self.unused = nn.Parameter(torch.ones(2).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 3, generator=generator).double(), torch.arange(n) % 3) for n in SIZES]


def objective(loss: Any = CE, batches: Any = None, model: nn.Module | None = None) -> Objective:
    return Objective(model or Net(), data() if batches is None else batches, loss)


def dense(made: Objective, batches: Any, reduction: str = "sum") -> np.ndarray:
    """The Hessian of the loss over these batches, by torch.func on one flat vector."""
    names, shapes = list(made.parameters), [p.shape for p in made.parameters.values()]
    flat = torch.cat([p.detach().reshape(-1) for p in made.parameters.values()])

    def loss(v: Tensor) -> Tensor:
        parts = torch.split(v, [s.numel() for s in shapes])
        weights = {n: part.view(s) for n, s, part in zip(names, shapes, parts, strict=True)}
        return sum(
            (F.cross_entropy(torch.func.functional_call(made.model, weights, (x,)), y, reduction=reduction)
             for x, y in batches), torch.zeros(()).double()
        )  # fmt: skip

    return torch.autograd.functional.hessian(loss, flat).numpy()


def places(made: Objective) -> dict[str, np.ndarray]:
    found, start = {}, 0
    for name, p in made.parameters.items():
        found[name] = np.arange(start, start + p.numel())
        start += p.numel()
    return found


def block_of(made: Objective, *names: str) -> Any:
    return make_block(names[0], {n: made.parameters[n] for n in names})
