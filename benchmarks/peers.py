"""The four peers, each in its best documented setting. Every function answers for all weight blocks of one problem.

A peer is three functions: `own` lets it stop by its own rule; `scout` (never timed) finds, with the truth at hand, the
smallest number of steps per block after which its answer is within the target; `exact_steps` (timed) takes just those.
README.md says for each how the oracle looks inside. Seeds are fixed per block: the timed run repeats the scouted one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import hessian_eigenthings as eigenthings
import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings.algorithms.lanczos import lanczos_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from .workloads import Problem

__all__ = ["PEERS", "TOL", "Peer", "Steps"]

TOL = 1e-3
POWER_CAP = 100  # steps of power iteration, PyHessian's default
SCOUT_CAP = 300  # beyond this many steps the oracle gives a power iteration up
# One setting for all workloads, the fastest of a small grid over them (README.md has the grids):
LANCZOS_STEPS = 8  # hessian-eigenthings' max_iter (grid 4, 8, 10, 16, 20), doubled while it says "not converged"
NCV = 6  # Lanczos vectors of eigsh (grid 3 to 20; its default of 20 never takes fewer than 21 products)
KRYLOV_CAP = 32  # the oracle's longest Lanczos run

Values = dict[str, float]
Steps = dict[str, int]  # a block that never came within the target is absent


@dataclass(frozen=True)
class Peer:
    """A way to all blocks' top eigenvalues: by its own rule, and with the fewest steps that are right."""

    title: str
    own: Callable[[Problem], Values]
    scout: Callable[[Problem, Values], Steps]
    exact_steps: Callable[[Problem, Steps], Values]


def _near(value: float, true: float) -> bool:
    return abs(value - true) <= TOL * abs(true)


def _seed(problem: Problem, block: str) -> int:
    return problem.names.index(block)


@contextmanager
def _only(problem: Problem, block: str) -> Iterator[nn.Parameter]:
    """Freeze everything but one block, so that a peer builds the smallest graph it can."""
    parameters = dict(problem.model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name == block)
    try:
        yield parameters[block]
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = None


# ---- the notebook: power iteration per layer, a fresh Hessian-vector product a step, the Rayleigh quotient


def _quotients(problem: Problem, parameter: nn.Parameter, seed: int) -> Iterator[float]:
    """Rayleigh quotients of power iteration, one fresh pass over the data each."""
    v = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    v /= v.norm()
    total = sum(y.numel() for _, y in problem.batches)
    while True:
        product = torch.zeros_like(v)
        for x, y in problem.batches:
            loss = problem.loss(problem.model(x), y)
            (slope,) = torch.autograd.grad(loss, parameter, create_graph=True)
            product += torch.autograd.grad((slope * v).sum(), parameter)[0] * (y.numel() / total)
        yield float((v * product).sum())
        v = product / product.norm()


def _notebook_own(problem: Problem) -> Values:
    """At most 100 steps, until the quotient changes by less than 1e-3 of itself."""
    values = {}
    for block in problem.names:
        with _only(problem, block) as parameter:
            last = float("nan")
            for step, quotient in enumerate(_quotients(problem, parameter, _seed(problem, block)), 1):
                if abs(quotient - last) < TOL * abs(quotient) or step == POWER_CAP:
                    break
                last = quotient
            values[block] = quotient
    return values


def _notebook_scout(problem: Problem, truth: Values) -> Steps:
    steps = {}
    for block in problem.names:
        with _only(problem, block) as parameter:
            quotients = _quotients(problem, parameter, _seed(problem, block))
            for step, quotient in enumerate(islice(quotients, SCOUT_CAP), 1):
                if _near(quotient, truth[block]):
                    steps[block] = step
                    break
    return steps


def _notebook_exact(problem: Problem, steps: Steps) -> Values:
    values = {}
    for block, count in steps.items():
        with _only(problem, block) as parameter:
            values[block] = next(islice(_quotients(problem, parameter, _seed(problem, block)), count - 1, None))
    return values


# ---- PyHessian 0.1: everything but one layer frozen; with one batch it keeps the graph by itself


def _pyhessian(problem: Problem, block: str, steps: int, tol: float) -> float:
    torch.manual_seed(_seed(problem, block))
    several = len(problem.batches) > 1
    with _only(problem, block):
        data = {"dataloader": problem.batches} if several else {"data": problem.batches[0]}
        operator = pyhessian.hessian(problem.model, problem.loss, cuda=False, **data)
        value = float(operator.eigenvalues(maxIter=steps, tol=tol)[0][0])
        for parameter in operator.params:
            parameter.grad = None  # it holds its own graph: without this every layer's graph would stay in memory
    return value


def _pyhessian_scout(problem: Problem, truth: Values) -> Steps:
    """Watch the Rayleigh quotients go by and leave at the first right one."""

    class Right(Exception):
        pass

    module = importlib.import_module("pyhessian.hessian")  # the package's attribute of that name is the class
    original = module.group_product
    steps: Steps = {}
    for block in problem.names:
        calls: list[float] = []

        def watch(xs: object, ys: object, block: str = block, calls: list[float] = calls) -> torch.Tensor:
            value = original(xs, ys)
            if xs is not ys:  # <Hv, v>; a norm has the same list twice
                calls.append(float(value))
                if _near(calls[-1], truth[block]):
                    raise Right
            return value

        module.group_product = watch
        try:
            _pyhessian(problem, block, SCOUT_CAP, 0.0)
        except Right:
            steps[block] = len(calls)
        finally:
            module.group_product = original
    return steps


# ---- hessian-eigenthings 1.0.0a5: its Lanczos, one param_filter at a time


def _filtered(problem: Problem, block: str) -> eigenthings.HessianOperator:
    loss = eigenthings.supervised_loss(problem.loss)
    chosen = eigenthings.match_names(block)
    return eigenthings.HessianOperator(problem.model, problem.batches, loss, param_filter=chosen)


def _lanczos(problem: Problem, block: str, steps: int) -> tuple[float, bool]:
    operator = _filtered(problem, block)
    steps = min(steps, operator.size)
    found = eigenthings.lanczos(operator, k=1, max_iter=steps, tol=TOL, which="LA", seed=_seed(problem, block))
    return float(found.eigenvalues[0]), bool(found.converged[0]) or steps == operator.size


def _eigenthings_own(problem: Problem) -> Values:
    """It does not stop early but says whether it converged: start with 8 steps, double where it says no."""
    values = {}
    for block in problem.names:
        with _only(problem, block):
            steps, converged = LANCZOS_STEPS, False
            while not converged and steps <= 16 * LANCZOS_STEPS:
                values[block], converged = _lanczos(problem, block, steps)
                steps *= 2
    return values


def _eigenthings_scout(problem: Problem, truth: Values) -> Steps:
    """One long run of its own recurrence; the leading k x k parts of T are the states after k steps."""
    steps = {}
    for block in problem.names:
        with _only(problem, block):
            operator = _filtered(problem, block)
            start = torch.randn(operator.size, generator=torch.Generator().manual_seed(_seed(problem, block)))
            run = lanczos_tridiagonal(operator, start, min(KRYLOV_CAP, operator.size))
            a, b = run.alphas.double(), run.betas.double()
            for k in range(1, len(a) + 1):
                t = torch.diag(a[:k]) + torch.diag(b[: k - 1], 1) + torch.diag(b[: k - 1], -1)
                if _near(float(torch.linalg.eigvalsh(t)[-1]), truth[block]):
                    steps[block] = k
                    break
    return steps


def _eigenthings_exact(problem: Problem, steps: Steps) -> Values:
    values = {}
    for block, count in steps.items():
        with _only(problem, block):
            values[block] = _lanczos(problem, block, count)[0]
    return values


# ---- curvlinops 3.0.1: its Hessian operator under SciPy's eigsh


def _operator(problem: Problem, parameter: nn.Parameter) -> LinearOperator:
    rows = sum(len(x) for x, _ in problem.batches)
    hessian = HessianLinearOperator(
        problem.model, problem.loss, [parameter], problem.batches, check_deterministic=False, num_data=rows
    )
    return hessian.to_scipy()


def _start(operator: LinearOperator, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)


def _arpack(operator: LinearOperator, seed: int, ncv: int, tol: float) -> float:
    start = _start(operator, seed)
    ncv = min(ncv, operator.shape[0])
    return float(eigsh(operator, k=1, which="LA", ncv=ncv, tol=tol, v0=start, return_eigenvectors=False)[0])


def _curvlinops_own(problem: Problem) -> Values:
    values = {}
    for block in problem.names:
        with _only(problem, block) as parameter:
            values[block] = _arpack(_operator(problem, parameter), _seed(problem, block), NCV, TOL)
    return values


ANY = 1e6  # a tolerance every Ritz value meets: ARPACK then stops after its first sweep of ncv products


def _curvlinops_scout(problem: Problem, truth: Values) -> Steps:
    """ARPACK's first products do not depend on ncv, so remembered ones make the search for the smallest ncv cheap."""
    steps = {}
    for block in problem.names:
        with _only(problem, block) as parameter:
            inner = _operator(problem, parameter)
            known: dict[bytes, np.ndarray] = {}

            def matvec(v: np.ndarray, inner: LinearOperator = inner, known: dict = known) -> np.ndarray:
                key = v.tobytes()
                if key not in known:
                    known[key] = inner @ v
                return known[key]

            remembering = LinearOperator(inner.shape, matvec=matvec, dtype=inner.dtype)
            for ncv in range(2, KRYLOV_CAP):
                if _near(_arpack(remembering, _seed(problem, block), ncv, ANY), truth[block]):
                    steps[block] = ncv
                    break
    return steps


def _curvlinops_exact(problem: Problem, steps: Steps) -> Values:
    values = {}
    for block, count in steps.items():
        with _only(problem, block) as parameter:
            values[block] = _arpack(_operator(problem, parameter), _seed(problem, block), count, ANY)
    return values


PEERS = {
    "notebook": Peer("notebook's power iteration", _notebook_own, _notebook_scout, _notebook_exact),
    "pyhessian": Peer(
        "PyHessian 0.1",
        lambda problem: {block: _pyhessian(problem, block, POWER_CAP, TOL) for block in problem.names},
        _pyhessian_scout,
        lambda problem, steps: {block: _pyhessian(problem, block, count, 0.0) for block, count in steps.items()},
    ),
    "eigenthings": Peer("hessian-eigenthings 1.0.0a5", _eigenthings_own, _eigenthings_scout, _eigenthings_exact),
    "curvlinops": Peer("curvlinops 3.0.1 + eigsh", _curvlinops_own, _curvlinops_scout, _curvlinops_exact),
}
