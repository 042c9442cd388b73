"""A context in which torch's functions run in forms that cost less to differentiate twice, or are right at all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from layerhess.curvature.autograd_graph import walk
from layerhess.curvature.double_backward.activations import gelu, logsigmoid, silu, tanh
from layerhess.curvature.double_backward.attention import (
    multi_head_attention_forward,
    scaled_dot_product_attention,
)
from layerhess.curvature.double_backward.batch_norm import batch_norm
from layerhess.curvature.double_backward.binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
)
from layerhess.curvature.double_backward.convolution import conv1d, conv2d, conv3d
from layerhess.curvature.double_backward.cross_entropy import cross_entropy
from layerhess.curvature.double_backward.group_norm import group_norm, instance_norm
from layerhess.curvature.double_backward.layer_norm import layer_norm
from layerhess.curvature.double_backward.log_softmax import log_softmax
from layerhess.curvature.double_backward.softmax import softmax
from layerhess.curvature.double_backward.transforms import is_transformed, saves_by_hooks
from layerhess.errors import InputError
from layerhess.objective.torch_version import FAULTS

NORMS: dict[Any, Any] = {
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
}
FORMS: dict[Any, Any] = {
    **NORMS,
    F.binary_cross_entropy: binary_cross_entropy,
    F.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
    F.cross_entropy: cross_entropy,
    F.conv1d: conv1d,
    F.conv2d: conv2d,
    F.conv3d: conv3d,
    F.gelu: gelu,
    F.silu: silu,
    F.logsigmoid: logsigmoid,
    F.tanh: tanh,
    torch.tanh: tanh,
    Tensor.tanh: tanh,
    F.log_softmax: log_softmax,
    torch.log_softmax: log_softmax,
    Tensor.log_softmax: log_softmax,
    F.multi_head_attention_forward: multi_head_attention_forward,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    F.softmax: softmax,
    torch.softmax: softmax,
    Tensor.softmax: softmax,
}
DIFFERENTIATION = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})  # torch.func calls them
WRONG_AGAIN = tuple(node for fault in FAULTS for node in fault.nodes)
EXACT = (torch.float32, torch.float64)  # in half precision torch's kernels compute in float32, and these would not


class Rewritten(TorchFunctionMode):
    """Inside this context calls of :data:`FORMS` run in their other form; all are right at any order.

    With saved-tensor hooks (activation checkpointing), the forward pass may be repeated outside this context and must
    save the same tensors: then nothing is rewritten. Inside transforms of torch.func and forward-mode differentiation
    only normalisations are, by plain operations: torch's own have wrong third derivatives, and a wrong second one by
    reverse over forward.

    Attributes:
        differentiated: something inside was differentiated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.differentiated = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.differentiated |= func in DIFFERENTIATION
        form = FORMS.get(func)
        if (
            form is None
            or "out" in kwargs
            or not _may_be_rewritten(args[0] if args else kwargs.get("input", kwargs.get("query")))
        ):
            return func(*args, **kwargs)
        if func not in NORMS and is_transformed():
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return form(*args, **kwargs)

    def refuse_wrong(self, loss: Tensor) -> None:
        """Refuse a loss that differentiates through torch's own norms: their third derivative is wrong.

        Raises:
            InputError: naming the norm.
        """
        if not self.differentiated:
            return
        for node in walk([loss.grad_fn]):
            kind = node.name()
            if kind.startswith(WRONG_AGAIN) and getattr(node, "_saved_train", True):
                norm = "LayerNorm" if "Layer" in kind else "BatchNorm or InstanceNorm"
                raise InputError(
                    f"the loss differentiates the network through {norm}, whose third derivative in torch is wrong",
                    where=f"a {norm} in half precision, TorchScript or activation checkpointing",
                    what_to_do="use float32 or float64, plain modules, and no checkpointing: a right form is used then",
                )


def _may_be_rewritten(x: Any) -> bool:
    if type(x) not in (Tensor, torch.nn.Parameter) or x.dtype not in EXACT:
        return False
    return not saves_by_hooks()
