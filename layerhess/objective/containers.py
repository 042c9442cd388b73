"""Walks through the objects that a batch is made of; all but the tensors stays as it is."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from numbers import Number
from typing import Any

import torch
import torch.utils._pytree
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

ROWS = (torch.sparse_coo, torch.sparse_csr)  # sparse layouts whose rows can be taken
On = Callable[[Tensor], Any]
Other = Callable[[Any], Any]
_REGISTERED: dict[Any, Any] = torch.utils._pytree.SUPPORTED_NODES


def tree_map(function: On, value: Any, other: Other = lambda leaf: leaf, *, own_to: bool = False) -> Any:
    """Apply ``function`` to every tensor in nested containers, and ``other`` to every other leaf.

    Plain tuples, lists, dicts and namedtuples are made anew. So are types registered with ``torch.utils._pytree``, by
    their registration. Other lists and mappings, dataclasses and objects with tensors as attributes are copied (no
    constructor runs), and their items replaced in the copy; what cannot be copied comes back as it is.

    Args:
        own_to: a type with a method ``to`` is a leaf, mappings excepted.
    """

    def again(item: Any) -> Any:
        return tree_map(function, item, other, own_to=own_to)

    kind = type(value)
    if isinstance(value, Tensor):
        return function(value)
    if kind is dict:
        return {key: again(item) for key, item in value.items()}
    if kind in (tuple, list):
        return kind(map(again, value))
    if isinstance(value, PackedSequence):  # the sizes of its steps stay on the CPU
        return value._replace(**{name: again(getattr(value, name)) for name in value._fields if name != "batch_sizes"})
    if not _opened(value) or (own_to and not isinstance(value, Mapping) and movable(value)):
        return other(value)
    if kind in _REGISTERED:
        children, context = _REGISTERED[kind].flatten_fn(value)
        return _REGISTERED[kind].unflatten_fn([again(child) for child in children], context)
    if isinstance(value, tuple):
        return _tuple(value, [again(item) for item in value])
    if isinstance(value, (set, frozenset)):
        return kind(map(again, value))
    return _copied(value, again)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers, in the order of :func:`tree_map`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [part for part in value if isinstance(part, Tensor) and part is not value.batch_sizes]
    return [tensor for item in _items(value) for tensor in tensors(item)] if _opened(value) else []


def outline(value: Any) -> str:
    """Everything about nested containers except the numbers in their tensors and those tensors' first dimension."""
    if isinstance(value, Tensor):
        return str((value.shape[1:], value.dtype, value.device.type))  # ranks have their own devices
    if not _opened(value):
        return repr(value)
    names = list(value) if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{names}{[outline(item) for item in _items(value)]}"


def movable(value: Any) -> bool:
    """It has a way of its own to be moved."""
    return callable(getattr(type(value), "to", None))


def is_namedtuple(value: Any) -> bool:
    """A tuple with names, without a way of its own to be moved."""
    return isinstance(value, tuple) and hasattr(type(value), "_fields") and not movable(value)


def obstacle(value: Any, sparse: bool = False) -> str:
    """What keeps a batch from being cut along dimension 0, in words; "" where nothing does.

    That is a sparse or nested tensor, a packed sequence, a set, an object with more attributes than its items, and a
    leaf that is neither number nor flag.

    Args:
        sparse: rows of sparse tensors are examples, which those of an adjacency matrix are not.
    """
    if isinstance(value, Tensor):
        return _obstacle_of_tensor(value, sparse)
    if value is None or isinstance(value, Number):
        return ""
    if isinstance(value, (PackedSequence, set, frozenset)) or not _opened(value):
        return f"a {type(value).__name__}"
    items, attributes = _items(value), _attributes(value)
    known = {id(item) for item in (*items, attributes.get("data"), None)}  # BatchEncoding keeps its items in data
    beside = [name for name, item in attributes.items() if name[:1] != "_" and id(item) not in known]
    if beside:
        return f"a {type(value).__name__} with more than its items ({', '.join(beside[:3])})"
    return next((found for item in items if (found := obstacle(item, sparse))), "")


def _obstacle_of_tensor(tensor: Tensor, sparse: bool) -> str:
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.ndim == 0:
        return "a tensor without dimensions"
    if tensor.layout == torch.strided or (sparse and tensor.layout in ROWS):
        return ""
    return f"a {str(tensor.layout).removeprefix('torch.')} tensor"


def rows(tensor: Tensor, index: slice | Tensor) -> Tensor:
    """Some rows of a tensor along dimension 0; sparse tensors keep their layout."""
    if isinstance(index, Tensor):
        index = index.to(tensor.device)
    if tensor.layout == torch.strided:
        return tensor[index]
    chosen = torch.arange(len(tensor), device=tensor.device)[index]
    if tensor.layout == torch.sparse_coo:
        return tensor.index_select(0, chosen)
    coordinates: Tensor = tensor.to_sparse(layout=torch.sparse_coo)
    return coordinates.index_select(0, chosen).to_sparse_csr()


def all_finite(tensor: Tensor) -> bool:
    """Whether a floating point tensor, sparse and nested ones included, holds neither NaN nor infinity."""
    if not tensor.is_floating_point():
        return True
    if tensor.is_nested or tensor.layout != torch.strided:
        try:
            tensor = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
        except RuntimeError:  # a nested tensor of another layout
            return all(all_finite(part) for part in tensor.unbind())
    return bool(torch.isfinite(tensor).all())


def bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor, as an array; of one on the CPU they are its own memory where it is contiguous."""
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if plain.stride(0) != 1:  # a single number is contiguous, whatever its stride
        plain = plain.clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).numpy() if plain.numel() else b""


def _opened(value: Any) -> bool:
    """Whether tensors are looked for inside: in containers, dataclasses, and objects that hold tensors themselves."""
    if isinstance(value, (torch.Size, type, torch.nn.Module)):
        return False
    if isinstance(value, (tuple, list, set, frozenset, Mapping)) or type(value) in _REGISTERED:
        return True
    return dataclasses.is_dataclass(value) or any(isinstance(item, Tensor) for item in _attributes(value).values())


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds beside its items, by name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return found
    return {**found, **own} if own is not value else found


def _slots(kind: type) -> list[str]:
    names = kind.__dict__.get("__slots__", ())
    return [name for name in ([names] if isinstance(names, str) else names) if name[:2] != "__"]


def _items(value: Any) -> list[Any]:
    if type(value) in _REGISTERED:
        return list(_REGISTERED[type(value)].flatten_fn(value)[0])
    if isinstance(value, Mapping):
        return [value[key] for key in value]
    return list(value) if isinstance(value, (tuple, list, set, frozenset)) else list(_attributes(value).values())


def _tuple(value: Any, items: list[Any]) -> Any:
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    try:
        made = tuple.__new__(type(value), items)  # no constructor of its own, which may take other arguments
    except TypeError:  # torch's named results
        return type(value)(items)
    if attributes := getattr(value, "__dict__", None):
        made.__dict__.update(attributes)
    return made


def _shallow(value: Any) -> Any:
    """``copy.copy``; of a dict whose ``__getattr__`` answers for every name, which Python 3.10 asks, without items."""
    try:
        return copy.copy(value)
    except Exception:
        if not isinstance(value, dict):
            raise
        made = type(value).__new__(type(value))
        object.__getattribute__(made, "__dict__").update(object.__getattribute__(value, "__dict__"))
        return made


def _copied(value: Any, again: Other) -> Any:
    """A copy with other items; ``value`` itself where it cannot be copied."""
    try:
        if isinstance(value, Mapping) and not isinstance(value, MutableMapping):
            return type(value)({key: again(value[key]) for key in value})  # type: ignore[call-arg]
        made = _shallow(value)
        if isinstance(value, MutableMapping):
            if isinstance(value, dict) and object.__getattribute__(value, "__dict__") is value:
                object.__setattr__(made, "__dict__", made)  # a dict that is its own attributes
            for key in list(value):
                made[key] = again(value[key])
        elif isinstance(value, list):
            made[:] = [again(item) for item in value]
        else:
            for name, item in _attributes(value).items():
                if (new := again(item)) is not item:
                    object.__setattr__(made, name, new)
    except Exception:  # user code: it may forbid copies, or changes
        return value
    return made if type(made) is type(value) else value
