"""The network shapes of the benchmarks: residual networks (ResNet-20, ResNet-50) and GPTs of any size.

All are written out here so that nothing but PyTorch is needed. The GPT spells its attention out (two matrix products
and a softmax): the fused kernels have no second derivative, and the written-out form runs under every peer as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GPT", "ResNet20", "ResNet50", "weight_names"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU around a shortcut (a 1x1 convolution where the shape changes)."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, n_out, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 of He et al. 2016, with 1x1 shortcuts: 22 weight blocks (19 + 2 convolutions, 1 linear)."""

    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks = []
        n_in = width
        for stage in range(3):
            n_out = width * 2**stage
            for i in range(3):
                blocks.append(ResidualBlock(n_in, n_out, 2 if stage and not i else 1))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(n_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) images -> (N, classes) logits."""
        h = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(h.mean(dim=(2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with BatchNorm around a shortcut; it ends four times as wide."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) -> (N, 4 width, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.shortcut(x))


class ResNet50(nn.Module):
    """The ImageNet ResNet-50 of He et al. 2016: 54 weight blocks, 25.6 million parameters with its defaults."""

    def __init__(self, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks = []
        n_in = width
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            for i in range(depth):
                blocks.append(Bottleneck(n_in, inner, 2 if stage and not i else 1))
                n_in = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(n_in, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) images -> (N, classes) logits."""
        h = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)
        return self.fc(self.blocks(h).mean(dim=(2, 3)))


class Attention(nn.Module):
    """Causal self-attention with one matrix for queries, keys and values."""

    def __init__(self, d: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)
        self.register_buffer("hidden", torch.ones(context, context, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        weights = scores.masked_fill(self.hidden[:t, :t], float("-inf")).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


class TransformerBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, a GELU network of four times the width; both with a residual."""

    def __init__(self, d: int, heads: int, context: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d)
        self.attention = Attention(d, heads, context)
        self.ln2 = nn.LayerNorm(d)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = x + self.attention(self.ln1(x))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    """A GPT-2 shape: 27 weight blocks with 6 layers (4 matrices a layer, 2 embeddings, a head); 26 with a tied head."""

    def __init__(
        self,
        vocabulary: int,
        d: int = 128,
        layers: int = 6,
        heads: int = 4,
        context: int = 64,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, d)
        self.position = nn.Embedding(context, d)
        self.blocks = nn.Sequential(*(TransformerBlock(d, heads, context) for _ in range(layers)))
        self.ln = nn.LayerNorm(d)
        self.head = nn.Linear(d, vocabulary, bias=False)
        self.apply(_small_normal)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, vocabulary) logits."""
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.ln(self.blocks(x)))


def _small_normal(module: nn.Module) -> None:
    """GPT-2's initialisation: weights from N(0, 0.02^2), biases zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def weight_names(model: nn.Module) -> list[str]:
    """Names of the blocks measured here: every parameter with at least two dimensions, in model order."""
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
