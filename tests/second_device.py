"""A second device on a machine that has none: tensors with values that say they are on meta, and mix with no others.

Torch itself sees the meta device: operations of tensors here and there fail as they do between two GPUs, `.to` and
`copy_` move values, and factories with `device=` make tensors there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

THERE = torch.device("meta")


class Far(Tensor):
    """A tensor on the second device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Far:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=THERE
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __getitem__(self, index: Any) -> Any:
        """Lists become tensors here: torch would make them there, past every mode, without values."""
        return super().__getitem__(tuple(map(_indices, index)) if isinstance(index, tuple) else _indices(index))

    def tolist(self) -> Any:
        """As a GPU's tensor gives it."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """In main memory: only where that is asked for."""
        if not force:
            raise TypeError("can't convert meta device type tensor to numpy")
        return self.held.numpy(force=True)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> Far:
        return Far(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class TwoDevices(TorchDispatchMode):
    """While it is active, tensors can be made on the second device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def moved_there(module: nn.Module) -> nn.Module:
    """The module itself, its parameters and floating point buffers on the second device."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                setattr(part, name, nn.Parameter(Far(parameter.detach())))
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.is_floating_point():
                part._buffers[name] = Far(buffer)
    return module


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.name()
    inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    far = [tensor for tensor in inputs if isinstance(tensor, Far)]
    if any(tensor.device == THERE and not isinstance(tensor, Far) for tensor in inputs):
        raise RuntimeError(f"a tensor of the second device without values, in {name}: torch.tensor(device=) makes them")
    kwargs = dict(kwargs)
    device = kwargs.pop("device", None)
    there = bool(far) if device is None else torch.device(device) == THERE
    if name.startswith("aten::copy_"):
        func(_held(args[0]), _held(args[1]), *args[2:])
        return args[0]
    if name.startswith("aten::_foreach_"):  # tensors of one list may lie apart, those of one place may not
        return _one_by_one(func, args, kwargs)
    by_index = name.startswith(("aten::index.", "aten::index_put_")) and isinstance(args[0], Far)  # indices: anywhere
    mixed = [t for t in (tree_flatten((args[0], args[2:]))[0] if by_index else inputs) if isinstance(t, Tensor)]
    if not name.startswith("aten::_to_copy") and far and any(t.ndim for t in mixed if not isinstance(t, Far)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two, in {name}")
    if device is not None and not name.startswith("aten::_to_copy"):
        kwargs["device"] = torch.device("cpu")
    made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if name.startswith("aten::_to_copy") and made is _held(args[0]):
        made = made.clone()
    if far and func._schema.is_mutable and isinstance(args[0], Far) and made is args[0].held:
        return args[0]
    return tree_map(lambda value: Far(value) if isinstance(value, Tensor) else value, made) if there else made


def _one_by_one(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    lists = [value for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)]
    for place in zip(*lists, strict=True):
        if len({isinstance(tensor, Far) for tensor in place}) > 1 and "copy" not in func.name():
            raise RuntimeError(f"Expected all tensors to be on the same device, but found two, in {func.name()}")
    made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if made is None:
        return None
    return [Far(part) if isinstance(given, Far) else part for part, given in zip(made, lists[0], strict=True)]


def _indices(index: Any) -> Any:
    return torch.tensor(index, dtype=torch.long) if isinstance(index, list) else index


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Far) else value
