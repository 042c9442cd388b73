"""All subjects: how each is made, and in words what it is. Importing this needs none of their packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch

from .subject import Subject


@dataclass(frozen=True)
class Entry:
    """Where a subject's factory is, and what readers are told: the model, its data, its loss; and about how long it is.

    Attributes:
        minutes: of a processor. Two at a time take least where the long ones begin.
    """

    module: str
    factory: str
    title: str
    data: str
    loss: str
    minutes: float


CRYSTALS = "MgO, NaCl, CsCl, GaAs, SrTiO3 and LiMnO3, every atom displaced by 0.08 Å"
TONES = "two frames of synthetic tones, 131 and 415 Hz"
CREPE_LOSS = "binary cross entropy over 360 pitches"
ENTRIES = {
    "efficientnet-lite0": Entry(
        "photographs", "efficientnet", "EfficientNet-lite0, ImageNet",
        "scikit-learn's two photographs, a crop of each, 168 x 168", "cross entropy", 4,
    ),
    "crepe-tiny": Entry("crepe", "tiny", "CREPE tiny, pitch tracker", TONES, CREPE_LOSS, 0.3),
    "crepe-full": Entry("crepe", "full", "CREPE full, pitch tracker", TONES, CREPE_LOSS, 11),
    "speaker-encoder": Entry(
        "speaker", "encoder", "Resemblyzer's speaker encoder, three LSTM layers",
        "synthetic voices: four speakers, two utterances of 0.8 s each",
        "cross entropy of scaled cosines with the speakers' centroids, which are constants", 3,
    ),
    "chgnet-energies": Entry(
        "crystals", "energies", "CHGNet 0.3.0, energies", CRYSTALS,
        "squared differences from the energies per atom of CHGNet 0.2.0, to five decimals", 1.5,
    ),
    "chgnet-forces": Entry(
        "crystals", "forces", "CHGNet 0.3.0, energies, forces and stress", CRYSTALS,
        "squared differences from CHGNet 0.2.0, to five decimals: energies + forces + 0.1 stress (GPa)", 12,
    ),
}  # fmt: skip
LONGEST_FIRST = sorted(ENTRIES, key=lambda name: -ENTRIES[name].minutes)


def made(name: str, dtype: torch.dtype = torch.float32) -> Subject:
    """The subject, its packages imported only now."""
    entry = ENTRIES[name]
    build: Callable[[torch.dtype], Subject] = getattr(import_module(f"{__package__}.{entry.module}"), entry.factory)
    return build(dtype)
