"""Full-batch training settles where its optimizer is just stable: gradient descent and Adam on handwritten digits.

    python examples/edge_of_stability.py          # some seconds; writes edge_of_stability.png

The largest eigenvalue of the Hessian (for Adam: of the preconditioned one) rises until it reaches the optimizer's
stability threshold, and stays there: their ratio is about 1 (Cohen and others 2021, 2022). Needs scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

import layerhess as lh

OPTIMIZERS = {
    "gradient descent": lambda parameters: torch.optim.SGD(parameters, lr=0.6),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=5e-3),
}


def digits(examples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 64) with mean 0 and deviation 1, and one-hot targets (n, 10)."""
    found = load_digits()
    x = torch.tensor(found.data[:examples], dtype=torch.float32)
    y = torch.tensor(found.target[:examples])
    return (x - x.mean()) / x.std(), nn.functional.one_hot(y, 10).float()


def train(name: str, steps: int, every: int, examples: int = 500) -> lh.Monitor:
    """Train on all examples at once; the monitor looks at the same loss that is descended."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10))
    x, y = digits(examples)
    loss = nn.MSELoss()
    optimizer = OPTIMIZERS[name](model.parameters())
    monitor = lh.Monitor(lh.Objective(model, (x, y), loss), every, None, overhead=None, optimizer=optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        monitor.step()
    return monitor


def plot(monitors: dict[str, lh.Monitor], path: Path) -> None:
    """Sharpness over threshold against the step, with the bounds as bars."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1.0, color="0.4", linewidth=1, linestyle="--")
    axes.annotate(
        "unstable above", (0.99, 1.06), xycoords=("axes fraction", "data"), ha="right", color="0.4", fontsize=9
    )
    for (name, monitor), color, marker in zip(monitors.items(), ("#0072b2", "#d55e00"), "os", strict=True):
        frame = monitor.to_frame()
        bars = frame.preconditioned_bound / frame.threshold
        axes.errorbar(frame.step, frame.ratio, bars, color=color, marker=marker, markersize=3, linewidth=1, label=name)
    axes.set(xlabel="step", ylabel="sharpness / threshold", ylim=(0.0, 1.5))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def settled(monitor: lh.Monitor, share: float = 0.5) -> tuple[float, float]:
    """Mean and deviation of the ratio over the last part of the training."""
    ratio = monitor.to_frame().ratio
    last = ratio[int(len(ratio) * (1 - share)) :]
    return float(last.mean()), float(last.std())


def main() -> None:
    """Train with both, print where they settle, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("edge_of_stability.png"))
    arguments = parser.parse_args()
    monitors = {name: train(name, arguments.steps, arguments.every) for name in OPTIMIZERS}
    for name, monitor in monitors.items():
        mean, deviation = settled(monitor)
        print(f"{name}: sharpness / threshold = {mean:.3f} +- {deviation:.3f} in the second half")
    plot(monitors, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
