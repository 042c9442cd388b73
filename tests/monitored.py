"""Small trainings that a monitor looks at, and the explicit Hessians of their losses in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

Data = tuple[Tensor, Tensor]


def data(examples: int = 48, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(examples, 6, generator=generator), torch.randint(0, 3, (examples,), generator=generator)


def tanh_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def noisy_network(seed: int = 0) -> nn.Sequential:
    """With BatchNorm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[int], object] = lambda step: None,
    batch: int = 16,
) -> None:
    """Cross entropy on random batches, drawn by all three random states; ``after`` is called after every step."""
    x, y = data()
    for step in range(steps):
        index = torch.randint(0, len(x), (batch,))
        scale = 1.0 + 0.01 * np.random.rand()
        optimizer.zero_grad()
        (scale * nn.functional.cross_entropy(model(x[index]), y[index])).backward()
        optimizer.step()
        after(step + 1)


@dataclass
class Explicit:
    """The Hessian of the mean cross entropy, by nested forward and backward derivatives of a float64 copy.

    Attributes:
        matrix: (P, P). places: name -> positions.
    """

    matrix: np.ndarray
    places: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: nn.Module, batch: Data) -> Explicit:
        wide = copy.deepcopy(model).double().eval()
        x, y = batch[0].double(), batch[1]
        names = [name for name, p in wide.named_parameters() if p.requires_grad]
        shapes = [wide.get_parameter(name).shape for name in names]
        sizes = [shape.numel() for shape in shapes]

        def loss(flat: Tensor) -> Tensor:
            parts = torch.split(flat, sizes)
            named = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
            return nn.functional.cross_entropy(functional_call(wide, named, (x,)), y)

        flat = torch.cat([wide.get_parameter(name).detach().reshape(-1) for name in names])
        matrix = torch.autograd.functional.hessian(loss, flat).numpy()
        ends = np.cumsum([0, *sizes])
        places = {name: np.arange(a, b) for name, a, b in zip(names, ends[:-1], ends[1:], strict=True)}
        return cls((matrix + matrix.T) / 2, places)

    def values(self, name: str) -> np.ndarray:
        """All eigenvalues of a block, or of "(full)", descending."""
        part = self.matrix if name == "(full)" else self.matrix[np.ix_(self.places[name], self.places[name])]
        return np.linalg.eigvalsh(part)[::-1]
