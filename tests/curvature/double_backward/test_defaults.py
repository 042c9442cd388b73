"""Rewritten functions take the arguments of torch's own, and mean the same where one is left out."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F

from layerhess.curvature.double_backward.batch_norm import batch_norm
from layerhess.curvature.double_backward.layer_norm import layer_norm

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MEAN, VARIANCE = torch.tensor([0.1, -0.2, 0.3]).double(), torch.tensor([0.5, 2.0, 1.0]).double()
W, B = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([1.0, 0.0, -3.0]).double()


@pytest.mark.parametrize(("ours", "theirs"), [(batch_norm, F.batch_norm), (layer_norm, F.layer_norm)])
def test_names_and_defaults_are_torchs(ours: object, theirs: object) -> None:
    own, other = (inspect.signature(function).parameters for function in (ours, theirs))  # type: ignore[arg-type]
    assert list(own) == list(other)
    assert [p.default for p in own.values()] == [p.default for p in other.values()]


@pytest.mark.parametrize("given", [{}, {"weight": W}, {"bias": B}, {"weight": W, "bias": B}, {"eps": 0.5}], ids=str)
@pytest.mark.parametrize("x", [X, X[:, :, 0]], ids=["sequences", "vectors"])
def test_batch_norm_without_more_is_that_of_eval_mode(x: torch.Tensor, given: dict[str, torch.Tensor]) -> None:
    expected = F.batch_norm(x, MEAN, VARIANCE, **given)  # type: ignore[arg-type]
    torch.testing.assert_close(batch_norm(x, MEAN, VARIANCE, **given), expected)  # type: ignore[arg-type]
    trained = F.batch_norm(x, MEAN.clone(), VARIANCE.clone(), training=True)
    torch.testing.assert_close(batch_norm(x, MEAN.clone(), VARIANCE.clone(), training=True), trained)
