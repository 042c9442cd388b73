"""What a monitor takes of a training's time: `python -m benchmarks.monitor [--overhead 0.05] [--examples 128]`.

A small convolutional network with BatchNorm is trained on handwritten digits for 8,000 steps; the monitor looks at
every 20th step at the most, and spaces itself. It prints the share of the training's time at every point, and at the
end.
"""

from __future__ import annotations

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

import layerhess as lh

STEPS, EVERY, BATCH = 8_000, 20, 32


def network() -> nn.Module:
    """Two convolutions with BatchNorm and dropout, and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 10),
    )  # fmt: skip


def main() -> None:
    """Train, and print what the monitor took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overhead", type=float, default=0.05)
    parser.add_argument("--examples", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images).float().view(-1, 1, 8, 8) / 16, torch.tensor(labels)
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    objective = lh.Objective(model, (x[: options.examples], y[: options.examples]), loss)
    monitor = lh.Monitor(objective, every=EVERY, overhead=options.overhead)
    began = time.perf_counter()
    for step in range(STEPS):
        index = torch.arange(step * BATCH, (step + 1) * BATCH) % len(x)
        optimizer.zero_grad()
        loss(model(x[index]), y[index]).backward()
        optimizer.step()
        if (point := monitor.step()) is not None:
            print(f"step {point.step}: {point.seconds:.2f} s, {monitor.share:.2%} so far", flush=True)
    print(f"{len(monitor.points)} points in {time.perf_counter() - began:.0f} s, {monitor.share:.2%} of the training")


if __name__ == "__main__":
    main()
