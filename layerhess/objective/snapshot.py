"""Takes a snapshot of the user's model and restores it bit by bit after an analysis."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from layerhess.objective.interrupts import STOPS, uninterrupted

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
NUDGE = 0.1  # relative to a tensor's root mean square
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Run the body, then put back parameters, ``.grad``, buffers, mode, ``requires_grad``, hooks and RNG states.

    The modules' other attributes are restored too: plain tensors (such as the weight that torch's old weight_norm
    leaves behind), counters, caches made in a forward pass. Of lists and dicts the items are restored, but not the
    content of the items. During the body, gradient hooks (of parameters, and full-backward hooks of modules) are
    removed: they change gradients without changing the loss, so products through them would not be products with its
    Hessian. Tensors made in ``inference_mode`` are replaced by clones, since autograd cannot use them.
    """
    saved = Snapshot.take(model)
    try:
        saved.set_gradient_hooks_aside()
        saved.replace_inference_tensors()
        yield
    finally:
        try:
            with uninterrupted():
                saved.put_back()
        except STOPS:  # pressed just before or while interrupts were deferred
            with uninterrupted():
                saved.put_back()
            raise


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Run the body, then put back the random states of torch, NumPy and Python."""
    state = RandomState.take()
    try:
        yield
    finally:
        state.put_back()


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Run the body, then put back what the modules hold: counters, caches, modes; not the values of their tensors."""
    saved = [_SavedModule.of(module) for module in model.modules()]
    try:
        yield
    finally:
        for module in saved:
            module.put_back()


@contextmanager
def kept_values(parameters: Iterable[Tensor], values: Iterable[Tensor] | None = None) -> Iterator[list[Tensor]]:
    """Run the body, which may move the parameters; then put the same bits back, before any Ctrl-C takes effect.

    Args:
        values: what the parameters are, where that is kept elsewhere: of a copy, the originals. Nothing is cloned then.

    Yields:
        The values.
    """
    tensors: list[Tensor] = list(parameters)
    values = [tensor.detach().clone() for tensor in tensors] if values is None else [v.detach() for v in values]
    try:
        yield values
    finally:
        with uninterrupted(), torch.no_grad():
            if tensors:
                torch._foreach_copy_(tensors, values)  # as torch's optimisers: one call for all of them


@contextmanager
def moved(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Run the body with every parameter moved by a tenth of its size, zero ones too; then put the same bits back.

    What holds at some weights only, such as equal losses of all examples behind a head of zeros, does not hold there.
    """
    tensors = list(parameters)
    with kept_values(tensors):
        with torch.no_grad():
            for place, tensor in enumerate(tensors):
                size = NUDGE * float(tensor.float().square().mean().sqrt())
                if size == 0.0:  # such weights would give outputs of size 1/2
                    size = 0.5 / (tensor.numel() / len(tensor)) ** 0.5 if tensor.ndim > 1 else NUDGE
                ramp = torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device)
                tensor.add_((1.7 * ramp + place).sin().view(tensor.shape).to(tensor.dtype), alpha=size)
        yield


@dataclass
class _SavedTensor:
    tensor: Tensor
    data: Tensor
    version: int
    copy: Tensor
    grad: Tensor | None
    grad_copy: Tensor | None
    requires_grad: bool
    leaf: bool
    hooks: Any
    accumulation_hooks: Any

    @classmethod
    def of(cls, tensor: Tensor) -> _SavedTensor:
        grad = tensor.grad if tensor.is_leaf else None
        return cls(
            tensor=tensor,
            data=tensor.data,
            version=version_of(tensor),
            copy=tensor.detach().clone(),
            grad=grad,
            grad_copy=None if grad is None else grad.detach().clone(),
            requires_grad=tensor.requires_grad,
            leaf=tensor.is_leaf,
            hooks=tensor._backward_hooks,
            accumulation_hooks=getattr(tensor, "_post_accumulate_grad_hooks", None),
        )

    def put_back(self) -> None:
        tensor = self.tensor
        if _storage(tensor) != _storage(self.data) or tensor.dtype != self.data.dtype:
            tensor.data = self.data
        # Content is compared as well: writing through .data does not count as a new version.
        if not _same_bits(tensor, self.copy, unchanged=version_of(tensor) == self.version):
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(self.copy)
        if self.leaf and not tensor.is_leaf:  # the model's code has written something with a graph into it
            tensor.detach_()
        if not tensor.is_leaf:
            return
        if tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.grad is not self.grad:
            tensor.grad = self.grad
        if self.grad is not None and self.grad_copy is not None and not _same_bits(self.grad, self.grad_copy):
            with torch.inference_mode(self.grad.is_inference()), torch.no_grad():
                self.grad.copy_(self.grad_copy)
        if tensor._backward_hooks is not self.hooks:
            tensor._backward_hooks = self.hooks
        if getattr(tensor, "_post_accumulate_grad_hooks", None) is not self.accumulation_hooks:
            tensor._post_accumulate_grad_hooks = self.accumulation_hooks


@dataclass
class _SavedModule:
    """A module's attributes, and the items of those that are containers (also its parameters, buffers and hooks)."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: list[tuple[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _SavedModule:
        attributes = dict(module.__dict__)
        contents = [(value, copy.copy(value)) for value in attributes.values() if type(value) in _CONTAINERS]
        return cls(module, attributes, contents)

    def put_back(self) -> None:
        for container, content in self.contents:
            if not _same_items(container, content):
                container.clear()
                getattr(container, "extend" if isinstance(container, (list, deque)) else "update")(content)
        current = self.module.__dict__
        for name in [name for name in current if name not in self.attributes]:
            del current[name]
        current.update(self.attributes)


@dataclass
class Snapshot:
    """All that is restored; made by :meth:`take`, used by :func:`restored`."""

    tensors: list[_SavedTensor]
    modules: list[_SavedModule]
    training: list[tuple[nn.Module, bool]]
    rng: RandomState

    @classmethod
    def take(cls, model: nn.Module) -> Snapshot:
        """Clone every parameter and buffer (one copy of the model in memory) and record the rest."""
        seen: dict[int, Tensor] = {}
        modules = list(model.modules())
        for module in modules:
            for holder in _holders(module):
                seen.update({id(tensor): tensor for tensor in holder.values() if isinstance(tensor, Tensor)})
        return cls(
            tensors=[_SavedTensor.of(tensor) for tensor in seen.values()],
            modules=[_SavedModule.of(module) for module in modules],
            training=[(module, module.training) for module in modules],
            rng=RandomState.take(),
        )

    def set_gradient_hooks_aside(self) -> None:
        """Remove gradient hooks; :meth:`put_back` restores them."""
        for saved in self.tensors:
            if saved.hooks:
                saved.tensor._backward_hooks = None
            if saved.accumulation_hooks:
                saved.tensor._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        for saved_module in self.modules:
            saved_module.module._backward_hooks.clear()
            saved_module.module._backward_pre_hooks.clear()

    def replace_inference_tensors(self) -> None:
        """Replace tensors made in ``inference_mode`` by clones; :meth:`put_back` restores the tensors."""
        clones: dict[int, Tensor] = {}
        for saved in self.modules:
            for holder in _holders(saved.module):
                for name, tensor in list(holder.items()):
                    if isinstance(tensor, Tensor) and tensor.is_inference():
                        if id(tensor) not in clones:
                            clone = tensor.clone()
                            is_parameter = isinstance(tensor, nn.Parameter)
                            clones[id(tensor)] = nn.Parameter(clone, requires_grad=False) if is_parameter else clone
                        holder[name] = clones[id(tensor)]

    def put_back(self) -> None:
        """Restore everything; safe to call after any exception, and more than once."""
        for module in self.modules:
            module.put_back()
        for owner, training in self.training:
            if owner.training != training:  # scripted modules keep it elsewhere
                owner.training = training
        for saved in self.tensors:
            saved.put_back()
        self.rng.put_back()


@dataclass
class RandomState:
    """The random states of torch, NumPy and Python."""

    cpu: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    @classmethod
    def take(cls) -> RandomState:
        """As they are now."""
        return cls(torch.get_rng_state(), _cuda_states(), np.random.get_state(), random.getstate())

    def put_back(self) -> None:
        """Make them what they were."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # only since then: as they began
            for generator in torch.cuda.default_generators:
                generator.manual_seed(generator.initial_seed())
        np.random.set_state(self.numpy)
        random.setstate(self.python)


def random_states() -> Hashable:
    """All random states as one value: it differs before and after a random number was drawn."""
    legacy: Any = np.random.get_state()
    generators = [state.numpy().tobytes() for state in (torch.get_rng_state(), *_cuda_states())]
    return (*generators, legacy[1].tobytes(), *legacy[2:], random.getstate())


def _cuda_states() -> list[Tensor]:
    """Of all GPUs, where one is in use: to ask whether there are any would load a library at every product."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def version_of(tensor: Tensor) -> int:
    """How often the tensor was changed in place; -1 where torch does not count (``inference_mode``)."""
    return -1 if tensor.is_inference() else tensor._version


def _holders(module: nn.Module) -> tuple[MutableMapping[str, Any], ...]:
    return module._parameters, module._buffers, module.__dict__


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # sparse and other tensors without storage of their own
        return 0


def _same_items(container: Any, content: Any) -> bool:
    if isinstance(container, set):
        return bool(container == content)
    if len(container) != len(content):
        return False
    if isinstance(container, dict):
        pairs = zip(container.items(), content.items(), strict=True)
        return all(key == old_key and value is old for (key, value), (old_key, old) in pairs)
    return all(value is old for value, old in zip(container, content, strict=True))


def _same_bits(a: Tensor, b: Tensor, *, unchanged: bool = False) -> bool:
    """Equal to the last bit, the sign of zero and NaN included; where bits cannot be read, ``unchanged``."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        a, b = (torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in (a, b))
        bits = _BITS[a.element_size()]
        return bool(torch.equal(a.view(bits), b.view(bits)))
    except (RuntimeError, NotImplementedError):  # sparse, meta, quantized: only the version count can tell
        return unchanged
