"""BatchNorm in eval mode as an affine map, whose second derivative costs a third of that of torch's kernel.

torch differentiates its BatchNorm kernel twice through a dozen elementwise operations over the activations even when
the statistics are constants; of the affine map only a product and a sum are left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm``."""
    if training or running_mean is None or running_var is None or input.dtype != running_var.dtype:
        with torch._C.DisableTorchFunctionSubclass():
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))
