"""BatchNorm in eval mode is an affine map; written as one, its second derivative costs a third."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class AffineBatchNorm(TorchFunctionMode):
    """Inside this context ``F.batch_norm(training=False)`` runs as ``x * scale + shift``: same function, same values.

    torch differentiates its BatchNorm kernel twice through a dozen elementwise operations over the activations even
    when the statistics are constants; of the affine map only a product and a sum are left.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def affine_batch_norm(model: nn.Module) -> AbstractContextManager[Any]:
    """The context to run a model's forward pass in: :class:`AffineBatchNorm` where that changes anything."""
    return AffineBatchNorm() if has_eval_batch_norm(model) else nullcontext()


def has_eval_batch_norm(model: nn.Module) -> bool:
    """True if a BatchNorm module of the model uses its running statistics now."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.training and module.running_mean is not None
        for module in model.modules()
    )


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
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
