"""Whether a model and the random generators are, bit by bit, as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def state(model: nn.Module) -> dict[str, Any]:
    """All that an analysis has to give back: values, gradients, modes, hooks, random states, torch's defaults."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"{name}: value"] = tensor.detach().clone()
        found[f"{name}: gradient"] = None if tensor.grad is None else tensor.grad.clone()
        found[f"{name}: requires_grad"] = tensor.requires_grad
    for name, module in model.named_modules():
        found[f"{name}: training"] = module.training
        found[f"{name}: hooks"] = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        found[f"{name}: attributes"] = sorted(vars(module))
    return found | {
        "torch's random state": torch.get_rng_state(),
        "NumPy's random state": np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
        "Python's random state": random.getstate(),
        "the default dtype": torch.get_default_dtype(),
        "gradients enabled": torch.is_grad_enabled(),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs; nothing counts as equal that is not so in every bit."""
    names = dict.fromkeys((*before, *after))
    return [name for name in names if name not in before or name not in after or not _same(before[name], after[name])]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    return type(one) is type(other) and one == other


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).numpy().tobytes()
