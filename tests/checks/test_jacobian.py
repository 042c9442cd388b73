"""Wrong derivatives of a network's output: seen by the transpose and by finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh
from two_batches import batches


class TwiceWrong(torch.autograd.Function):
    """The identity; its gradient is right, and the derivative of that is 10 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return Inner.apply(g)


class Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        return g.clone()

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> Any:
        return 1.1 * h


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return TwiceWrong.apply(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_wrong_second_derivative_is_found_with_and_without_kinks(dtype: torch.dtype, activation: Any) -> None:
    """Only what lies before the faulty step is wrong: symmetric alone, seen by the transpose and in the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Wrong(), activation(), nn.Linear(5, 3)).to(dtype)
    data = [(x.to(dtype), y) for x, y in batches()]
    objective = lh.Objective(model, data, nn.CrossEntropyLoss())
    with pytest.raises(lh.CheckError, match="0.weight"):
        lh.analyze(objective, operator="gauss_newton")
    result = lh.analyze(objective, operator="gauss_newton", full=False, skip_failed=True)
    refused_ones = [name for name, s in result.blocks.items() if s.status.startswith("refused")]
    assert refused_ones == ["0.weight", "0.bias"]


class FirstWrong(torch.autograd.Function):
    """x squared with the gradient 3 x: wrong, and consistently so in every further derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return 3.0 * ctx.saved_tensors[0] * g


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return FirstWrong.apply(x)  # type: ignore[no-any-return]


def test_a_wrong_first_derivative_is_found_by_differences_of_the_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Squares(), nn.Linear(5, 3)).double()
    with pytest.raises(lh.CheckError, match="not the gradient of the loss") as caught:
        lh.analyze(lh.Objective(model, batches(), nn.CrossEntropyLoss()), operator="gauss_newton")
    assert "0.weight" in str(caught.value) and "2.weight" not in caught.value.where
