"""Small problems with interactions, and all their plans judged without our code."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerhess.planning.allocation.problem import Problem
from layerhess.planning.allocation.quadratic import Quadratic


@dataclass
class Small:
    """A problem with interactions and the objective of each plan within its limits."""

    quadratic: Quadratic
    plans: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]

    @property
    def least(self) -> float:
        return float(self.values.min())


def small(seed: int, layers: int = 5, options: int = 3, strength: float = 1.0, kind: str = "indefinite") -> Small:
    """Random costs, interactions and one limit; every third has tied layers and a pinned one."""
    rng = np.random.default_rng(seed)
    shape = layers, options
    cost = rng.normal(size=shape)
    if kind == "gram":  # as of changes of outputs, own blocks given
        change = rng.normal(size=(*shape, 12)) + rng.normal(size=12)
        pairs = strength * np.einsum("lki,mpi->lkmp", change, change)
        cost = np.einsum("lki,lki->lk", change, change) * strength / 2
    else:
        pairs = rng.normal(size=(*shape, *shape)) * strength
        pairs = pairs + pairs.transpose(2, 3, 0, 1)
    cost[rng.random(shape) < 0.1] = np.inf
    cost[:, -1] = np.where(np.isinf(cost[:, -1]), 0.5, cost[:, -1])
    use = np.cumsum(rng.integers(1, 5, shape), axis=1)[:, ::-1].astype(float)
    limit = float(use[:, -1].sum() + 0.5 * (use[:, 0] - use[:, -1]).sum())
    tied = [[0, 2]] if seed % 3 == 0 else []
    pinned = {1: options - 1} if seed % 3 == 0 else {}
    every = np.array(list(itertools.product(range(options), repeat=layers)))
    values, good = [], []
    for plan in every:
        value = sum(cost[i, plan[i]] for i in range(layers))
        value += sum(pairs[i, plan[i], j, plan[j]] for i in range(layers) for j in range(i + 1, layers))
        fits = sum(use[i, plan[i]] for i in range(layers)) <= limit * (1 + 1e-9) and np.isfinite(value)
        fits = fits and (not tied or plan[0] == plan[2]) and all(plan[i] == k for i, k in pinned.items())
        values.append(value)
        good.append(fits)
    keep = np.array(good)
    quadratic = Quadratic(Problem(cost, [use], [limit], tied, pinned), pairs)
    return Small(quadratic, every[keep], np.array(values)[keep])
