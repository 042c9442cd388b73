"""BatchNorm, cheap and right to differentiate again: with fixed statistics an affine map, else :class:`AllButChannels`.

torch differentiates its kernel for fixed statistics twice through a dozen elementwise operations over the activations;
of the affine map only a product and a sum are left.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.normalisation import AllButChannels, normalised


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
    fixed = not training and running_mean is not None and running_var is not None
    usual = input.ndim > 1 and all(t is None or t.dtype == input.dtype for t in (running_mean, running_var))
    if usual and training and input.numel() > input.shape[1]:
        return affine(normalised(input, AllButChannels(input, eps, running_mean, running_var, momentum)), weight, bias)
    if not usual or not fixed:
        with torch._C.DisableTorchFunctionSubclass():
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    assert running_mean is not None and running_var is not None
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


def affine(normal: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """weight * normal + bias, both along dimension 1."""
    shape = (1, -1) + (1,) * (normal.ndim - 2)
    if weight is None:
        return normal if bias is None else normal + bias.view(shape)
    if bias is None:
        return normal * weight.view(shape)
    return torch.addcmul(bias.view(shape), normal, weight.view(shape))
