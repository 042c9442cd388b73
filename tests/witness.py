"""Was the model touched? A record of all its state, the random states included, that must be the same afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerhess as lh


def bits(tensor: Tensor | None) -> Any:
    """Shape, dtype and content, to the last bit: NaN and the sign of zero count."""
    if tensor is None:
        return None
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    if plain.is_inference():
        plain = plain.clone()
    raw = plain.cpu().reshape(-1).contiguous()
    return tuple(plain.shape), plain.dtype, raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""


def random_states() -> tuple[Any, ...]:
    """The global random states of torch, NumPy and Python."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), (kind, keys.tobytes(), *rest), random.getstate()


def record(model: nn.Module) -> dict[str, Any]:
    """Everything about the model that an analysis could change, identities of tensors and hooks included."""
    found: dict[str, Any] = {"random states": random_states()}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            key = f"{path}.{name}"
            if isinstance(value, Tensor):
                found[key] = (id(value), bits(value))
            elif isinstance(value, dict):
                found[key] = (id(value), [(k, id(v)) for k, v in value.items()])
            elif isinstance(value, list):
                found[key] = (id(value), [id(v) for v in value])
            else:
                found[key] = id(value) if callable(value) else repr(value)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                key = f"{path}.{name}"
                hooks = None if tensor._backward_hooks is None else [*map(id, tensor._backward_hooks.values())]
                found[f"value of {key}"] = bits(tensor)
                found[f"kind of {key}"] = (id(tensor), tensor.requires_grad, tensor.device, hooks)
                if tensor.is_leaf:
                    found[f"gradient of {key}"] = (id(tensor.grad), bits(tensor.grad))
    return found


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """The model and the random states are the same to the last bit after the body, however that ends."""
    before = record(model)
    try:
        yield
    finally:
        after = record(model)
        changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        assert not changed, f"changed: {changed}"


@contextlib.contextmanager
def refused(model: nn.Module | None, *matches: str) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The body is refused with what, where and what to do; each of ``matches`` is said; the model is untouched."""
    with contextlib.ExitStack() as stack:
        if model is not None:
            stack.enter_context(untouched(model))
        caught = stack.enter_context(pytest.raises((lh.InputError, lh.CheckError)))
        yield caught
    error = caught.value
    assert error.message and error.where and error.what_to_do
    assert isinstance(error, (ValueError, RuntimeError))
    said = str(error).lower()
    for match in matches:
        assert match.lower() in said, f"{match!r} is not in: {error}"
