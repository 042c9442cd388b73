"""The truth every contestant is held against: SciPy's eigsh in float64 at 1e-10, one block at a time.

Nothing of layerhess is used here. A block's product is the derivative of its own gradient along a vector, on graphs
that are kept while the block is solved. A float32 run gives the starting vector, which saves half of the float64
products and cannot change the answer: the stopping rule is ARPACK's, in float64. Results are kept in benchmarks/.cache.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from .workloads import CACHE, VERSION, Problem, load

__all__ = ["block_operator", "truth"]

CHUNK = 32  # rows per graph: float64 convolutions on the CPU run almost twice as fast in small pieces


def truth(name: str, say: Callable[[str], None] = print) -> dict[str, float]:
    """Top eigenvalue of every weight block of the workload, float64 at tolerance 1e-10."""
    path = CACHE / f"truth-{name}-v{VERSION}.json"
    done: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    problem = load(name)
    if missing := [block for block in problem.names if block not in done]:
        say(f"truth of {name}: {len(missing)} blocks in float64, once (kept in {CACHE.name}/) ...")
        double = Problem(problem.family, copy.deepcopy(problem.model).double(), problem.batches, problem.loss)
        for block in missing:
            done[block], products = _top(problem, double, block)
            say(f"  {block}: {done[block]:.10g} ({products} float64 products)")
            path.write_text(json.dumps(done, indent=1))
    return {block: done[block] for block in problem.names}


def _top(single: Problem, double: Problem, block: str) -> tuple[float, int]:
    n = dict(single.model.named_parameters())[block].numel()
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    _, vectors = eigsh(block_operator(single, block)[0], k=1, which="LA", tol=1e-5, ncv=12, v0=start)
    operator, count = block_operator(double, block)
    start = vectors[:, 0].astype(np.float64)
    values = eigsh(operator, k=1, which="LA", tol=1e-10, ncv=12, v0=start, return_eigenvectors=False)
    return float(values[0]), count()


def block_operator(problem: Problem, block: str) -> tuple[LinearOperator, Callable[[], int]]:
    """One diagonal block of the Hessian of the mean loss as a SciPy operator, and a counter of its products."""
    parameter: nn.Parameter = dict(problem.model.named_parameters())[block]
    total = sum(y.numel() for _, y in problem.batches)
    slopes = []  # differentiable gradients, one per chunk of rows, scaled so that they sum to that of the mean loss
    for x, y in problem.batches:
        for part, target in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            inputs = part.to(parameter.dtype) if part.is_floating_point() else part
            loss = problem.loss(problem.model(inputs), target) * (target.numel() / total)
            slopes += torch.autograd.grad(loss, parameter, create_graph=True)
    products = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        direction = torch.from_numpy(np.ascontiguousarray(v)).to(parameter.dtype).view_as(parameter)
        out = torch.zeros_like(parameter)
        for slope in slopes:
            out += torch.autograd.grad(slope, parameter, direction, retain_graph=True)[0]
        return out.flatten().numpy()

    dtype = np.float64 if parameter.dtype == torch.float64 else np.float32
    return LinearOperator((parameter.numel(),) * 2, matvec=matvec, dtype=dtype), lambda: products
