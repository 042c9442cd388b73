"""The two peers with Krylov spaces: hessian-eigenthings' Lanczos, and curvlinops under SciPy's eigsh."""

from __future__ import annotations

import hessian_eigenthings as eigenthings
import numpy as np
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from .peer import TOL, Peer, Steps, Values, near, only, seed
from .workloads import FULL, Problem

__all__ = ["CURVLINOPS", "EIGENTHINGS", "LANCZOS_STEPS", "NCV"]

# The best of a grid (README.md has them, `benchmarks.grids` makes them):
# (number of eigenvalues, network) -> hessian-eigenthings' max_iter, doubled while it says "not converged"
LANCZOS_STEPS = {(1, "resnet"): 8, (5, "resnet"): 16, (10, "resnet"): 24, (1, "gpt"): 16, (5, "gpt"): 22}
# the same -> Lanczos vectors of eigsh
NCV = {(1, "resnet"): 6, (5, "resnet"): 15, (10, "resnet"): 16, (1, "gpt"): 6, (5, "gpt"): 20}
LONGEST = {1: 32, 5: 200, 10: 200}  # the oracle's longest Lanczos run


# ---- hessian-eigenthings 1.0.0a5: its Lanczos, one param_filter at a time


def _network(problem: Problem) -> str:
    return "gpt" if problem.family == "gpt" else "resnet"


def _vectors(problem: Problem) -> int:
    return NCV[problem.question.k, _network(problem)]


def filtered(problem: Problem, target: str) -> eigenthings.HessianOperator:
    """Its operator of one target."""
    loss = eigenthings.supervised_loss(problem.loss)
    chosen = None if target == FULL else eigenthings.match_names(target)
    return eigenthings.HessianOperator(problem.model, problem.batches, loss, param_filter=chosen)


def _lanczos(problem: Problem, target: str, steps: int) -> tuple[list[float], bool]:
    """Its answer after so many steps, and whether it says that all eigenvalues have converged."""
    operator, k = filtered(problem, target), problem.question.k
    steps = min(steps, operator.size)
    found = eigenthings.lanczos(
        operator, k=k, max_iter=steps, tol=TOL, which="LA", seed=seed(problem, target), reorthogonalize=True
    )
    return found.eigenvalues.tolist(), bool(found.converged.all()) or steps == operator.size


def _eigenthings_own(problem: Problem) -> Values:
    """It does not stop early but says whether it converged: start with a few steps, double where it says no."""
    values = {}
    for target in problem.targets:
        with only(problem, target):
            first = LANCZOS_STEPS[problem.question.k, _network(problem)]
            steps, converged = first, False
            while not converged and steps <= 16 * first:
                values[target], converged = _lanczos(problem, target, steps)
                steps *= 2
    return values


def tridiagonal(problem: Problem, target: str, steps: int) -> np.ndarray:
    """T of one long run of its own recurrence, float64; the leading m x m part is the state after m steps."""
    operator = filtered(problem, target)
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed(problem, target)))
    run = lanczos_tridiagonal(operator, start, min(steps, operator.size))
    a, b = run.alphas.double().numpy(), run.betas.double().numpy()[: len(run.alphas) - 1]
    return np.diag(a) + np.diag(b, 1) + np.diag(b, -1)


def _eigenthings_scout(problem: Problem, truth: Values) -> Steps:
    steps: Steps = {}
    k = problem.question.k
    for target in problem.targets:
        with only(problem, target):
            t = tridiagonal(problem, target, 32)
            while target not in steps:
                for m in range(k, len(t) + 1):
                    if near(np.linalg.eigvalsh(t[:m, :m])[::-1][:k], truth[target]):
                        steps[target] = [m]
                        break
                else:
                    if len(t) >= LONGEST[k] or len(t) < 32:
                        break
                    t = tridiagonal(problem, target, 2 * len(t))
    return steps


def _eigenthings_exact(problem: Problem, steps: Steps) -> Values:
    values = {}
    for target, (count,) in steps.items():
        with only(problem, target):
            values[target] = _lanczos(problem, target, count)[0]
    return values


EIGENTHINGS = Peer("hessian-eigenthings 1.0.0a5", _eigenthings_own, _eigenthings_scout, _eigenthings_exact)


# ---- curvlinops 3.0.1: its Hessian operator under SciPy's eigsh


def _operator(problem: Problem, parameters: list[nn.Parameter]) -> LinearOperator:
    rows = sum(len(x) for x, _ in problem.batches)
    hessian = HessianLinearOperator(
        problem.model, problem.loss, parameters, problem.batches, check_deterministic=False, num_data=rows
    )
    return hessian.to_scipy()


def arpack(operator: LinearOperator, start: np.ndarray, k: int, ncv: int, tol: float) -> list[float]:
    """The k largest eigenvalues, descending."""
    ncv = min(ncv, operator.shape[0])
    values = eigsh(operator, k=k, which="LA", ncv=ncv, tol=tol, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True)


def _start(operator: LinearOperator, number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(operator.shape[0]).astype(np.float32)


def _solve(problem: Problem, target: str, ncv: int, tol: float) -> list[float]:
    with only(problem, target) as parameters:
        operator = _operator(problem, parameters)
        return arpack(operator, _start(operator, seed(problem, target)), problem.question.k, ncv, tol)


ANY = 1e6  # a tolerance every Ritz value meets: ARPACK then stops after its first pass of ncv products


def _curvlinops_scout(problem: Problem, truth: Values) -> Steps:
    """ARPACK's first products do not depend on ncv, so remembered ones make the search for the smallest ncv cheap."""
    steps = {}
    k = problem.question.k
    for target in problem.targets:
        with only(problem, target) as parameters:
            inner = _operator(problem, parameters)
            start = _start(inner, seed(problem, target))
            known: dict[bytes, np.ndarray] = {}

            def matvec(v: np.ndarray, inner: LinearOperator = inner, known: dict = known) -> np.ndarray:
                key = v.tobytes()
                if key not in known:
                    known[key] = inner @ v
                return known[key]

            remembering = LinearOperator(inner.shape, matvec=matvec, dtype=inner.dtype)
            for ncv in range(k + 1, min(LONGEST[k], inner.shape[0])):
                if near(arpack(remembering, start, k, ncv, ANY), truth[target]):
                    steps[target] = [ncv]
                    break
    return steps


CURVLINOPS = Peer(
    "curvlinops 3.0.1 + eigsh",
    lambda problem: {target: _solve(problem, target, _vectors(problem), TOL) for target in problem.targets},
    _curvlinops_scout,
    lambda problem, steps: {target: _solve(problem, target, count, ANY) for target, (count,) in steps.items()},
)
