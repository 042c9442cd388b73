"""Saved-tensor hooks are seen wherever they come from, and asking for them leaves torch as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from layerhess.curvature.double_backward.transforms import saves_by_hooks


def _same(tensor: Tensor) -> Tensor:
    return tensor


def test_hooks_are_seen_inside_and_not_outside() -> None:
    assert not saves_by_hooks()
    with saved_tensors_hooks(_same, _same):
        assert saves_by_hooks() and saves_by_hooks()
        with save_on_cpu():
            assert saves_by_hooks()
        assert saves_by_hooks()
    assert not saves_by_hooks()


def test_activation_checkpointing_is_seen_in_the_call_and_in_its_repetition() -> None:
    seen: list[bool] = []

    def square(x: Tensor) -> Tensor:
        seen.append(saves_by_hooks())
        return x * x

    x = torch.ones(3, requires_grad=True)
    checkpoint(square, x, use_reentrant=False).sum().backward()
    assert seen == [True, True] and not saves_by_hooks()


def test_hooks_that_are_there_go_on_and_may_be_set_afterwards() -> None:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    x = torch.full((2,), 3.0, requires_grad=True)
    with saved_tensors_hooks(pack, _same):
        saves_by_hooks()
        assert not packed  # nobody was asked to save anything
        (x * x).sum().backward()
    assert packed and torch.equal(x.grad, torch.full((2,), 6.0))  # type: ignore[arg-type]


def test_who_forbids_hooks_has_none_and_goes_on_forbidding_them() -> None:
    with disable_saved_tensors_hooks("none here"):
        assert not saves_by_hooks()
        with pytest.raises(RuntimeError, match="none here"), saved_tensors_hooks(_same, _same):
            pass
    found: list[bool] = []
    torch.func.grad(lambda x: found.append(saves_by_hooks()) or (x * x).sum())(torch.ones(2))
    assert found == [False]
    with saved_tensors_hooks(_same, _same):
        assert saves_by_hooks()
