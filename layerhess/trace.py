"""Which module does what: one watched forward pass, so that refusals can name the module to look at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from layerhess.batches import tensors
from layerhess.objective import Objective

RANDOM = {
    "dropout", "dropout_", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout", "dropout1d",
    "dropout2d", "dropout3d", "rrelu", "rand", "randn", "rand_like", "randn_like", "randint", "bernoulli", "bernoulli_",
    "normal", "normal_", "uniform_", "multinomial", "gumbel_softmax", "randperm",
}  # fmt: skip
ONCE_DIFFERENTIABLE = {"embedding_bag", "cdist", "ctc_loss", "pdist", "grid_sample", "affine_grid"}
KINKS = (
    "Relu", "Threshold", "Hardtanh", "HardTanh", "Clamp", "Abs", "MaxPool", "Max", "Min", "Amax", "Amin", "Maximum",
    "Minimum", "Hardswish", "Hardsigmoid", "Prelu", "Rrelu", "Elu", "Sort", "Topk", "Median", "SmoothL1", "Huber",
    "Softshrink", "Hardshrink", "MultiMargin", "MultilabelMargin", "L1Loss", "Round", "Floor", "Ceil", "Sign",
)  # fmt: skip


@dataclass
class Trace:
    """What one forward pass did.

    Attributes:
        calls: (module name, torch function name) in order, "" being the root or the loss.
        without_grad: modules that ran with gradients off although they were on outside (reentrant checkpointing).
        non_finite: first module whose output has a NaN or an infinity, or "".
        nodes: names of the autograd nodes behind the loss. coarsest: the coarsest floating dtype among them.
    """

    calls: list[tuple[str, str]] = field(default_factory=list)
    without_grad: list[str] = field(default_factory=list)
    non_finite: str = ""
    nodes: set[str] = field(default_factory=set)
    coarsest: torch.dtype = torch.float64
    value: float = math.nan

    def modules_calling(self, names: set[str]) -> list[str]:
        """Modules that called one of the functions, each as "name (function)"."""
        return list(dict.fromkeys(f"{module or 'the loss'} ({call})" for module, call in self.calls if call in names))

    @property
    def attention(self) -> bool:
        """Scaled-dot-product attention was called."""
        return any(call == "scaled_dot_product_attention" for _, call in self.calls)

    @property
    def smooth(self) -> bool:
        """No autograd node with a kink (ReLU, max pooling, ...) stands behind the loss."""
        return not any(node.startswith(KINKS) for node in self.nodes)


def trace(objective: Objective, batch: Any) -> Trace:
    """Watch one forward pass on a prepared batch (in session, gradients on).

    The watching hooks are global ones of torch, not the model's own, and are gone afterwards. An exception of the
    model or the loss is raised as it is.
    """
    found = Trace()
    with _watching(objective.model, found):
        loss, _ = objective.terms(batch)
    found.value = float(loss.detach())
    found.coarsest = objective.dtype
    for node in _walk(loss.grad_fn):
        found.nodes.add(node.name().rpartition("::")[2])
        for meta in getattr(node, "_input_metadata", ()):
            if meta.dtype.is_floating_point and torch.finfo(meta.dtype).eps > torch.finfo(found.coarsest).eps:
                found.coarsest = meta.dtype
    return found


def non_finite_weight(objective: Objective) -> str:
    """Name of the first parameter or buffer that holds a NaN or an infinity, or ""."""
    for name, tensor in (*objective.model.named_parameters(), *objective.model.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return ""


class _Calls(TorchFunctionMode):
    def __init__(self, stack: list[str], found: Trace) -> None:
        super().__init__()
        self._stack, self._found = stack, found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._found.calls.append((self._stack[-1] if self._stack else "", getattr(func, "__name__", str(func))))
        return func(*args, **(kwargs or {}))


@contextmanager
def _watching(model: nn.Module, found: Trace) -> Iterator[None]:
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = []

    def before(module: nn.Module, inputs: Any) -> None:
        name = names.get(id(module), stack[-1] if stack else "")
        stack.append(name)
        if not torch.is_grad_enabled() and not any(name.startswith(outer) for outer in found.without_grad):
            found.without_grad.append(name)

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if stack:
            stack.pop()
        if not found.non_finite and any(_bad(tensor) for tensor in tensors(output)):
            found.non_finite = names.get(id(module), "") or type(module).__name__

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        with _Calls(stack, found):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _bad(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _walk(root: Any) -> Iterator[Any]:
    seen, todo = set(), [root]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(following for following, _ in node.next_functions)
