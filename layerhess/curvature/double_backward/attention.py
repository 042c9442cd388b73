"""Scaled dot-product attention of plain operations and of this room's softmax.

torch's kernels differentiate their softmax as p (g - p'g), in which a weight that is almost 1 has few digits left. In
float32 they stay, since a product costs a tenth less there and its rounding is measured against float64.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.softmax import softmax

TORCHS, SOFTMAX = F.scaled_dot_product_attention, F.softmax


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """``torch.nn.functional.scaled_dot_product_attention``; what draws, shares heads or is wrong is left to torch."""
    left = dropout_p != 0.0 or enable_gqa or (is_causal and attn_mask is not None) or query.dim() < 2
    if left or not query.dtype == key.dtype == value.dtype == torch.float64:
        shared = {"enable_gqa": True} if enable_gqa else {}
        return TORCHS(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **shared)
    size = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * size) @ key.transpose(-2, -1)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    if attn_mask is None:
        return softmax(scores, -1) @ value
    scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    blind = (scores.detach() == -math.inf).all(dim=-1, keepdim=True)  # such a row gives 0, as in torch
    return softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0) @ value


def multi_head_attention_forward(*args: Any, **kwargs: Any) -> Any:
    """torch's, which :class:`torch.nn.MultiheadAttention` calls, with this room's attention and softmax inside.

    A function mode does not see what a function of torch's calls itself. Meanwhile other threads see this room's too.
    """
    before = F.scaled_dot_product_attention, F.softmax
    if before != (TORCHS, SOFTMAX):  # somebody else's stand there, and are part of the model
        return F.multi_head_attention_forward(*args, **kwargs)
    F.scaled_dot_product_attention, F.softmax = scaled_dot_product_attention, softmax
    try:
        return F.multi_head_attention_forward(*args, **kwargs)
    finally:
        F.scaled_dot_product_attention, F.softmax = before
