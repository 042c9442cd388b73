"""What makes two subjects the same: a hash of weights, data, loss and versions."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from .subject import Subject

BESIDE = ("torch", "numpy", "scipy")


def versions(subject: Subject) -> dict[str, str]:
    """Distribution -> its version, of all that the numbers depend on but layerhess."""
    return {name: version(name).split("+")[0] for name in (*subject.packages, *BESIDE)}


def fingerprint(subject: Subject) -> str:
    """SHA-256 of weights (buffers included), batches, the code of the loss, the checked blocks, and versions."""
    made = hashlib.sha256()
    for name, tensor in subject.model.state_dict().items():
        _add(made, name, tensor)
    _add(made, "batches", subject.batches)
    source = getattr(subject.total, "func", subject.total)
    for text in (inspect.getsource(source), str(subject.checked), str(sorted(versions(subject).items()))):
        made.update(text.encode())
    return made.hexdigest()


def _add(made: Any, name: str, value: Any) -> None:
    made.update(name.encode())
    if isinstance(value, Tensor):
        plain = value.detach().contiguous()
        made.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
        made.update(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else plain.numpy().tobytes())
    elif isinstance(value, dict):
        for key, part in value.items():
            _add(made, str(key), part)
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            _add(made, str(place), part)
    elif hasattr(value, "__dict__"):
        _add(made, type(value).__name__, vars(value))
    else:
        made.update(repr(value).encode())
