"""Functions rewritten for products: the same values and derivatives as torch's, to the second order and no further."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import layerhess as lh
from layerhess.products.rewritten import Rewritten

WEIGHT, BIAS = torch.linspace(0.5, 1.5, 6).double(), torch.linspace(-1.0, 1.0, 6).double()
MASK = torch.ones(4, 6, dtype=torch.bool).triu(2)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu by tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "softmax": lambda x: F.softmax(x, dim=-1),
    "softmax along the middle": lambda x: x.softmax(1),
    "softmax with a dtype": lambda x: torch.softmax(x, -1, dtype=x.dtype),
    "softmax, masked": lambda x: x.masked_fill(MASK, float("-inf")).softmax(-1),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "layer norm, large eps": lambda x: F.layer_norm(x, (6,), eps=0.5),
    "layer norm over two dimensions": lambda x: F.layer_norm(x, (4, 6)),
}


def _in_dtype(name: str, x: Tensor) -> Tensor:
    """The function with its weights in the dtype of x."""
    weight, bias = WEIGHT.to(x), BIAS.to(x)
    if name == "batch norm":
        return F.batch_norm(x, bias[:4], weight[:4], weight[:4], bias[:4])
    chosen = {"weight": (weight, None), "bias": (None, bias), "both": (weight, bias)}[name.split(", ")[1]]
    return F.layer_norm(x, (6,), *chosen)


WEIGHED = ("layer norm, weight", "layer norm, bias", "layer norm, both", "batch norm")
FUNCTIONS |= {name: partial(_in_dtype, name) for name in WEIGHED}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))


def _rewritten(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with Rewritten():
            return function(x)

    return run


def _two_orders(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Value, gradient along fixed weights, and the derivatives of <h, gradient> in x and in those weights."""
    x = x.clone().requires_grad_()
    g = torch.cos(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape).requires_grad_()
    h = torch.sin(torch.arange(x.numel(), dtype=x.dtype) + 1.0).view(x.shape)
    y = function(x)
    (first,) = torch.autograd.grad(y, x, g, create_graph=True)
    second = torch.autograd.grad(first, [x, g], h, materialize_grads=True)
    return [y.detach(), first.detach(), *second]


@every_function
def test_values_and_two_derivatives_are_those_of_torch(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = 3.0 * torch.randn(3, 4, 6, dtype=torch.float64)
    x[0, 0, 0], x[0, 1, 0] = 0.0, -40.0
    for ours, theirs in zip(_two_orders(_rewritten(function), x), _two_orders(function, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@every_function
def test_second_derivatives_are_those_of_finite_differences(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(_rewritten(function), x)


@every_function
def test_float32_is_as_close_as_torchs_own(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(2)
    x = 2.0 * torch.randn(5, 4, 6)
    x[0, 0, 0], x[1, 0, 0] = 30.0, -30.0
    exact = _two_orders(function, x.double())
    for ours, theirs, right in zip(_two_orders(_rewritten(function), x), _two_orders(function, x), exact, strict=True):
        size = right.abs().max()
        assert (ours - right).abs().max() <= max(4.0 * (theirs - right).abs().max(), 1e-6 * size)


def test_every_function_is_intercepted_as_modules_call_it() -> None:
    modules = [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.LayerNorm(6)]
    for module in modules:
        with Rewritten():
            made = module(torch.randn(2, 6, requires_grad=True))
        assert "Backward" in type(made.grad_fn).__name__ and "Gelu" not in str(made.grad_fn), module
        assert "NativeLayerNorm" not in str(made.grad_fn) and "Silu" not in str(made.grad_fn)
    x = torch.randn(2, 6, requires_grad=True)
    with Rewritten():
        for made in (F.softmax(x, -1), torch.softmax(x, -1), x.softmax(-1), nn.Softmax(-1)(x)):
            assert "SoftmaxBackward0" not in str(made.grad_fn)
        assert "SoftmaxBackward0" in str(F.softmax(x, -1, dtype=torch.float64).grad_fn)
        assert "SoftmaxBackward0" in str(torch.softmax(x, -1, torch.float64).grad_fn)


def test_a_third_derivative_is_an_error_and_never_a_zero() -> None:
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    for function in (F.gelu, F.silu, FUNCTIONS["layer norm"]):
        y = _rewritten(function)(x.view(1, 6))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="a third time"):
            torch.autograd.grad(second.sum(), x)


def test_in_place_half_precision_and_packed_tensors_stay_as_they_are() -> None:
    x = torch.randn(3, 6)
    with Rewritten():
        y = x.clone()
        assert F.silu(y, inplace=True) is y and torch.equal(y, F.silu(x))
        half = F.gelu(x.bfloat16().requires_grad_())
        assert "Gelu" in str(half.grad_fn)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            assert "Gelu" in str(F.gelu(x.clone().requires_grad_()).grad_fn)


class _Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.SiLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(checkpoint(self.inner, x, use_reentrant=False))


def test_recomputed_activations_give_the_same_products() -> None:
    torch.manual_seed(0)
    model = _Recomputed().double()
    plain = nn.Sequential(*model.inner, model.head)
    data = (torch.randn(9, 5, dtype=torch.float64), torch.randint(0, 3, (9,)))
    found = lh.Hessian(lh.Objective(model, data, nn.CrossEntropyLoss())).to_dense()
    same = lh.Hessian(lh.Objective(plain, data, nn.CrossEntropyLoss())).to_dense()
    assert torch.allclose(found, same, rtol=1e-10, atol=1e-13)
