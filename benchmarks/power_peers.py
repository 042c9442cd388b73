"""The two peers that iterate powers: the notebook's loop, and PyHessian."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyhessian
import torch
from pyhessian.utils import group_product, hessian_vector_product, normalization, orthnormal
from torch import Tensor, nn

from .peer import TOL, Peer, Steps, Values, deviation, near, only, seed
from .workloads import Problem

__all__ = ["NOTEBOOK", "PYHESSIAN"]

POWER_CAP = 100  # steps of power iteration, PyHessian's default
SCOUT_CAP = 300  # beyond this many steps for one eigenvalue the oracle gives a power iteration up
# Shares of the target at which the oracle leaves one eigenvalue for the next: as PyHessian takes each later one in the
# complement of the vectors it has, a vector left early can put the right later ones out of reach.
STRICTNESS = (1.0, 0.1, 0.01)


# ---- the notebook: power iteration per layer, a fresh Hessian-vector product a step, the Rayleigh quotient


def _quotients(problem: Problem, parameters: list[nn.Parameter], number: int) -> Iterator[float]:
    """Rayleigh quotients of power iteration, one fresh pass over the data each."""
    generator = torch.Generator().manual_seed(number)
    v = _unit([torch.randn(p.shape, generator=generator) for p in parameters])
    total = sum(y.numel() for _, y in problem.batches)
    while True:
        product = [torch.zeros_like(part) for part in v]
        for x, y in problem.batches:
            loss = problem.loss(problem.model(x), y)
            slopes = torch.autograd.grad(loss, parameters, create_graph=True)
            along = sum((slope * part).sum() for slope, part in zip(slopes, v, strict=True))
            for sum_, part in zip(product, torch.autograd.grad(along, parameters), strict=True):
                sum_ += part * (y.numel() / total)
        yield float(sum((part * other).sum() for part, other in zip(v, product, strict=True)))
        v = _unit(product)


def _unit(parts: list[Tensor]) -> list[Tensor]:
    norm = torch.sqrt(sum((part.square().sum() for part in parts), start=torch.zeros(())))
    return [part / norm for part in parts]


def _notebook_own(problem: Problem) -> Values:
    """At most 100 steps, until the quotient changes by less than 1e-3 of itself."""
    values = {}
    for target in problem.targets:
        with only(problem, target) as parameters:
            last = float("nan")
            for step, quotient in enumerate(_quotients(problem, parameters, seed(problem, target)), 1):
                if abs(quotient - last) < TOL * abs(quotient) or step == POWER_CAP:
                    break
                last = quotient
            values[target] = [quotient]
    return values


def _notebook_scout(problem: Problem, truth: Values) -> Steps:
    steps = {}
    for target in problem.targets:
        with only(problem, target) as parameters:
            quotients = _quotients(problem, parameters, seed(problem, target))
            for step, quotient in enumerate(islice(quotients, SCOUT_CAP), 1):
                if near([quotient], truth[target]):
                    steps[target] = [step]
                    break
    return steps


def _notebook_exact(problem: Problem, steps: Steps) -> Values:
    values = {}
    for target, (count,) in steps.items():
        with only(problem, target) as parameters:
            quotients = _quotients(problem, parameters, seed(problem, target))
            values[target] = [next(islice(quotients, count - 1, None))]
    return values


NOTEBOOK = Peer("notebook's power iteration", _notebook_own, _notebook_scout, _notebook_exact, most=1)


# ---- PyHessian 0.1: everything but one target frozen; with one batch it keeps the graph by itself


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
    return pyhessian.hessian(problem.model, problem.loss, cuda=False, **data)


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
