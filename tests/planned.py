"""Small trained networks with data, for plans."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import layerhess as lh

CE = nn.CrossEntropyLoss()
EXAMPLES = 120


def points(seed: int = 0, number: int = EXAMPLES) -> tuple[Tensor, Tensor]:
    """Three classes of points in 6 dimensions that no linear function separates."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 6, generator=drawn)
    return x, torch.bucketize(x[:, :2].square().sum(1) + 0.5 * x[:, 2], torch.tensor([1.0, 2.5]))


def trained(model: nn.Module, x: Any, y: Tensor, steps: int = 150) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        CE(model(x), y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def mlp(seed: int) -> tuple[nn.Module, Any, Tensor]:
    x, y = points(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3)), x, y


def conv(seed: int) -> tuple[nn.Module, Any, Tensor]:
    x, y = points(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Conv1d(6, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    return net, x, y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.reshape(len(x), 3, 2))[0][:, -1])


def lstm(seed: int) -> tuple[nn.Module, Any, Tensor]:
    x, y = points(seed)
    return Recurrent(), x, y


class Language(nn.Module):
    """A causal transformer whose embedding is its head."""

    def __init__(self, words: int = 13, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.place = nn.Parameter(0.1 * torch.randn(6, width))
        self.block = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.head(self.block(self.embedding(ids) + self.place, mask, is_causal=True)).transpose(1, 2)


def transformer(seed: int) -> tuple[nn.Module, Any, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 13, (20, 1), generator=drawn) + torch.arange(6) * torch.randint(
        1, 4, (20, 1), generator=drawn
    )
    return Language(), ids % 13, (ids + 1) % 13


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Any, Tensor]]] = {
    "mlp": mlp, "conv": conv, "lstm": lstm, "transformer": transformer,
}  # fmt: skip


@cache
def _trained(kind: str, seed: int) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(seed)
    model, x, y = NETWORKS[kind](seed)
    return trained(model, x, y), x, y


def objective(kind: str = "mlp", seed: int = 0, batch: int = 70, **more: Any) -> lh.Objective:
    """A trained network on its data, in batches."""
    model, x, y = _trained(kind, seed)
    return lh.Objective(model, list(zip(x.split(batch), y.split(batch), strict=True)), CE, **more)
