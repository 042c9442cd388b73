"""Tells whether a function runs inside a transform of torch.func, forward mode or a batched backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether torch.func transforms or forward-mode differentiation are under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_batched(gradient: Tensor) -> bool:
    """Whether a backward pass is one of many at once: a Function's result then has no graph, plain operations have."""
    known = getattr(torch._C._functorch, "is_legacy_batchedtensor", None)
    return torch._C._functorch.peek_interpreter_stack() is not None or (known is not None and known(gradient))
