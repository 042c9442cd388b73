"""Functions whose gradient is not that of the loss, and honest ones, inside a small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3
CE = nn.CrossEntropyLoss()


def function(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Any:
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            ctx.save_for_backward(z)
            return forward(z)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return backward(g, ctx.saved_tensors[0])

    return Custom.apply


def hooked(z: Tensor) -> Tensor:
    z = 1.0 * z
    if z.requires_grad:
        z.register_hook(lambda g: 3.0 * g)
    return z


def unseen(z: Tensor) -> Tensor:
    with torch.no_grad():
        size = z.std(1, keepdim=True)
    return z / (1.0 + size)


def normalised(z: Tensor) -> Tensor:
    return z - z.mean(1, keepdim=True).detach()


quantised = function(lambda z: torch.round(4 * z) / 4, lambda g, z: g)
# name -> (what is done to the hidden layer, what must be said)
WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "detached": (normalised, "detach() in hidden (Hidden)"),
    "no_grad": (unseen, "no_grad in hidden (Hidden)"),
    "item": (lambda z: z * z.square().mean().item(), "item() in hidden"),
    "data": (lambda z: z * z.data.square().mean(), ".data in hidden"),
    "hook": (hooked, "a tensor hook in hidden"),
    "straight-through": (quantised, "custom autograd function in hidden (Custom)"),
    "fake-quantised": (lambda z: torch.fake_quantize_per_tensor_affine(z, 0.125, 0, -127, 127), "fake_quantize_per"),
    "reversed": (function(lambda z: z.clone(), lambda g, z: -0.5 * g), "hidden (Custom)"),
    "surrogate": (function(lambda z: (z > 0.2).to(z), lambda g, z: g / (1 + z.abs()) ** 2), "hidden (Custom)"),
    "twice too large": (function(torch.sin, lambda g, z: 2 * g * z.cos()), "hidden (Custom)"),
}
# Right first derivatives, all of them: values that are detached without effect, honest rounding, an honest backward.
RIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted softmax": lambda z: (z - z.max(1, keepdim=True).values.detach()).softmax(1),
    "rounded": lambda z: z + torch.round(z),
    "honest": function(torch.sin, lambda g, z: g * z.cos()),
}


class Hidden(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, z: Tensor) -> Tensor:
        return self.change(z)


class Net(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor], act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.hidden, self.last, self.act = nn.Linear(6, 8), Hidden(change), nn.Linear(8, 3), act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.act(self.first(x))))  # type: ignore[no-any-return]
