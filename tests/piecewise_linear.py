"""Networks that are piecewise linear in some blocks, by hand, and networks that only look so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LICENSED = {  # parameter blocks, by hand: those after which everything is piecewise linear; None for all
    "mlp-relu-ce": None,
    "mlp-tanh-mse": {"4.weight", "4.bias"},
    "cnn-batchnorm-eval": None,
    "cnn-residual-eval": None,
    "cnn-relu-wide": None,
    "mlp-silu-nll-weights": set(),  # a log-softmax is part of the network
    "tied-used-twice": {"head.weight", "head.bias"},
    "lstm": {"head.weight", "head.bias"},
    "partly-frozen": {"head.weight", "head.bias"},
    "embedding-words": {"head.weight", "head.bias"},
    "root-parameters": {"layer.weight", "layer.bias"},
    "unused-branch": {"head.weight", "head.bias", "unused.weight", "unused.bias"},
}


class Branches(nn.Module):
    """ReLU everywhere but for one branch or one product of activations."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.left, self.right, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = self.left(x), self.right(x)
        if self.kind == "gelu branch":
            return self.head(F.relu(left) + F.gelu(right))
        if self.kind == "gate":
            return self.head(F.relu(left) * right)
        if self.kind == "twice":
            return self.head(F.relu(self.left(F.relu(left))))
        if self.kind == "quotient":
            return self.head(F.relu(left) / (1.0 + F.relu(right)))
        if self.kind == "in place":
            return self.head(F.relu_(left.add_(right)))
        if self.kind == "by hand":
            return self.head(F.relu(x @ self.left.weight.T + self.left.bias + right))
        if self.kind == "shifted weights":
            return self.head(F.relu(F.linear(x, self.left.weight * 2.0, self.left.bias)))
        return self.head(F.relu(left + right))


TRICKY = {
    "plain": {"stem", "left", "right", "head"},
    "gelu branch": {"left", "head"},
    "gate": {"left", "right", "head"},  # each factor is linear in its own weights; the stem is in both
    "twice": {"stem", "head"},
    "quotient": {"left", "head"},
    "in place": {"stem", "left", "right", "head"},
    "by hand": {"stem", "right", "head"},
    "shifted weights": {"stem", "head"},
}


class Changing(nn.Module):
    """Another network where the first number of a batch is large: the sample may not show it."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.first, self.head, self.other = nn.Linear(4, 6), nn.Linear(6, 3), other

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if float(x.detach()[0, 0]) < 100.0:
            return self.head(F.relu(h))
        if self.other == "smooth":
            return self.head(torch.tanh(h))
        return self.head(F.relu(h * self.first.weight.mean()))  # the weight enters in another way
