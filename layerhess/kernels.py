"""Which of torch's code paths run while a model is analysed: those whose second derivative is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def plain_kernels(device: torch.device, model: nn.Module) -> Iterator[bool]:
    """MATH attention kernels, compiled code run eagerly, no inference-only fast paths, no TF32, no outer autocast.

    Yields:
        True if autocast was on.
    """
    autocast = torch.is_autocast_enabled(device.type)
    with ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_eager())
        stack.enter_context(_same_kernels())
        stack.enter_context(_full_precision(device, model))
        yield autocast


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled code eagerly: compiled backwards have no second derivative."""
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is None or "torch._dynamo" not in sys.modules:
        yield
        return
    with stance("force_eager"):
        yield


@contextmanager
def _same_kernels() -> Iterator[None]:
    """No inference-only fast path of torch's transformer layers: with and without gradients, one function."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _full_precision(device: torch.device, model: nn.Module) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        torch.backends.cudnn.enabled = False  # cuDNN's recurrent kernels have no second derivative
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled = before
