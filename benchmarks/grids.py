"""The peers' free settings: products each would take by its own rule, over a grid (`python -m benchmarks.grids NAME`).

Both peers see a target only through the Krylov space of their start, so one long Lanczos run stands for it: its
tridiagonal matrix, with the first unit vector as the start, gives the same recurrence at no cost.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and NumPy start their pools

import sys
from contextlib import suppress

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator

from .eigenthings_peer import tridiagonal
from .kept_peers import arpack
from .peer import TOL, only
from .workloads import load, prepare

FIRST = {1: (4, 8, 10, 16, 20), 5: (12, 14, 16, 18, 20, 22, 24, 26, 28, 30), 10: (20, 22, 24, 26, 28, 30, 32, 40)}
NCV = {1: (3, 4, 5, 6, 8, 10, 20), 5: (7, 8, 10, 12, 14, 15, 16, 18, 20), 10: (12, 14, 15, 16, 18, 20, 25, 30)}
LENGTH = 60


def doubling(t: np.ndarray, k: int, first: int) -> int:
    """Steps of hessian-eigenthings: `first`, doubled from scratch until it says that all have converged."""
    spent, steps = 0, first
    while True:
        m = min(steps, len(t))
        spent += m
        values, vectors = np.linalg.eigh(t[:m, :m])
        if m == len(t):
            return spent
        residuals = np.abs(t[m, m - 1] * vectors[-1, -k:])
        if np.all(residuals < TOL * np.abs(values[-k:])):
            return spent
        steps *= 2


def eigsh_products(t: np.ndarray, k: int, ncv: int) -> int:
    """Products of ARPACK on the same Krylov space."""
    count = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return (t @ v).astype(np.float32)

    operator = LinearOperator(t.shape, matvec=matvec, dtype=np.float32)
    with suppress(ArpackNoConvergence):
        arpack(operator, np.eye(1, len(t), dtype=np.float32)[0], k, ncv, TOL)
    return count


def main(name: str = "resnet8-top10") -> int:
    """Print mean products a target for every value of both grids."""
    torch.set_num_threads(1)
    prepare(name, print)
    problem = load(name)
    k = problem.question.k
    runs = []
    for target in problem.targets:
        with only(problem, target):
            runs.append(tridiagonal(problem, target, LENGTH))
    longest = max(len(t) for t in runs)
    print(f"{name}, top {k}: mean products a target, {len(runs)} targets, Lanczos runs of up to {longest} steps")
    for first in FIRST[k]:
        print(f"  hessian-eigenthings, max_iter from {first}: {np.mean([doubling(t, k, first) for t in runs]):.1f}")
    for ncv in NCV[k]:
        print(f"  eigsh, ncv = {ncv}: {np.mean([eigsh_products(t, k, ncv) for t in runs]):.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
