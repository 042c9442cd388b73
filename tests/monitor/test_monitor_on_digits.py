"""The monitor on a network that learns handwritten digits: its bounds, against converged references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import layerhess as lh

LOSS = nn.CrossEntropyLoss()


def digits_network() -> tuple[nn.Module, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10),
    )  # fmt: skip
    return model, torch.tensor(found.images / 8 - 1, dtype=torch.float32)[:, None], torch.tensor(found.target)


def train_digits(model: nn.Module, x: Tensor, y: Tensor, steps: int, after: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        index = torch.arange(64) + 64 * (step % 28)
        optimizer.zero_grad()
        LOSS(model(x[index % len(x)]), y[index % len(x)]).backward()
        optimizer.step()
        after(step + 1)


@pytest.mark.slow
def test_on_the_digits_bounds_hold_at_every_point() -> None:
    model, x, y = digits_network()
    batch = (x[:256], y[:256])
    monitor = lh.Monitor(lh.Objective(model, batch, LOSS, mode="eval"), every=20, overhead=None)
    errors = []

    def after(step: int) -> None:
        if (point := monitor.step()) is None:
            return
        hessian = lh.Hessian(lh.Objective(model, batch, LOSS, mode="eval"), "weight", check=False)
        for name, reading in point.readings.items():
            truth = lh.eigsh(hessian.block(name), tol=1e-5)
            assert abs(truth.values[0] - reading.lambda_max) <= reading.bound + truth.error_bounds[0], (step, name)
            errors.append(1.0 - reading.lambda_max / truth.values[0])

    train_digits(model, x, y, 400, after)
    assert len(errors) == 20 * 4 and max(errors) < 0.01  # nothing was missed either
