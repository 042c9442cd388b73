"""The truth every contestant is held against, one target at a time.

SciPy's `eigsh` in float32 at 1e-5 gives vectors; the Hessian in their span, written out in float64, gives values and
residuals. A residual bounds an eigenvalue's error, and is at most 1e-4 of the value here, a tenth of what contestants
are held to; the error to be expected is its square over the gap. Where a residual is larger, ARPACK goes on in float64
to 1e-10. Nothing of layerhess is used here. A target's product is the derivative of its own gradient along a vector, on
graphs that are kept while the target is solved. Where complete spectra are asked for, a small block's matrix is written
out in float64 and all its eigenvalues are taken; of the others the largest is the truth. Results are kept in
benchmarks/.cache.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable

import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from .kept_graphs import KeptGraphs
from .workloads import CACHE, VERSION, WORKLOADS, Problem, load

__all__ = ["Values", "rayleigh_ritz", "truth"]

Values = dict[str, list[float]]  # target -> its eigenvalues, descending

CHUNK = 32  # rows per graph: float64 convolutions on the CPU run almost twice as fast in small pieces
ENOUGH = 1e-4  # residuals up to this share of a value, or of a tenth of the largest, are the truth's
SMALLEST = 0.1
WRITTEN_OUT = 640  # parameters of a block whose complete spectrum is computed


def truth(name: str, say: Callable[[str], None] = print) -> Values:
    """The eigenvalues asked for of every target of the workload, float64 at tolerance 1e-10."""
    path = CACHE / f"truth-{WORKLOADS[name].asked}-v{VERSION}.json"
    done: dict[str, list[float] | float] = json.loads(path.read_text()) if path.exists() else {}
    problem = load(name)
    if missing := [target for target in problem.targets if target not in done]:
        say(f"truth of {name}: {len(missing)} to do in float64, once (kept in {CACHE.name}/) ...")
        double = dataclasses.replace(problem, model=copy.deepcopy(problem.model).double())
        for target in missing:
            values, how = _eigenvalues(problem, double, target)
            done[target] = values
            say(f"  {target}: {values[0]:.10g} and {len(values) - 1} more ({how})")
            path.write_text(json.dumps(done, indent=1))
    return {target: np.atleast_1d(done[target]).tolist() for target in problem.targets}


def _eigenvalues(single: Problem, double: Problem, target: str) -> tuple[list[float], str]:
    graphs = KeptGraphs(double, list(double.members(target).values()), CHUNK)
    n, k = graphs.numel, single.question.k
    if single.question.complete and n <= WRITTEN_OUT:
        values = np.linalg.eigvalsh(graphs.to_scipy() @ np.eye(n))
        return values[::-1].tolist(), "all, from the matrix"
    ncv = 12 if k == 1 else max(2 * k + 1, 20)
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    rough = KeptGraphs(single, list(single.members(target).values()), CHUNK).to_scipy()
    _, vectors = eigsh(rough, k=k, which="LA", tol=1e-5, ncv=ncv, v0=start)
    values, residuals = rayleigh_ritz(graphs.to_scipy(), vectors.astype(np.float64))
    bounds = residuals / np.maximum(np.abs(values), SMALLEST * np.abs(values).max())
    if bounds.max() <= ENOUGH:
        return values.tolist(), f"within {bounds.max():.0e}"
    start = vectors.sum(axis=1).astype(np.float64)
    values = eigsh(graphs.to_scipy(), k=k, which="LA", tol=1e-10, ncv=ncv, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True), f"{graphs.products} float64 products"


def rayleigh_ritz(operator: LinearOperator, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (k,) of a symmetric operator in the span of vectors (n, k), descending, and their residuals (k,)."""
    basis, _ = np.linalg.qr(vectors)
    image = operator @ basis
    inner = basis.T @ image
    values, rotation = np.linalg.eigh((inner + inner.T) / 2)
    residuals = np.linalg.norm(image @ rotation - basis @ rotation * values, axis=0)
    return values[::-1], residuals[::-1]
