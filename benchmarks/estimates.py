"""What `estimate` says beforehand beside what the analysis takes: peak memory and time.

`python -m benchmarks.estimates [SHAPE ...]` prints a line for each shape; every figure is of a process of its own. Both
processes are told the same free memory, since an analysis plans for what is free when it begins. Linux only.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts its pool

import json
import subprocess
import sys
import time
from typing import Any

import torch
from torch import nn

import layerhess as lh
from layerhess.curvature import device

__all__ = ["SHAPES", "compared"]

FREE = 12 << 30  # bytes that both processes may plan for
DENSITY = lh.Density(probes=2, steps=20)
CPU = torch.device("cpu")


class Recurrent(nn.Module):
    """An embedding, an LSTM of width 128, and a layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.out = nn.Embedding(50, 64), nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.words(x))[0][:, -1])


def perceptron(n_in: int, width: int) -> nn.Module:
    """Three layers."""
    layers = nn.Linear(n_in, width), nn.Tanh(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)
    return nn.Sequential(*layers)


def convolutions() -> nn.Module:
    """Three convolutions and a layer."""
    layers: list[nn.Module] = []
    for n_in, n_out, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, stride=stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10))


# name -> model, shape of an example, examples, examples of a batch, options; weights, data and labels are random.
SHAPES: dict[str, tuple[Any, tuple[int, ...], int, int, dict[str, Any]]] = {
    "wide layers": (lambda: perceptron(64, 768), (64,), 1024, 128, {}),
    "the same, exact": (lambda: perceptron(64, 768), (64,), 1024, 128, {"path": "exact"}),
    "the same, memory='600MB'": (lambda: perceptron(64, 768), (64,), 1024, 128, {"memory": "600MB"}),
    "two large batches": (lambda: perceptron(64, 256), (64,), 6000, 3000, {}),
    "one batch of 4,096": (lambda: perceptron(128, 512), (128,), 4096, 4096, {"path": "exact"}),
    "convolutions": (convolutions, (3, 32, 32), 256, 64, {}),
    "LSTM": (Recurrent, (24,), 256, 64, {}),
    "float64": (lambda: perceptron(64, 512).double(), (64,), 1024, 128, {}),
    "top 5 of modules": (lambda: perceptron(64, 384), (64,), 512, 128, {"top": 5, "blocks": "module"}),
    "trace and density": (
        lambda: perceptron(64, 384), (64,), 1024, 128, {"blocks": "module", "trace": True, "density": DENSITY},
    ),
}  # fmt: skip


def objective_of(name: str) -> lh.Objective:
    """Of a shape."""
    torch.manual_seed(0)
    make, shape, examples, batch, _ = SHAPES[name]
    model = make()
    x = torch.randint(50, (examples, *shape)) if name == "LSTM" else torch.randn(examples, *shape)
    x, y = x.double() if name == "float64" else x, torch.randint(10, (examples,))
    return lh.Objective(model, list(zip(x.split(batch), y.split(batch), strict=True)), nn.CrossEntropyLoss())


def figures(name: str, what: str) -> dict[str, float]:
    """Bytes at the peak and seconds, as "estimate" says or "analyze" takes; and the seconds of saying so."""
    device.free_bytes = lambda place: FREE
    objective, options = objective_of(name), SHAPES[name][-1]
    if what == "estimate":
        start = time.perf_counter()
        said = lh.estimate(objective, **options)
        return {"peak": said.peak_bytes, "seconds": said.seconds, "took": time.perf_counter() - start}
    device.restart_peak(CPU)
    before, start = device.used_bytes(CPU), time.perf_counter()
    lh.analyze(objective, **options)
    return {"peak": device.peak_bytes(CPU) - before, "seconds": time.perf_counter() - start}


def compared(name: str) -> str:
    """A line: what was said over what it took."""
    said, took = (_in_a_process(name, what) for what in ("estimate", "analyze"))
    peak, seconds = said["peak"] / took["peak"], said["seconds"] / took["seconds"]
    return (
        f"{name:26s} peak {said['peak'] / 1e6:6.0f} / {took['peak'] / 1e6:6.0f} MB = {peak:.2f}, "
        f"time {said['seconds']:5.1f} / {took['seconds']:5.1f} s = {seconds:.2f}, "
        f"said after {said['took']:.1f} s"
    )


def _in_a_process(name: str, what: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.estimates", name, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if sys.argv[-1] in ("estimate", "analyze"):
        print(json.dumps(figures(*sys.argv[1:])))
    else:
        torch.set_num_threads(1)
        for shape in sys.argv[1:] or SHAPES:
            print(compared(shape), flush=True)
