"""All subjects, by the name under which their truths and results are kept."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from .subject import Subject

PLACES = {
    "efficientnet-lite0": ("photographs", "efficientnet"),
    "crepe-tiny": ("crepe", "tiny"),
    "crepe-full": ("crepe", "full"),
    "speaker-encoder": ("speaker", "encoder"),
    "chgnet-energies": ("crystals", "energies"),
    "chgnet-forces": ("crystals", "forces"),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Subject:
    """The subject, its packages imported only now."""
    module, factory = PLACES[name]
    build: Callable[[torch.dtype], Subject] = getattr(import_module(f"{__package__}.{module}"), factory)
    return build(dtype)
