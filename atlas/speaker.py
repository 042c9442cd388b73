"""Resemblyzer's speaker encoder (three LSTM layers, Wan et al. 2018) on voices made by formulas."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .installed import module_of, path_of
from .sounds import mel_spectrogram, voice
from .subject import Pair, Subject

SPEAKERS = ((95.0, 1.0), (125.0, 0.97), (190.0, 1.13), (235.0, 1.2))  # pitch (Hz), scale of the formants
UTTERANCES = ((0, 1, 2), (3, 0, 2))  # vowels
SECONDS = 0.79  # 80 frames, half of what the encoder was trained on
GATES = [f"lstm.{kind}_l{layer}" for layer in range(3) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


class Similarity(nn.Module):
    """Mean cross entropy of w cos(e, c_k) + b over the speakers k (Wan et al. 2018, eq. 5 and 6).

    The centroids c_k, and w and b as they are in the weights' file, are constants here.
    """

    def __init__(self, centroids: torch.Tensor, scale: float, offset: float) -> None:
        super().__init__()
        self.register_buffer("centroids", F.normalize(centroids))
        self.scale, self.offset = scale, offset

    def forward(self, embeddings: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """0-d; embeddings (N, 256) of unit norm, speakers (N,)."""
        return F.cross_entropy(self.logits(embeddings), speakers)

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(N, K)."""
        return self.scale * embeddings @ self.centroids.T + self.offset


def encoder(dtype: torch.dtype) -> Subject:
    """Two utterances of each of four speakers; centroids are the means of a speaker's embeddings."""
    sizes = module_of("resemblyzer", "resemblyzer/hparams.py", {})
    code = module_of(
        "resemblyzer",
        "resemblyzer/voice_encoder.py",
        {"resemblyzer": {"audio": None}, "resemblyzer.hparams": dict(vars(sizes))},
    )
    model = code.VoiceEncoder("cpu", verbose=False).eval()
    stored = torch.load(path_of("resemblyzer", "resemblyzer/pretrained.pt"), map_location="cpu")["model_state"]
    mels = torch.stack(
        [mel_spectrogram(voice(pitch, vowels, tract, SECONDS)) for pitch, tract in SPEAKERS for vowels in UTTERANCES]
    )
    speakers = torch.arange(len(SPEAKERS)).repeat_interleave(len(UTTERANCES))
    with torch.no_grad():
        centroids = model(mels).view(len(SPEAKERS), len(UTTERANCES), -1).mean(1)
    loss = Similarity(centroids, float(stored["similarity_weight"]), float(stored["similarity_bias"])).to(dtype)

    def total(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> Pair:
        return F.cross_entropy(loss.logits(model(batch[0])), batch[1], reduction="sum"), len(batch[1])

    return Subject(
        model=model.to(dtype),
        batches=[(mels.to(dtype), speakers)],
        total=total,
        criterion=loss,
        blocks="parameter",
        examined=("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_hh_l1", "lstm.weight_hh_l2", "linear.weight"),
        checked=(
            *(name for name in GATES if "bias_hh" not in name and name != "lstm.bias_ih_l1"),
            "linear.weight",
            "linear.bias",
        ),
        packages=("resemblyzer",),
    )
