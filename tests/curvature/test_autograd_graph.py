"""What the autograd graph behind a tensor says of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerhess.curvature.autograd_graph import coarsest_dtype


@pytest.mark.parametrize("inside", [torch.float64, torch.float32])
def test_outputs_that_nobody_asked_for_have_no_roundoff(inside: torch.dtype) -> None:
    """torch's second derivative of BatchNorm describes those as float32 numbers, whatever the model's dtype."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(3).double(), torch.randn(5, 3).double().requires_grad_()
    (slope,) = torch.autograd.grad(norm(x).to(inside).square().sum(), x, create_graph=True)
    assert slope.grad_fn is not None
    assert coarsest_dtype(slope.grad_fn, torch.float64) == inside


def test_an_input_that_was_cast_up_is_as_exact_as_it_was_given() -> None:
    given = torch.randn(4, requires_grad=True)
    assert coarsest_dtype(given.double().square().sum().grad_fn, torch.float64) == torch.float64
    assert coarsest_dtype((given * 2.0).double().sum().grad_fn, torch.float64) == torch.float32
