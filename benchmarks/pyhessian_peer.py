"""PyHessian 0.1: power iteration on one target at a time, the others frozen; with one batch it keeps the graph."""

from __future__ import annotations

import pyhessian
import torch
from pyhessian.utils import group_product, hessian_vector_product, normalization, orthnormal
from torch import Tensor

from .peer import POWER_CAP, SCOUT_CAP, TOL, Peer, Steps, Values, deviation, only, seed
from .workloads import Problem

__all__ = ["PYHESSIAN"]

# Shares of the target at which the oracle leaves one eigenvalue for the next: as PyHessian takes each later one in the
# complement of the vectors it has, a vector left early can put the right later ones out of reach.
STRICTNESS = (1.0, 0.1, 0.01)


class _StepsInTurn:
    """A `maxIter` that stands for another number of steps each time `range(maxIter)` is called: once an eigenvalue."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = iter(counts)

    def __index__(self) -> int:
        return next(self._counts)


def _operator(problem: Problem, target: str) -> pyhessian.hessian:
    torch.manual_seed(seed(problem, target))
    several = len(problem.batches) > 1
    data = {"dataloader": problem.batches} if several else {"data": problem.batches[0]}
    return pyhessian.hessian(problem.model, problem.loss, cuda=next(problem.model.parameters()).is_cuda, **data)


def _forget(operator: pyhessian.hessian) -> None:
    """A gradient holds its own graph: without this every target's graph would stay in memory."""
    for parameter in operator.params:
        parameter.grad = None


def _pyhessian(problem: Problem, target: str, steps: int | _StepsInTurn, tol: float) -> list[float]:
    with only(problem, target):
        operator = _operator(problem, target)
        values, _ = operator.eigenvalues(maxIter=steps, tol=tol, top_n=problem.question.k)
        _forget(operator)
    return sorted((float(value) for value in values), reverse=True)


def _pyhessian_scout(problem: Problem, truth: Values) -> Steps:
    """Walk through its `eigenvalues` with its own functions and leave each search at the first right quotient."""
    steps = {}
    for target in problem.targets:
        wanted = truth[target][: problem.question.k]
        for share in STRICTNESS if len(wanted) > 1 else (1.0,):
            with only(problem, target):
                operator = _operator(problem, target)
                counts = _walk(operator, wanted, share)
                _forget(operator)
            if counts is not None:
                steps[target] = counts
                break
    return steps


def _walk(operator: pyhessian.hessian, wanted: list[float], share: float) -> list[int] | None:
    """Steps until each eigenvalue in turn is within `share` of the target; None when one never is."""
    found: list[list[Tensor]] = []
    counts = []
    for true in wanted:
        v = normalization([torch.randn(p.size()) for p in operator.params])
        count = 0
        while count < SCOUT_CAP:
            count += 1
            v = orthnormal(v, found)
            if operator.full_dataset:
                operator.model.zero_grad()
                quotient, product = operator.dataloader_hv_product(v)
            else:
                product = hessian_vector_product(operator.gradsH, operator.params, v)
                quotient = group_product(product, v).item()
            v = normalization(product)
            if deviation([wanted[0], quotient], [wanted[0], true]) <= share * TOL:  # the first is there for its size
                break
        else:
            return None
        counts.append(count)
        found.append(v)
    return counts


PYHESSIAN = Peer(
    "PyHessian 0.1",
    lambda problem: {target: _pyhessian(problem, target, POWER_CAP, TOL) for target in problem.targets},
    _pyhessian_scout,
    lambda problem, steps: {t: _pyhessian(problem, t, _StepsInTurn(counts), 0.0) for t, counts in steps.items()},
)
