"""Small networks and data sets for comparisons: the same weights on other examples, other weights on the same ones."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import layerhess as lh

Data = tuple[Tensor, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))


def scale_free() -> nn.Sequential:
    """Every layer but the last is normalised, so that its scale changes nothing else."""
    torch.manual_seed(2)
    parts: list[nn.Module] = []
    for before, after in ((6, 9), (9, 7), (7, 8)):
        parts += [
            nn.Linear(before, after, bias=False),
            nn.LayerNorm(after, eps=0.0, elementwise_affine=False),
            nn.Tanh(),
        ]
    return nn.Sequential(*parts, nn.Linear(8, 3, bias=False)).double()


def examples(seed: int, number: int = 128) -> Data:
    """Labels drawn from a network's own probabilities."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 6, generator=rng)
    with torch.no_grad():
        return x, torch.multinomial((3 * network()(x)).softmax(1), 1, generator=rng)[:, 0]


@cache
def analysed(seed: int, number: int = 128) -> lh.Analysis:
    """The network on a data set of its own."""
    return lh.analyze(lh.Objective(network(), examples(seed, number), nn.CrossEntropyLoss()), "weight", sampling=True)


def scaled(layer: int, factor: float = 1.1) -> lh.Analysis:
    """The normalised network with one layer's weights scaled, on the same examples each time."""
    model = scale_free()
    with torch.no_grad():
        model[layer].weight *= factor  # type: ignore[operator]
    x, y = examples(0)
    objective = lh.Objective(model, (x.double(), y), nn.CrossEntropyLoss())
    return lh.analyze(objective, "weight", sampling=True, tol=1e-6)
