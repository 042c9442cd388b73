"""Softmax and its logarithm without cancellation, so that float64 holds the derivatives of saturated ones too.

Torch's own have derivatives of the form p (g - p'g), which loses every digit of 1 - p where a probability is almost 1.
Here the largest entry is the reference that all others are compared with, and is a constant itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor


def _compared(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x - x_top, 0 at the top; exp of it, 1 at the top; the sum of the others' exponentials)."""
    top = x.detach().argmax(dim, keepdim=True)
    here = torch.zeros_like(x, dtype=torch.bool).scatter(dim, top, True)
    shift = torch.where(here, torch.zeros_like(x), x - x.gather(dim, top))
    e = torch.where(here, torch.ones_like(x), shift.exp())
    return shift, e, torch.where(here, torch.zeros_like(x), e).sum(dim, keepdim=True)


def softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    _, e, rest = _compared(x, dim)
    return e / (1.0 + rest)


def log_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    shift, _, rest = _compared(x, dim)
    return shift - rest.log1p()


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    **options: Any,
) -> Tensor:  # fmt: skip
    """``scaled_dot_product_attention``, written out."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if is_causal:
        hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    return softmax(scores, -1) @ v


@contextmanager
def stable_softmax() -> Iterator[None]:
    """The forms of this module instead of torch's, in plain code, modules and torch's own attention."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(Tensor, "softmax", softmax))
        stack.enter_context(patch.object(Tensor, "log_softmax", log_softmax))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        yield
