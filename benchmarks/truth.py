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
from scipy.sparse.linalg import eigsh

from .kept_graphs import KeptGraphs
from .workloads import CACHE, VERSION, WORKLOADS, Problem, load

__all__ = ["Values", "truth"]

Values = dict[str, list[float]]  # target -> its eigenvalues, descending

CHUNK = 32  # rows per graph: float64 convolutions on the CPU run almost twice as fast in small pieces
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
            values, products = _eigenvalues(problem, double, target)
            done[target] = values
            say(f"  {target}: {values[0]:.10g} and {len(values) - 1} more ({products} float64 products)")
            path.write_text(json.dumps(done, indent=1))
    return {target: np.atleast_1d(done[target]).tolist() for target in problem.targets}


def _eigenvalues(single: Problem, double: Problem, target: str) -> tuple[list[float], int]:
    graphs = KeptGraphs(double, list(double.members(target).values()), CHUNK)
    operator, n = graphs.to_scipy(), graphs.numel
    if single.question.complete and n <= WRITTEN_OUT:
        values = np.linalg.eigvalsh(operator @ np.eye(n))
        return values[::-1].tolist(), graphs.products
    k = single.question.k
    ncv = 12 if k == 1 else max(2 * k + 1, 20)
    start = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    rough = KeptGraphs(single, list(single.members(target).values()), CHUNK).to_scipy()
    _, vectors = eigsh(rough, k=k, which="LA", tol=1e-5, ncv=ncv, v0=start)
    start = vectors.sum(axis=1).astype(np.float64)
    values = eigsh(operator, k=k, which="LA", tol=1e-10, ncv=ncv, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True), graphs.products
