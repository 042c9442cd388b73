"""The user's model is sacred: a snapshot of all that an analysis could touch, put back bit by bit."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Run the body, then put back parameters, ``.grad``, buffers, mode, ``requires_grad``, hooks and RNG states.

    Gradient hooks (of parameters and full-backward hooks of modules) are set aside meanwhile: they change gradients
    without changing the loss, so products through them would not be products with its Hessian.
    """
    saved = Snapshot.take(model)
    try:
        saved.set_gradient_hooks_aside()
        yield
    finally:
        saved.put_back()


@dataclass
class _SavedTensor:
    tensor: Tensor
    data: Tensor
    version: int
    copy: Tensor
    grad: Tensor | None
    grad_copy: Tensor | None
    requires_grad: bool
    hooks: Any

    @classmethod
    def of(cls, tensor: Tensor) -> _SavedTensor:
        grad = tensor.grad if tensor.is_leaf else None
        return cls(
            tensor=tensor,
            data=tensor.data,
            version=tensor._version if not tensor.is_inference() else -1,
            copy=tensor.detach().clone(),
            grad=grad,
            grad_copy=None if grad is None else grad.detach().clone(),
            requires_grad=tensor.requires_grad,
            hooks=tensor._backward_hooks,
        )

    def put_back(self) -> None:
        tensor = self.tensor
        if tensor.data_ptr() != self.data.data_ptr() or tensor.dtype != self.data.dtype:
            tensor.data = self.data
        if self.version < 0 or tensor._version != self.version:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(self.copy)
        if not tensor.is_leaf:
            return
        if tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.grad is not self.grad:
            tensor.grad = self.grad
        if self.grad is not None and self.grad_copy is not None and not _same_bits(self.grad, self.grad_copy):
            with torch.no_grad():
                self.grad.copy_(self.grad_copy)
        if tensor._backward_hooks is not self.hooks:
            tensor._backward_hooks = self.hooks


@dataclass
class _SavedModule:
    module: nn.Module
    training: bool
    parameters: dict[str, Any]
    buffers: dict[str, Any]
    attributes: dict[str, Tensor]  # plain tensors, such as the weight that torch's old weight_norm leaves behind
    hooks: dict[str, dict[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _SavedModule:
        return cls(
            module=module,
            training=module.training,
            parameters=dict(module._parameters),
            buffers=dict(module._buffers),
            attributes={name: value for name, value in module.__dict__.items() if isinstance(value, Tensor)},
            hooks={name: dict(hooks) for name in _HOOKS if isinstance(hooks := getattr(module, name, None), dict)},
        )

    def put_back(self) -> None:
        module = self.module
        module.training = self.training
        module._parameters.update(self.parameters)
        module._buffers.update(self.buffers)
        for name in [name for name in module._buffers if name not in self.buffers]:
            del module._buffers[name]
        module.__dict__.update(self.attributes)
        for name, content in self.hooks.items():
            current = getattr(module, name)
            if list(current.items()) != list(content.items()):
                current.clear()
                current.update(content)


@dataclass
class Snapshot:
    """All that is put back; made by :meth:`take`, used by :func:`restored`."""

    tensors: list[_SavedTensor]
    modules: list[_SavedModule]
    rng: _RandomState

    @classmethod
    def take(cls, model: nn.Module) -> Snapshot:
        """Clone every parameter and buffer (one copy of the model in memory) and note the rest."""
        seen: dict[int, Tensor] = {}
        modules = []
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    seen[id(tensor)] = tensor
            modules.append(_SavedModule.of(module))
        return cls([_SavedTensor.of(tensor) for tensor in seen.values()], modules, _RandomState.take())

    def set_gradient_hooks_aside(self) -> None:
        """Take gradient hooks off; :meth:`put_back` brings them back."""
        for saved in self.tensors:
            if saved.hooks:
                saved.tensor._backward_hooks = None
        for saved_module in self.modules:
            saved_module.module._backward_hooks.clear()
            saved_module.module._backward_pre_hooks.clear()

    def put_back(self) -> None:
        """Restore everything; safe to call after any exception."""
        for module in self.modules:
            module.put_back()
        for saved in self.tensors:
            saved.put_back()
        self.rng.put_back()


@dataclass
class _RandomState:
    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    @classmethod
    def take(cls) -> _RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def put_back(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
