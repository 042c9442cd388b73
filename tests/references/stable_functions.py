"""Functions that saturate, without cancellation, so that float64 holds the derivatives of saturated ones too.

The derivatives of torch's own have differences such as 1 - p, which lose every digit where p is almost 1. Here softmax
compares all entries with the largest, which is a constant itself, and the others are made of exp(-|x|). Not so where a
loss is made of the rounded probabilities, and divides by the rounded 1 - p: there torch's own are (:class:`Head`).
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


def sigmoid(x: Tensor) -> Tensor:
    e = _decayed(x)
    return torch.where(x >= 0, 1.0, e) / (1.0 + e)


_tanh, _softmax = torch.tanh, Tensor.softmax


def tanh(x: Tensor) -> Tensor:
    e = _decayed(2.0 * x)
    large = torch.where(x >= 0, 1.0, -1.0) * (1.0 - e) / (1.0 + e)
    return torch.where(x.abs() < 1.0, _tanh(x.clamp(-1.0, 1.0)), large)


def silu(x: Tensor, inplace: bool = False) -> Tensor:
    return x * sigmoid(x)


def logsigmoid(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.zeros_like(x), x) - _decayed(x).log1p()


def _decayed(x: Tensor) -> Tensor:
    """exp(-|x|), whose derivative at 0 is one of its two."""
    return torch.where(x >= 0, -x, x).exp()


class Head(torch.nn.Module):
    """torch's own softmax."""

    def __init__(self, softmax: torch.nn.Softmax) -> None:
        super().__init__()
        self.dim = softmax.dim

    def forward(self, x: Tensor) -> Tensor:
        return _softmax(x, self.dim)


FORMS: tuple[tuple[Any, str, Any], ...] = (
    (Tensor, "softmax", softmax), (Tensor, "log_softmax", log_softmax), (F, "scaled_dot_product_attention", attention),
    (torch, "tanh", tanh), (Tensor, "tanh", tanh), (F, "silu", silu), (F, "logsigmoid", logsigmoid),
)  # fmt: skip


@contextmanager
def stable_functions() -> Iterator[None]:
    """The forms of this module instead of torch's, in plain code, modules and torch's own attention."""
    with ExitStack() as stack:
        for place, name, form in FORMS:
            stack.enter_context(patch.object(place, name, form))
        yield
