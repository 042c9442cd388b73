"""The parts that random networks are made of: stages that keep or change a tensor's width.

A stage is made by ``make(width, draw) -> (module, width)`` for tensors of one form: "flat" (N, d), "sequence"
(N, T, d), "maps" (N, d, L) or "image" (N, d, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from own_gradients import RIGHT

Stage = tuple[nn.Module, int]
Maker = Callable[[int, np.random.Generator], Stage]

SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Mish, nn.Softsign, nn.SELU, nn.LogSigmoid)
KINKED = (nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.PReLU, nn.Hardsigmoid, nn.Hardswish, nn.Softshrink)


# looked up when they are called, so that the reference may use forms of its own
OPENINGS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda z: torch.sigmoid(z), lambda z: F.silu(z), lambda z: F.gelu(z), lambda z: F.relu(z),
)  # fmt: skip


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Gated(nn.Module):
    """One half opens the other: sigmoid(V x) * f(W x), as in GLU, SwiGLU and highway layers."""

    def __init__(self, width: int, out: int, opening: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value, self.gate, self.opening = nn.Linear(width, out), nn.Linear(width, out, bias=False), opening

    def forward(self, x: Tensor) -> Tensor:
        return self.opening(self.gate(x)) * self.value(x)


class Twice(nn.Module):
    """The same layer applied twice, or a second layer that uses the first one's weight, transposed."""

    def __init__(self, width: int, transposed: bool, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.transposed, self.activation = nn.Linear(width, width), transposed, activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.layer(x))
        return F.linear(x, self.layer.weight.t()) if self.transposed else self.layer(x)


class LowRank(nn.Module):
    """W x + B A x, the weight of the first frozen or not."""

    def __init__(self, width: int, frozen: bool) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        self.base.weight.requires_grad_(not frozen)
        self.down, self.up = nn.Parameter(torch.randn(1, width)), nn.Parameter(torch.randn(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.up @ self.down, self.base.bias)


class RootMeanSquare(nn.Module):
    """RMS normalisation as language models write it themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Attention(nn.Module):
    """Self-attention: torch's module, torch's function, or written out."""

    def __init__(self, width: int, kind: str, causal: bool) -> None:
        super().__init__()
        self.kind, self.causal = kind, causal
        if kind == "module":
            self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        else:
            self.mixing, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        if self.kind == "module":
            return x + self.attention(x, x, x, attn_mask=hidden, need_weights=False)[0]
        q, k, v = self.mixing(x).chunk(3, -1)
        if self.kind == "function":
            return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        scores = q @ k.transpose(1, 2) / math.sqrt(x.shape[-1])
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        return x + self.out(scores.softmax(-1) @ v)


class Shifted(nn.Module):
    """A learned scale and a learned position or offset."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.offset


# --- stages by the form of the tensor ---------------------------------------------------------------------------------


def activation(draw: np.random.Generator) -> nn.Module:
    kind = SMOOTH if draw.random() < 0.5 else KINKED
    return kind[draw.integers(len(kind))]()


def _width(width: int, draw: np.random.Generator) -> int:
    return int(draw.integers(2, max(5, width + 1)))


def _norm(width: int, draw: np.random.Generator) -> nn.Module:
    kind = draw.integers(3)
    # eps is given: torch's default depends on the dtype, and the float64 twin would be another function
    return nn.LayerNorm(width) if kind == 0 else nn.RMSNorm(width, eps=1e-6) if kind == 1 else RootMeanSquare(width)


def _linear(width: int, draw: np.random.Generator) -> Stage:
    out = _width(width, draw)
    return nn.Sequential(nn.Linear(width, out, bias=bool(draw.random() < 0.8)), activation(draw)), out


def _normed_linear(width: int, draw: np.random.Generator) -> Stage:
    out = _width(width, draw)
    return nn.Sequential(nn.Linear(width, out), _norm(out, draw), activation(draw)), out


def _batch_normed(width: int, draw: np.random.Generator) -> Stage:
    out = _width(width, draw)
    norm = nn.BatchNorm1d(out) if draw.random() < 0.7 else nn.GroupNorm(1, out)
    return nn.Sequential(nn.Linear(width, out), norm, activation(draw)), out


def _residual(width: int, draw: np.random.Generator) -> Stage:
    return Residual(nn.Sequential(nn.Linear(width, width), activation(draw))), width


def _gated(width: int, draw: np.random.Generator) -> Stage:
    out = _width(width, draw)
    return Gated(width, out, OPENINGS[draw.integers(4)]), out


def _twice(width: int, draw: np.random.Generator) -> Stage:
    return Twice(width, bool(draw.random() < 0.5), activation(draw)), width


def _low_rank(width: int, draw: np.random.Generator) -> Stage:
    return LowRank(width, bool(draw.random() < 0.5)), width


def _shifted(width: int, draw: np.random.Generator) -> Stage:
    return nn.Sequential(Shifted(width), activation(draw)), width


def _own(width: int, draw: np.random.Generator) -> Stage:
    return list(RIGHT.values())[draw.integers(len(RIGHT))](width), width


def _recurrent(width: int, draw: np.random.Generator) -> Stage:
    out = int(draw.integers(1, max(4, width)))
    kind = (nn.GRU, nn.LSTM, nn.RNN)[draw.integers(3)]
    return Recurrent(kind(width, out, batch_first=True)), out


def _attention(width: int, draw: np.random.Generator) -> Stage:
    kind = ("module", "function", "written out")[draw.integers(3)]
    return Attention(width, kind, bool(draw.random() < 0.3)), width


def _channel_norm(width: int, draw: np.random.Generator, image: bool) -> nn.Module:
    batch, instance = (nn.BatchNorm2d, nn.InstanceNorm2d) if image else (nn.BatchNorm1d, nn.InstanceNorm1d)
    kind = draw.integers(4)
    if kind == 0:
        return batch(width)
    if kind == 1:
        return instance(width, affine=True)
    return nn.GroupNorm(1 if kind == 2 else width, width)


def _convolution(width: int, draw: np.random.Generator, image: bool) -> Stage:
    out = int(draw.integers(1, 4))
    conv = nn.Conv2d if image else nn.Conv1d
    if draw.random() < 0.3:
        out = width
        layer: nn.Module = conv(width, width, 3, padding=1, groups=width)
    elif draw.random() < 0.2:
        layer = (nn.ConvTranspose2d if image else nn.ConvTranspose1d)(width, out, 2)
    else:
        layer = conv(width, out, 2, padding=1, bias=bool(draw.random() < 0.7), stride=int(draw.integers(1, 3)))
    stages = [layer]
    if draw.random() < 0.4:
        stages.append(_channel_norm(out, draw, image))
    stages.append(activation(draw))
    if draw.random() < 0.3:
        pools = (nn.MaxPool2d, nn.AvgPool2d) if image else (nn.MaxPool1d, nn.AvgPool1d)
        stages.append(pools[draw.integers(2)](2, stride=1))
    return nn.Sequential(*stages), out


FLAT: tuple[Maker, ...] = (
    _linear, _linear, _normed_linear, _batch_normed, _residual, _gated, _twice, _low_rank, _shifted, _own,
)  # fmt: skip
STAGES: dict[str, tuple[Maker, ...]] = {
    "flat": FLAT,
    "sequence": (_linear, _normed_linear, _recurrent, _recurrent, _attention, _attention, _gated, _shifted, _own),
    "maps": (lambda width, draw: _convolution(width, draw, False),),
    "image": (lambda width, draw: _convolution(width, draw, True),),
}
