"""Which of torch's code paths run while a model is analysed: those whose second derivative is right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

AUTOCAST_OFF = "the caller's autocast is off during the analysis: the weights' own precision is used"
TF32_OFF = "TF32 and bfloat16 inside float32 products are off during the analysis: they would leave 10 or 7 of 23 bits"
FULL_PRECISION = ("ieee", "none")  # what a switch of torch.backends says where float32 is float32


@contextmanager
def plain_kernels(device: torch.device, model: nn.Module) -> Iterator[list[str]]:
    """MATH attention kernels, compiled code run eagerly, no inference-only fast paths, no TF32, no outer autocast.

    Yields:
        Sentences on what the caller had otherwise and the reader of a result should know.
    """
    autocast = torch.is_autocast_enabled(device.type)
    with ExitStack() as stack:
        if autocast:
            stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_eager())
        stack.enter_context(_same_kernels())
        coarse = stack.enter_context(_full_precision(device, model))
        yield [AUTOCAST_OFF] * autocast + [TF32_OFF] * coarse


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
def _full_precision(device: torch.device, model: nn.Module) -> Iterator[bool]:
    """float32 products with all of their 24 bits: no TF32, no bfloat16 inside; True if that changes anything."""
    with ExitStack() as stack:
        if device.type == "cuda" and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False  # cuDNN's recurrent kernels have no second derivative
        if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
            yield stack.enter_context(_without_tf32(device))
            return
        backends: Any = torch.backends
        cuda, cpu = backends.cudnn, backends.mkldnn
        if device.type == "cuda":
            above, here = [backends, cuda], [backends.cuda.matmul, cuda.conv, cuda.rnn]
        else:
            above, here = [backends, cpu], [cpu.matmul, cpu.conv, cpu.rnn]
        coarse = any(switch.fp32_precision not in FULL_PRECISION for switch in here)
        # What a switch inherits shows as its own: so those above it come first, and last again.
        for switch in [switch for switch in above if switch.fp32_precision != "none"]:
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "none"
        for switch in here:
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
            switch.fp32_precision = "ieee"
        yield coarse


@contextmanager
def _without_tf32(device: torch.device) -> Iterator[bool]:
    """The same by the older switches, which the newer ones refuse to be mixed with."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before, precision = (matmul.allow_tf32, cudnn.allow_tf32), torch.get_float32_matmul_precision()
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield any(before) if device.type == "cuda" else precision == "medium"
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        torch.set_float32_matmul_precision(precision)
