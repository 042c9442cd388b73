"""Marks tensors that must not be differentiated again: doing so raises an error instead of giving a silent zero.

torch's ``once_differentiable`` does not help here: ``torch.autograd.grad`` walks towards its inputs and misses it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

AGAIN = "differentiated a third time"


class _Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(f"a function that is known to the second derivative only was {AGAIN}")


def is_batched(gradient: Tensor) -> bool:
    """Whether a backward pass is one of many at once: a Function's result then has no graph, plain operations have."""
    known = getattr(torch._C._functorch, "is_legacy_batchedtensor", None)
    return torch._C._functorch.peek_interpreter_stack() is not None or (known is not None and known(gradient))


def last(value: Tensor, *sources: Tensor) -> Tensor:
    """``value``; its derivative in the ``sources`` it was computed from is an error."""
    if not torch.is_grad_enabled():
        return value
    made: Tensor = _Last.apply(value.detach(), *sources)  # type: ignore[no-untyped-call]
    return made
