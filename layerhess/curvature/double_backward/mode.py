"""A context in which torch's functions run in forms that cost less to differentiate twice."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from layerhess.curvature.double_backward.activations import gelu, silu
from layerhess.curvature.double_backward.batch_norm import batch_norm
from layerhess.curvature.double_backward.binary_cross_entropy import binary_cross_entropy
from layerhess.curvature.double_backward.convolution import conv1d, conv2d, conv3d
from layerhess.curvature.double_backward.layer_norm import layer_norm
from layerhess.curvature.double_backward.softmax import softmax

AT_ANY_ORDER: dict[Any, Any] = {
    F.batch_norm: batch_norm,
    F.binary_cross_entropy: binary_cross_entropy,
    F.conv1d: conv1d,
    F.conv2d: conv2d,
    F.conv3d: conv3d,
}
FORMS: dict[Any, Any] = {
    **AT_ANY_ORDER,
    F.layer_norm: layer_norm,
    F.gelu: gelu,
    F.silu: silu,
    F.softmax: softmax,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
}
EXACT = (torch.float32, torch.float64)  # in half precision torch's kernels compute in float32, and these would not


class Rewritten(TorchFunctionMode):
    """Inside this context calls of :data:`FORMS` run in their other form.

    With saved-tensor hooks (activation checkpointing), the forward pass may be repeated outside this context and must
    save the same tensors: then nothing is rewritten. Nor is anything inside transforms of torch.func or forward-mode
    differentiation, which the other forms do not support.

    Args:
        thrice: the result will be differentiated three times; only forms that are right at any order are then used.
    """

    def __init__(self, thrice: bool = False) -> None:
        super().__init__()
        self._forms = AT_ANY_ORDER if thrice else FORMS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        form = self._forms.get(func)
        if form is None or "out" in kwargs or not _may_be_rewritten(args[0] if args else kwargs.get("input")):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return form(*args, **kwargs)


def _may_be_rewritten(x: Any) -> bool:
    if type(x) not in (Tensor, torch.nn.Parameter) or x.dtype not in EXACT:
        return False
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    return top is not None and top(True) is None and not transformed
