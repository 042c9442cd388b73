"""LayerNorm, cheap and right to differentiate again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from layerhess.curvature.double_backward.normalisation import LastDimensions, normalised


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.layer_norm``."""
    normal = normalised(input, LastDimensions(input, normalized_shape, eps))
    if weight is not None:
        return normal * weight if bias is None else torch.addcmul(bias, normal, weight)
    return normal if bias is None else normal + bias
