"""How the time of all layers grows with their number: plain ReLU networks of 8 to 64 layers on the digits."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import layerhess as lh

from .timing import Entry, gradient, say, take_turns, warm_up
from .training import digits
from .workloads import Problem

__all__ = ["LAYERS", "deep_network", "depth_sweep"]

LAYERS = (8, 16, 32, 64)
WIDTH, ROWS = 128, 512  # large enough that what an analysis costs at any size does not hide the growth


def deep_network(layers: int) -> nn.Sequential:
    """So many Linear layers of width 128 with ReLU in between, 64 pixels to 10 classes; He initialised, untrained."""
    torch.manual_seed(0)
    sizes = [64] + [WIDTH] * (layers - 1) + [10]
    modules: list[nn.Module] = [nn.Flatten()]
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        modules += [nn.ReLU(), linear] if i else [linear]
    return nn.Sequential(*modules).eval()


def depth_sweep(runs: int) -> dict[str, object]:
    """CPU seconds of all blocks' certified top eigenvalue for each depth, and the slope of their logarithms."""
    x, y = digits(8)
    loss = nn.CrossEntropyLoss()
    analyses, gradients = [], []
    for layers in LAYERS:
        problem = Problem("depth", deep_network(layers), [(x[:ROWS], y[:ROWS])], loss)
        objective = lh.Objective(problem.model, problem.batches, loss)
        warm_up(problem)
        analyses.append(Entry(f"{layers} layers", "", lambda objective=objective: _analyse(objective)))
        gradients.append(Entry(f"{layers} layers", "unit", lambda problem=problem: gradient(problem)))
    take_turns([entry for pair in zip(analyses, gradients, strict=True) for entry in pair], runs)
    for layers, entry, unit in zip(LAYERS, analyses, gradients, strict=True):
        note = f"; {entry.values} blocks not certified" if entry.values else ""
        say(f"  {layers:3d} layers: {entry.median:.3f} s CPU, {entry.median / unit.median:.1f} gradients{note}")
    seconds = [entry.median for entry in analyses]
    slope, _ = np.polyfit([math.log(n) for n in LAYERS], [math.log(t) for t in seconds], 1)
    return {
        "layers": LAYERS,
        "seconds": seconds,
        "gradient_seconds": [unit.median for unit in gradients],
        "not_certified": [entry.values for entry in analyses],
        "exponent": float(slope),
    }


def _analyse(objective: lh.Objective) -> int:
    analysis = lh.analyze(objective, blocks="weight", top=1, full=False)
    return sum(not block.solved for block in analysis.blocks.values())
