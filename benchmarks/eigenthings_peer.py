"""hessian-eigenthings 1.0.0a5: its Lanczos, one param_filter at a time."""

from __future__ import annotations

import hessian_eigenthings as eigenthings
import numpy as np
import torch
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal

from .peer import LONGEST, TOL, Peer, Steps, Values, near, network, only, seed
from .workloads import FULL, Problem

__all__ = ["EIGENTHINGS", "LANCZOS_STEPS", "tridiagonal"]

# The best of a grid (README.md has them, `benchmarks.grids` makes them):
# (number of eigenvalues, network) -> hessian-eigenthings' max_iter, doubled while it says "not converged"
LANCZOS_STEPS = {(1, "resnet"): 8, (5, "resnet"): 16, (10, "resnet"): 24, (1, "gpt"): 16, (5, "gpt"): 22}


def _filtered(problem: Problem, target: str) -> eigenthings.HessianOperator:
    """Its operator of one target."""
    loss = eigenthings.supervised_loss(problem.loss)
    chosen = None if target == FULL else eigenthings.match_names(target)
    return eigenthings.HessianOperator(problem.model, problem.batches, loss, param_filter=chosen)


def _lanczos(problem: Problem, target: str, steps: int) -> tuple[list[float], bool]:
    """Its answer after so many steps, and whether it says that all eigenvalues have converged."""
    operator, k = _filtered(problem, target), problem.question.k
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
            first = LANCZOS_STEPS[problem.question.k, network(problem)]
            steps, converged = first, False
            while not converged and steps <= 16 * first:
                values[target], converged = _lanczos(problem, target, steps)
                steps *= 2
    return values


def tridiagonal(problem: Problem, target: str, steps: int) -> np.ndarray:
    """T of one long run of its own recurrence, float64; the leading m x m part is the state after m steps."""
    operator = _filtered(problem, target)
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
