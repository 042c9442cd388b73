"""Hands the inputs of a batch to the model, as its forward takes them: by name, by position, or as one object."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from layerhess.errors import InputError
from layerhess.objective.batches import is_mapping
from layerhess.objective.containers import is_namedtuple, tensors

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def call(model: nn.Module, inputs: Any, target: Any = None, readings: set[str] | None = None) -> Any:
    """The model's output for the inputs of a batch.

    A mapping goes in by name, without the keys that forward does not name; a plain tuple or list by position; where
    forward has no place for that, and for any other type, the inputs go in as the one object that they are. So does a
    list of tensors of different sizes, one for each target, where forward would take it either way.

    Args:
        target: what the output is to be compared with. readings: how such lists of this loss reached it before.

    Raises:
        InputError: forward needs an argument that a mapping has no key for; lists of one loss would reach it both ways.
    """
    signature = _signature(model)
    if is_mapping(inputs):
        named = accepted(model, inputs)
        if signature is None or (named and _binds(signature, (), named)):
            return model(**named)
        if _binds(signature, (inputs,)):
            return model(inputs)
        raise InputError(
            f"the model's forward{_takes(signature)} cannot be called with the keys of a batch: {listed(inputs)}",
            where=f"batches of type {type(inputs).__name__}",
            what_to_do="give the keys the names of forward's arguments, or use lh.batch_loss(fn) with "
            "fn(model, batch) -> (loss_sum, count), and call the model there",
        )
    if type(inputs) in (tuple, list) or is_namedtuple(inputs):
        if signature is None or not _binds(signature, (inputs,)):
            return model(*inputs)
        if _binds(signature, tuple(inputs)):
            whole = _one_object(signature, inputs, target)
            _refuse_both_ways(readings, "as one list" if whole else "by position", inputs)
            return model(inputs) if whole else model(*inputs)
    return model(inputs)


def _refuse_both_ways(readings: set[str] | None, reading: str, inputs: Any) -> None:
    """Sizes tell how forward is to be called, and by chance they may tell otherwise in another batch."""
    if readings is None or len(inputs) == 1:
        return
    readings.add(reading)
    if len(readings) > 1:
        raise InputError(
            "the inputs of some batches would reach the model's forward by position, those of others as one list",
            where=f"a batch with {len(inputs)} inputs, {kind(inputs, 1)}",
            what_to_do="use lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count), and call the model there",
        )


def accepted(model: nn.Module, batch: Any) -> dict[str, Any]:
    """A mapping as keyword arguments, without the keys that forward does not name; all, if it takes any."""
    left_out = set(unnamed(model, batch))
    return {key: batch[key] for key in batch.keys() if key not in left_out}  # noqa: SIM118, it may only look like a mapping


def unnamed(model: nn.Module, batch: Any) -> list[str]:
    """The keys of a mapping that forward does not name; if it takes any beside named ones, those that hold texts."""
    signature = _signature(model)
    if signature is None:
        return []
    keys = [key for key in batch.keys() if key not in signature.parameters]  # noqa: SIM118
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return keys
    return [key for key in keys if _is_text(batch[key])] if POSITIONAL[1] in kinds else []


def without_unnamed(model: nn.Module, batch: Any) -> tuple[Any, str]:
    """A batch without the keys that forward does not name, and a sentence that names them; "labels" stay."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    inputs = batch[0] if pair else batch
    if not is_mapping(inputs) or not _binds(_signature(model), (), accepted(model, inputs)):
        return batch, ""
    left_out = [key for key in unnamed(model, inputs) if pair or key != "labels"]
    if not left_out:
        return batch, ""
    kept = {key: inputs[key] for key in inputs.keys() if key not in left_out}  # noqa: SIM118
    note = f"keys of the batches that the model's forward does not name are not passed to it: {listed(left_out)}"
    return ((kept, batch[1]) if pair else kept), note


def refused(model: nn.Module, batch: Any, where: str, error: Exception, *, own_call: bool) -> InputError | None:
    """The refusal for an exception of the first forward pass that the form of the batch explains; else None.

    Args:
        own_call: a function of the user's calls the model, and knows what its batches are.
    """
    own = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    odd = [t.dtype for t in tensors(batch) if t.is_floating_point() and t.dtype not in own]
    said = (str(error) or type(error).__name__).splitlines()[0]
    if odd and isinstance(error, RuntimeError) and re.search("dtype|scalar type|should be the same", said):
        return InputError(
            f"a batch has {_named(odd[0])} tensors, and the model's weights are {' and '.join(map(_named, own))}: "
            f"{said[:120]}",
            where=where,
            what_to_do=f"give both one dtype, for example with x.to(torch.{_named(min(own, key=str))})",
        )
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch
    plain = all(isinstance(item, Tensor) for item in (inputs if isinstance(inputs, (tuple, list)) else [inputs]))
    if own_call or plain or not isinstance(error, (TypeError, AttributeError)) or not _inside(model, error):
        return None
    keys = [key for key in unnamed(model, inputs) if key != "labels"] if is_mapping(inputs) else []
    if keys:
        names = list(inspect.signature(model.forward).parameters)
        return InputError(
            f"the model's forward({', '.join(names)}) was given the whole {type(inputs).__name__}, since it has no "
            f"arguments of the names {listed(keys)}: {said[:100]}",
            where=where,
            what_to_do=f"name the key {names[0]!r} instead, or give the tensor itself: (x, target); or use "
            "lh.batch_loss(fn) with fn(model, batch) -> (loss_sum, count)",
        )
    return InputError(
        f"the model's forward does not take the inputs of a batch, {kind(inputs, 1)}: {said[:120]}",
        where=where,
        what_to_do="make a batch (inputs, target), where the inputs are a tensor (torch.tensor(...)), a tuple of "
        "tensors, or a dict by the names of forward's arguments; or use lh.batch_loss(fn)",
    )


def described(model: nn.Module, batch: Any, where: str) -> str:
    """A sentence for an exception of the model's forward pass: which batch, what it is, and what forward takes."""
    takes = f"{type(model).__name__}.forward{_takes(_signature(model))}"
    return f"This came from {where} = {kind(batch)}; the model's own is {takes}."


def _inside(model: nn.Module, error: BaseException) -> bool:
    """Whether the call of the model raised it, and not the loss."""
    modules = {id(module) for module in model.modules()}
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(id(frame.f_locals.get("self")) in modules for frame in frames)


def kind(value: Any, depth: int = 3) -> str:
    """The type of a value; of tensors also shape and dtype, of containers what is inside."""
    if isinstance(value, Tensor):
        layout = "" if str(value.layout) == "torch.strided" else f" {str(value.layout).removeprefix('torch.')}"
        return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}{layout}"
    name = type(value).__name__
    if depth and isinstance(value, Mapping):
        return f"{name}({_cut([f'{key}: {kind(value[key], depth - 1)}' for key in value.keys()])})"  # noqa: SIM118
    if depth and isinstance(value, (tuple, list)):
        return f"{name}({_cut([kind(item, depth - 1) for item in value])})"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} {tuple(value.shape)} of {value.dtype}"
    return name


def _is_text(value: Any) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, (str, bytes))


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cut(parts: list[str]) -> str:
    return ", ".join(parts[:6]) + (f", ... {len(parts) - 6} more" if len(parts) > 6 else "")


def listed(keys: Any) -> str:
    """Some keys in words."""
    return _cut([repr(key) for key in keys])


def _one_object(signature: inspect.Signature, inputs: Any, target: Any) -> bool:
    """Whether inputs that forward would take either way are one argument."""
    if is_namedtuple(inputs):
        needed = [p for p in signature.parameters.values() if p.kind in POSITIONAL and p.default is p.empty]
        return len(needed) == 1 and len(inputs) > 1 and not set(inputs._fields) <= signature.parameters.keys()
    if not all(isinstance(item, Tensor) and item.ndim for item in inputs):
        return False
    targets = tensors(target)
    examples = len(targets[0]) if targets and targets[0].ndim else None
    return examples == len(inputs) and any(len(item) != examples for item in inputs)


def _signature(model: nn.Module) -> inspect.Signature | None:
    """What forward takes; None where that cannot be known."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):
        return None


def _takes(signature: inspect.Signature | None) -> str:
    """The names of its parameters, without annotations."""
    if signature is None:
        return "(...)"
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [
        f"{stars.get(p.kind, '')}{p.name}" + ("" if p.default is p.empty else "=...")
        for p in signature.parameters.values()
    ]
    return f"({_cut(names)})"


def _binds(signature: inspect.Signature | None, args: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> bool:
    if signature is None:
        return True
    try:
        signature.bind(*args, **(named or {}))
    except TypeError:
        return False
    return True
