"""Small trainings that a monitor looks at, and the explicit Hessians of their losses in float64."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def seed_all(seed: int = 0) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def nesterov(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def bits(value: Any) -> Any:
    """A value that is equal only if all bits are."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, (list, tuple)) else value


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    gradients = {name: p.grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    return bits([model.state_dict(), gradients, modes, optimizer.state_dict(), states])


def bounds_hold(model: nn.Module, point: Any) -> None:
    truth = Explicit.of(model, data())
    for name, reading in point.readings.items():
        values = truth.values(name)
        assert np.abs(values - reading.lambda_max).min() <= reading.bound, (point.step, name)
        assert reading.lambda_max <= values[0] + reading.bound
        assert not values[0] > 1.0001 * reading.missed_factor * reading.lambda_max
        assert 0.0 < reading.bound <= 0.02 * values[0]
