"""How long the additive problem takes: 200 layers, 8 options, two limits: `python -m benchmarks.allocation`.

Kinds of tables as those of networks, and harder ones; CPU seconds of this process, over seeds, and how many are proven.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import layerhess as lh

LAYERS, SEEDS = 200, 40
Table = np.ndarray[Any, np.dtype[np.float64]]


def table(kind: str, seed: int) -> tuple[Table, list[Table]]:
    """Costs, and two uses, of 1 to 8 bits."""
    rng, bits = np.random.default_rng(seed), np.arange(1.0, 9.0)
    uneven = np.exp(rng.normal(0, 1, (LAYERS, 1))) * np.exp(rng.normal(0, 0.1, (LAYERS, 8)))
    n = np.exp(rng.normal(10, 1.2, (LAYERS, 1))).round() * 64
    if kind == "convolutions":
        return n * 4.0**-bits * uneven, [n * bits / 8, n * rng.choice([1, 49, 196, 784], (LAYERS, 1)) * bits]
    if kind == "equal sizes":
        return 4.0**-bits * uneven, [np.ones((LAYERS, 1)) * bits, rng.integers(1, 5, (LAYERS, 1)) * bits]
    if kind == "random":
        return rng.random((LAYERS, 8)), [rng.random((LAYERS, 8)), rng.random((LAYERS, 8))]
    first = rng.integers(1, 1000, (LAYERS, 1)) * bits  # costs that are the uses but for noise
    second = first * (1 + 0.3 * rng.random((LAYERS, 8)))
    return -(first + second) + rng.integers(-50, 50, (LAYERS, 8)), [first, second]


def main() -> None:
    for kind in ("convolutions", "equal sizes", "random", "nearly proportional"):
        spent, proven = [], 0
        seeds = SEEDS if kind != "nearly proportional" else 3
        for seed in range(seeds):
            cost, uses = table(kind, seed)
            limits = [use.min(1).sum() + 0.3 * (use.max(1).sum() - use.min(1).sum()) for use in uses]
            began = time.process_time()
            found = lh.allocate(cost, uses, limits, time_limit=20.0)
            spent.append(time.process_time() - began)
            proven += found.optimal
        print(f"{kind:20} proven {proven} of {seeds}, median {np.median(spent):.3f} s, at most {max(spent):.2f} s")


if __name__ == "__main__":
    main()
