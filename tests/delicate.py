"""A model with one of everything that could come back changed, its batches, and a watcher that acts in mid-analysis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Delicate(nn.Module):
    """One of everything that could come back changed: see the comments."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)  # running statistics move in train mode
        self.second = nn.Linear(6, 6)
        self.second_again = nn.Linear(6, 6)
        self.second_again.weight = self.second.weight  # tied
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.quiet = nn.Dropout(0.5).eval()  # a mode of its own
        self.head = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("latest", torch.zeros(0), persistent=False)
        self.register_buffer("nothing", None)
        self.register_buffer("adjacency", torch.eye(6).to_sparse())
        self.count = 0
        self.history: list[Tensor] = []
        self.plain = torch.tensor([-0.0, float("nan"), 1.0])  # a tensor that is no buffer

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.plain.add_(1.0)
        x = self.norm(self.first(x))
        x = torch.tanh(self.second(x)) + torch.tanh(self.second_again(x)) + self.frozen(x)
        self.latest = x.detach()  # replaced, not written into
        self.history.append(x)
        self.cache = x  # an attribute that was not there, holding a graph
        x = torch.sparse.mm(self.adjacency, x.T).T
        return self.head(self.quiet(x))


def delicate() -> Delicate:
    """Gradients there and missing, NaN and -0.0 among them; hooks of every kind; a mode that differs by module."""
    torch.manual_seed(0)
    model = Delicate()
    model.first.weight.grad = torch.full((6, 4), float("nan"))
    model.head.weight.grad = torch.full((3, 6), -0.0)
    model.frozen.weight.grad = torch.ones(6, 6)
    with torch.no_grad():
        model.head.bias[0] = -0.0
    model.first.weight.register_hook(lambda g: 2.0 * g)
    model.head.bias.register_hook(lambda g: g.clone())
    model.first.register_forward_hook(lambda module, inputs, output: None)
    model.second.register_forward_pre_hook(lambda module, inputs: None)
    model.head.register_full_backward_hook(lambda module, grads, outputs: (3.0 * grads[0],))
    model.norm.register_full_backward_pre_hook(lambda module, outputs: outputs)
    model.second.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return model


def a_batch(n: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


BATCHES = [a_batch(8), a_batch(5, 2), a_batch(6, 3)]


class Armed:
    """A progress receiver that calls ``act`` when the solver begins, or after its n-th pass."""

    def __init__(self, act: Callable[[], None], passes: int = 0) -> None:
        self.act, self.passes = act, passes

    def forecast(self, forecast: Any) -> None:
        if self.passes == 0:
            self.act()

    def update(self, snapshot: Any) -> None:
        if snapshot.passes == self.passes:
            self.act()

    def note(self, sentence: str) -> None:
        pass
