"""Tells what a function runs inside: a transform of torch.func, forward mode, saved-tensor hooks, many backwards."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import disable_saved_tensors_hooks


def is_transformed() -> bool:
    """Whether torch.func transforms or forward-mode differentiation are under way."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def is_batched(gradient: Tensor) -> bool:
    """Whether a backward pass is one of many at once: a Function's result then has no graph, plain operations have."""
    known = getattr(torch._C._functorch, "is_legacy_batchedtensor", None)
    return torch._C._functorch.peek_interpreter_stack() is not None or (known is not None and known(gradient))


def saves_by_hooks() -> bool:
    """Whether saved-tensor hooks, such as those of activation checkpointing, are set.

    Torch says so in every version only by refusing to switch them off; the switch is back where it was afterwards.
    """
    try:
        with disable_saved_tensors_hooks("asked whether there are any"):
            return False
    except RuntimeError:
        return True
