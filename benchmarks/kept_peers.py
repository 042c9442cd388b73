"""The strongest peers, and the shortest: a target's graphs made once, under SciPy's eigsh or power iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from .kept_graphs import KeptGraphs
from .peer import POWER_CAP, SCOUT_CAP, TOL, Peer, Steps, Values, near, network, only, seed
from .workloads import Problem

__all__ = ["KEPT_EIGSH", "KEPT_POWER", "NCV", "SETTINGS", "arpack", "remembering", "start_vector"]

# (tolerance, Lanczos vectors) for one eigenvalue, one vector more for each further one: the oracle takes the first
# with which eigsh gives the right answer.
SETTINGS = ((1e-1, 6), (1e-2, 8), (1e-2, 12), (1e-3, 20), (1e-5, 20))
# Lanczos vectors of eigsh by its own rule, the best of a grid: (number of eigenvalues, network)
NCV = {(1, "resnet"): 6, (5, "resnet"): 15, (10, "resnet"): 16, (1, "gpt"): 6, (5, "gpt"): 20}


# ---- SciPy's eigsh


def arpack(operator: LinearOperator, start: np.ndarray, k: int, ncv: int, tol: float) -> list[float]:
    """The k largest eigenvalues, descending."""
    ncv = min(ncv, operator.shape[0])
    values = eigsh(operator, k=k, which="LA", ncv=ncv, tol=tol, v0=start, return_eigenvectors=False)
    return sorted(values.tolist(), reverse=True)


def start_vector(operator: LinearOperator, number: int) -> np.ndarray:
    """A target's random start, float32."""
    return np.random.default_rng(number).standard_normal(operator.shape[0]).astype(np.float32)


def remembering(inner: LinearOperator) -> LinearOperator:
    """The same operator, whose products of equal vectors are made once: for oracles, which try many settings."""
    known: dict[bytes, np.ndarray] = {}

    def matvec(v: np.ndarray) -> np.ndarray:
        key = v.tobytes()
        if key not in known:
            known[key] = inner @ v
        return known[key]

    return LinearOperator(inner.shape, matvec=matvec, dtype=inner.dtype)


def _solved(problem: Problem, target: str, tol: float, ncv: int) -> list[float]:
    with only(problem, target) as parameters:
        operator = KeptGraphs(problem, parameters).to_scipy()
        return arpack(operator, start_vector(operator, seed(problem, target)), problem.question.k, ncv, tol)


def _eigsh_own(problem: Problem) -> Values:
    ncv = NCV[problem.question.k, network(problem)]
    return {target: _solved(problem, target, TOL, ncv) for target in problem.targets}


def _setting(number: int, k: int) -> tuple[float, int]:
    tol, ncv = SETTINGS[number - 1]
    return tol, ncv + k - 1


def _eigsh_scout(problem: Problem, truth: Values) -> Steps:
    steps: Steps = {}
    k = problem.question.k
    for target in problem.targets:
        with only(problem, target) as parameters:
            operator = remembering(KeptGraphs(problem, parameters).to_scipy())
            start = start_vector(operator, seed(problem, target))
            for number in range(1, len(SETTINGS) + 1):
                tol, ncv = _setting(number, k)
                if near(arpack(operator, start, k, ncv, tol), truth[target]):
                    steps[target] = [number]
                    break
    return steps


KEPT_EIGSH = Peer(
    "kept graphs + eigsh",
    _eigsh_own,
    _eigsh_scout,
    lambda problem, steps: {
        target: _solved(problem, target, *_setting(number, problem.question.k)) for target, (number,) in steps.items()
    },
    kept=True,
    counted="places of the settings in their list",
)


# ---- power iteration


def _quotients(graphs: KeptGraphs, like: torch.Tensor, number: int) -> Iterator[float]:
    """Rayleigh quotients, one product each."""
    generator = torch.Generator().manual_seed(number)
    v = torch.randn(graphs.numel, generator=generator).to(like.device, like.dtype)
    v /= v.norm()
    while True:
        product = graphs.product(v)
        yield (v @ product).item()
        v = product / product.norm()


def _each(problem: Problem, targets: list[str], last: Callable[[str, Iterator[float]], float]) -> Values:
    values = {}
    for target in targets:
        with only(problem, target) as parameters:
            graphs = KeptGraphs(problem, parameters)
            values[target] = [last(target, _quotients(graphs, parameters[0], seed(problem, target)))]
    return values


def _settled(_: str, quotients: Iterator[float]) -> float:
    """At most 100 steps, until the quotient changes by less than 1e-3 of itself."""
    before = float("nan")
    for quotient in islice(quotients, POWER_CAP):
        if abs(quotient - before) < TOL * abs(quotient):
            break
        before = quotient
    return quotient


def _power_scout(problem: Problem, truth: Values) -> Steps:
    steps: Steps = {}

    def counted(target: str, quotients: Iterator[float]) -> float:
        for step, quotient in enumerate(islice(quotients, SCOUT_CAP), 1):
            if near([quotient], truth[target]):
                steps[target] = [step]
                break
        return quotient

    _each(problem, problem.targets, counted)
    return steps


KEPT_POWER = Peer(
    "kept graphs + power iteration",
    lambda problem: _each(problem, problem.targets, _settled),
    _power_scout,
    lambda problem, steps: _each(problem, list(steps), lambda target, q: next(islice(q, steps[target][0] - 1, None))),
    most=1,
    kept=True,
)
