"""Sounds made by formulas: tones of known pitch, and voices of several speakers as mel spectrograms."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RATE = 16_000  # samples a second
FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))  # Peterson & Barney 1952, men


def tone(pitch: float, seconds: float, decay: float = 0.7) -> np.ndarray:
    """(samples,) float64: the harmonics of ``pitch`` below half the rate, each ``decay`` times the one before."""
    time = np.arange(round(RATE * seconds)) / RATE
    numbers = np.arange(1, int(RATE / 2 / pitch) + 1)
    phases = 2.4 * numbers  # any fixed ones; in phase, they would make a click
    return np.sin(2 * np.pi * pitch * numbers[:, None] * time + phases[:, None]).T @ decay**numbers


def voice(pitch: float, vowels: tuple[int, ...], tract: float, seconds: float) -> np.ndarray:
    """(samples,) float64: vowels one after the other, the pitch falling by a tenth; ``tract`` scales the formants."""
    time = np.arange(round(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1.0 - 0.1 * time / seconds)) / RATE
    which = np.minimum((time / seconds * len(vowels)).astype(int), len(vowels) - 1)
    made = np.zeros_like(time)
    for k in range(1, int(RATE / 2 / pitch) + 1):
        gains = [sum(np.exp(-(((k * pitch - tract * f) / 120.0) ** 2)) for f in FORMANTS[v]) + 0.02 for v in vowels]
        made += np.asarray(gains)[which] * np.sin(k * phase + 2.4 * k) / k
    return 0.1 * made / np.sqrt(np.mean(made**2))


def mel_spectrogram(wave: np.ndarray) -> Tensor:
    """(frames, 40) float32: power in 40 mel bands, 25 ms windows every 10 ms, as resemblyzer's ``audio.py`` asks for.

    The scale and the triangles of equal area are Slaney's (1998), which librosa has as its default.
    """
    size, step, bands = 400, 160, 40
    window = torch.hann_window(size, dtype=torch.float64)
    spectrum = torch.stft(torch.from_numpy(wave), size, step, window=window, pad_mode="constant", return_complex=True)
    edges = _hertz(np.linspace(_mel(0.0), _mel(RATE / 2), bands + 2))
    bins = np.linspace(0, RATE / 2, size // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return (torch.from_numpy(triangles) @ spectrum.abs() ** 2).T.float()


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * float(np.log(hertz / 1000)) / float(np.log(6.4))


def _hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(np.log(6.4) * (mel - 15) / 27))
