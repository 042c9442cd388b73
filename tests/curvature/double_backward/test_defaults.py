"""Rewritten functions take the arguments of torch's own, and mean the same where one is left out."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from layerhess.curvature.double_backward.batch_norm import batch_norm
from layerhess.curvature.double_backward.group_norm import group_norm, instance_norm
from layerhess.curvature.double_backward.layer_norm import layer_norm

X = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MEAN, VARIANCE = torch.tensor([0.1, -0.2, 0.3]).double(), torch.tensor([0.5, 2.0, 1.0]).double()
W, B = torch.tensor([2.0, -1.0, 0.5]).double(), torch.tensor([1.0, 0.0, -3.0]).double()


PAIRS = [
    (batch_norm, F.batch_norm),
    (layer_norm, F.layer_norm),
    (group_norm, F.group_norm),
    (instance_norm, F.instance_norm),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
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


@pytest.mark.parametrize(
    "call",
    [
        lambda group, instance, batch: group(torch.ones(1, 2), 2),
        lambda group, instance, batch: group(torch.ones(2, 3), 2),
        lambda group, instance, batch: group(torch.ones(3), 1),
        lambda group, instance, batch: instance(torch.ones(2, 3, 1)),
        lambda group, instance, batch: batch(torch.ones(1, 3), None, None, training=True),
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(call: Any) -> None:
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        call(F.group_norm, F.instance_norm, F.batch_norm)
    with pytest.raises(type(theirs.value), match=re.escape(str(theirs.value))):
        call(group_norm, instance_norm, batch_norm)
