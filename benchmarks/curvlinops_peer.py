"""curvlinops 3.0.1: its Hessian operator under SciPy's eigsh."""

from __future__ import annotations

from curvlinops import HessianLinearOperator
from scipy.sparse.linalg import LinearOperator
from torch import nn

from .kept_peers import NCV, arpack, remembering, start_vector
from .peer import LONGEST, TOL, Peer, Steps, Values, near, network, only, seed
from .workloads import Problem

__all__ = ["CURVLINOPS"]


def _operator(problem: Problem, parameters: list[nn.Parameter]) -> LinearOperator:
    rows = sum(len(x) for x, _ in problem.batches)
    hessian = HessianLinearOperator(
        problem.model, problem.loss, parameters, problem.batches, check_deterministic=False, num_data=rows
    )
    return hessian.to_scipy()


def _solve(problem: Problem, target: str, ncv: int, tol: float) -> list[float]:
    with only(problem, target) as parameters:
        operator = _operator(problem, parameters)
        return arpack(operator, start_vector(operator, seed(problem, target)), problem.question.k, ncv, tol)


ANY = 1e6  # a tolerance every Ritz value meets: ARPACK then stops after its first pass of ncv products


def _curvlinops_own(problem: Problem) -> Values:
    ncv = NCV[problem.question.k, network(problem)]
    return {target: _solve(problem, target, ncv, TOL) for target in problem.targets}


def _curvlinops_scout(problem: Problem, truth: Values) -> Steps:
    """ARPACK's first products do not depend on ncv, so remembered ones make the search for the smallest ncv cheap."""
    steps = {}
    k = problem.question.k
    for target in problem.targets:
        with only(problem, target) as parameters:
            operator = remembering(_operator(problem, parameters))
            start = start_vector(operator, seed(problem, target))
            for ncv in range(k + 1, min(LONGEST[k], operator.shape[0])):
                if near(arpack(operator, start, k, ncv, ANY), truth[target]):
                    steps[target] = [ncv]
                    break
    return steps


CURVLINOPS = Peer(
    "curvlinops 3.0.1 + eigsh",
    _curvlinops_own,
    _curvlinops_scout,
    lambda problem, steps: {target: _solve(problem, target, count, ANY) for target, (count,) in steps.items()},
)
