"""GroupNorm and InstanceNorm as LayerNorm of the groups, laid out one after the other.

On the CPU torch ends the process where it differentiates GroupNorm in its bias alone and the channels are last.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from layerhess.curvature.double_backward.batch_norm import affine, batch_norm
from layerhess.curvature.double_backward.normalisation import LastDimensions, normalised
from layerhess.objective.kernels import in_layout_of


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``torch.nn.functional.group_norm``."""
    if input.ndim < 2 or not input.numel() or input.shape[1] % num_groups or input.numel() == num_groups:
        return F.group_norm(input, num_groups, weight, bias, eps)
    return affine(in_layout_of(input, _by_group(input, num_groups, eps)), weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.instance_norm``."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if input.ndim < 3 or not input.numel() or input[0, 0].numel() == 1:
        return F.instance_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    n, channels = input.shape[:2]
    flat = input.detach().reshape(n, channels, -1)
    if running_mean is not None:
        running_mean.lerp_(flat.mean(dim=2).mean(dim=0).to(running_mean), momentum)
    if running_var is not None:
        running_var.lerp_(flat.var(dim=2).mean(dim=0).to(running_var), momentum)
    return affine(_by_group(input, channels, eps), weight, bias)


def _by_group(x: Tensor, groups: int, eps: float) -> Tensor:
    """x, each group of channels of each example normalised alone; contiguous."""
    flat = x.reshape(len(x), groups, -1)
    return normalised(flat, LastDimensions(flat, flat.shape[2:], eps)).view(x.shape)
