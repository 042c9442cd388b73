"""The notebook's algorithm: power iteration per layer, a fresh Hessian-vector product a step, the Rayleigh quotient."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from .peer import POWER_CAP, SCOUT_CAP, TOL, Peer, Steps, Values, near, only, seed
from .workloads import Problem

__all__ = ["NOTEBOOK"]


def _quotients(problem: Problem, parameters: list[nn.Parameter], number: int) -> Iterator[float]:
    """Rayleigh quotients of power iteration, one fresh pass over the data each."""
    generator = torch.Generator().manual_seed(number)
    v = _unit([torch.randn(p.shape, generator=generator).to(p) for p in parameters])
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
    norm = torch.sqrt(sum((part.square().sum() for part in parts), start=parts[0].new_zeros(())))
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
