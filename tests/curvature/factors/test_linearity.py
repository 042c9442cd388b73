"""Which operations are piecewise linear, and in which blocks a tensor made of them is."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.factors.linearity import kind, not_linear

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
IMAGE = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(3), requires_grad=True)
CONSTANT = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
LINEAR: dict[str, Callable[[], Any]] = {
    "relu": lambda: (X.relu(), X), "times a constant": lambda: (X * CONSTANT, X),
    "over a constant": lambda: (X / CONSTANT, X),
    "product with a constant": lambda: (X @ CONSTANT.T, X), "added": lambda: ((X + X.abs()).cumsum(0), X),
    "bias of a product": lambda: (torch.addmm(X, CONSTANT[:, :3], CONSTANT), X),
    "weighted sum": lambda: (torch.addcmul(CONSTANT, X, CONSTANT), X),
    "pooled": lambda: (F.max_pool2d(IMAGE, 2), IMAGE),
    "convolved": lambda: (F.conv2d(IMAGE, torch.ones(1, 2, 3, 3)), IMAGE), "clamped": lambda: (X.clamp(0, 6), X),
    "as a kernel": lambda: (F.conv2d(torch.ones(1, 2, 9, 9), IMAGE), IMAGE), "indexed": lambda: (X[:, [0, 1]], X),
    "leaky": lambda: (F.leaky_relu(X), X), "means": lambda: (X.mean(0) - X.sum(), X),
    "learnt slopes": lambda: (F.prelu(X, torch.ones(4) / 2), X), "joined": lambda: (torch.cat([X, 2 * X]), X),
}  # fmt: skip
BENT: dict[str, Callable[[], Any]] = {
    "squared": lambda: (X * X, X), "with itself": lambda: (X @ X.T, X), "below": lambda: (CONSTANT / X, X),
    "by itself": lambda: (X / X.sum(), X), "tanh": lambda: (X.tanh(), X), "exp": lambda: (X.exp(), X),
    "power": lambda: (X**2, X), "norm": lambda: (X.norm(), X), "softmax": lambda: (X.softmax(1), X),
    "relu of a square": lambda: ((X * X).relu(), X), "in both factors": lambda: (torch.addcmul(CONSTANT, X, X), X),
    "own kernel": lambda: (F.conv2d(IMAGE, IMAGE[:, :, :3, :3]), IMAGE), "variance": lambda: (X.var(), X),
    "complex size": lambda: (torch.complex(X, CONSTANT).abs(), X), "mish": lambda: (F.mish(X), X),
}  # fmt: skip


def struck(made: Callable[[], Any], affine: bool = False) -> int:
    y, x = made()
    return not_linear(y.grad_fn, {torch.autograd.graph.get_gradient_edge(x).node: 5}, {y.grad_fn} if affine else ())


@pytest.mark.parametrize("name", LINEAR)
def test_what_is_piecewise_linear_is_called_so(name: str) -> None:
    assert struck(LINEAR[name]) == 0


@pytest.mark.parametrize("name", BENT)
def test_what_is_not_is_struck_off(name: str) -> None:
    assert struck(BENT[name]) == 5


def test_known_affine_nodes_are_linear_whatever_their_kind() -> None:
    assert struck(BENT["tanh"], affine=True) == 0


def test_blocks_that_meet_are_struck_off_together_and_others_stay() -> None:
    a, b, c = (torch.randn(3, 3, requires_grad=True) for _ in range(3))
    at = {torch.autograd.graph.get_gradient_edge(t).node: bit for t, bit in ((a, 1), (b, 2), (c, 4))}
    assert not_linear((a @ b + c).grad_fn, at) == 0  # a product of two blocks is linear in either
    assert not_linear((a @ b).tanh().grad_fn, at) == 3
    assert not_linear(((a @ b) * (a + c)).grad_fn, at) == 1
    assert not_linear((a.relu() @ b + c.sin()).grad_fn, at) == 4
    both = {torch.autograd.graph.get_gradient_edge(t).node: bit for t, bit in ((a, 1), (b, 1))}
    assert not_linear((a @ b).grad_fn, both) == 1
    inner = a.relu()
    again = {**at, inner.grad_fn: 1}  # the block enters again what depends on it already
    assert not_linear((inner + b).grad_fn, again) == 1 and not_linear((b + c).grad_fn, again) == 0
    slopes = torch.ones(3, requires_grad=True)
    entering = {torch.autograd.graph.get_gradient_edge(slopes).node: 8, **at}
    assert (
        not_linear(F.prelu(a, slopes).grad_fn, entering) == 0
        and not_linear(F.prelu(b + a, slopes).grad_fn, entering) == 0
    )


class Relu(torch.autograd.Function):
    """A custom function with the name of torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g


def test_kinds_are_those_of_torchs_own_operations() -> None:
    assert kind(X.relu().grad_fn) == "Relu" and kind((X * X).grad_fn) == "Mul"
    assert kind(Relu.apply(X).grad_fn) == "" and kind(torch.complex(X, X).abs().grad_fn) in ("", "Abs")
    assert struck(lambda: (Relu.apply(X), X)) == 5
    assert kind((torch.complex(X, X) * 2).grad_fn) == ""
    assert kind(SimpleNamespace(name=lambda: "ReluBackward0")) == "Relu"  # of a torch that tells no dtypes
    for name in ("Relu", "ReluBackward", "MyRelu_Backward0x"):
        assert kind(SimpleNamespace(name=lambda name=name: name)) == ""
