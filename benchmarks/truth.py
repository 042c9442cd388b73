"""The truth every contestant is held against: SciPy's eigsh in float64 at 1e-10, one target at a time.

Nothing of layerhess is used here. A target's product is the derivative of its own gradient along a vector, on graphs
that are kept while the target is solved. A float32 run gives the starting vector, which saves half of the float64
products and cannot change the answer: the stopping rule is ARPACK's, in float64. Where complete spectra are asked for,
a small block's matrix is written out in float64 and all its eigenvalues are taken; of the others the largest is the
truth. Results are kept in benchmarks/.cache.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from .workloads import CACHE, VERSION, Problem, load

__all__ = ["Values", "target_operator", "truth"]

Values = dict[str, list[float]]  # target -> its eigenvalues, descending

CHUNK = 32  # rows per graph: float64 convolutions on the CPU run almost twice as fast in small pieces
WRITTEN_OUT = 640  # parameters of a block whose complete spectrum is computed


def truth(name: str, say: Callable[[str], None] = print) -> Values:
    """The eigenvalues asked for of every target of the workload, float64 at tolerance 1e-10."""
    path = CACHE / f"truth-{name}-v{VERSION}.json"
    done: dict[str, list[float] | float] = json.loads(path.read_text()) if path.exists() else {}
    problem = load(name)
    if missing := [target for target in problem.targets if target not in done]:
        say(f"truth of {name}: {len(missing)} to do in float64, once (kept in {CACHE.name}/) ...")
        double = dataclasses.replace(problem, model=copy.deepcopy(problem.model).double())
        for target in missing:
            values, products = _eigenvalues(problem, double, target)
            done[target] = values
            say(f"  {target}: {values[0]:.10g} and {len(values) - 1} more ({products} float64 products)")
            path.write_text(json.dumps(done, indent=1))
    return {target: np.atleast_1d(done[target]).tolist() for target in problem.targets}


def _eigenvalues(single: Problem, double: Problem, target: str) -> tuple[list[float], int]:
    operator, count = target_operator(double, target)
    n = operator.shape[0]
    if single.question.complete and n <= WRITTEN_OUT:
        values = np.linalg.eigvalsh(operator @ np.eye(n))
        return values[::-1].tolist(), count()
    k = single.question.k
    ncv = 12 if k == 1 else max(2 * k + 1, 20)
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    _, vectors = eigsh(target_operator(single, target)[0], k=k, which="LA", tol=1e-5, ncv=ncv, v0=start)
    start = vectors.sum(axis=1).astype(np.float64)
    values = eigsh(operator, k=k, which="LA", tol=1e-10, ncv=ncv, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True), count()


def target_operator(problem: Problem, target: str) -> tuple[LinearOperator, Callable[[], int]]:
    """One diagonal block of the Hessian of the mean loss, or all of it, and a counter of its products."""
    parameters = list(problem.members(target).values())
    dtype, sizes = parameters[0].dtype, [p.numel() for p in parameters]
    total = sum(y.numel() for _, y in problem.batches)
    slopes = []  # differentiable gradients, one per chunk of rows, scaled so that they sum to that of the mean loss
    for x, y in problem.batches:
        for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            inputs = part.to(dtype) if part.is_floating_point() else part
            loss = problem.loss(problem.model(inputs), labels) * (labels.numel() / total)
            slopes.append(torch.autograd.grad(loss, parameters, create_graph=True))
    products = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        parts = torch.from_numpy(np.ascontiguousarray(v)).to(dtype).flatten().split(sizes)
        direction = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        out = torch.zeros(sum(sizes), dtype=dtype)
        for slope in slopes:
            product = torch.autograd.grad(slope, parameters, direction, retain_graph=True)
            out += torch.cat([part.flatten() for part in product])
        return out.numpy()

    kind = np.float64 if dtype == torch.float64 else np.float32
    return LinearOperator((sum(sizes),) * 2, matvec=matvec, dtype=kind), lambda: products
