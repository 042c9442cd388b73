"""Follows largest eigenvalues from point to point: the last eigenvector with a random vector beside it.

A few steps of block Lanczos (:class:`layerhess.linalg.eigen.lanczos.Lanczos`) begin with both. The last eigenvector is
nearly right, so that two products of it give a small residual. It proves nothing about other directions; the random
vector can find one that has overtaken, and what it has seen says which larger eigenvalues are excluded (Kuczynski and
Wozniakowski 1992; :mod:`layerhess.linalg.eigen.missed`). At first two random vectors begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from layerhess.linalg.bounds import certify, missed_factor
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY, excludes
from layerhess.linalg.eigen.process import Wanted, scales
from layerhess.linalg.random_vectors import random_unit

TOL = 1e-2  # relative error bound at which a block needs no further pass
LEAST, MOST = 2, 8  # passes at a point
FAR, SEARCHED = 2.0, 4  # times the value: a larger one is to be excluded, if as many passes are enough for it
ROWS = 2 * MOST + 2  # room of a basis: it is never restarted
SPARED = 1 << 22  # components from which on the rows of a float32 model are stored in float32

Products = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]  # (s, n) rows by key -> their (s, n) products


@dataclass(frozen=True)
class Tracked:
    """An operator whose largest eigenvalue is followed.

    Attributes:
        n: dimension. device: of its vectors. dtype: of the model.
    """

    n: int
    device: torch.device
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Largest:
    """The largest eigenvalue that was found; see :class:`layerhess.results.point.Reading` for the figures."""

    value: float
    bound: float
    missed_factor: float
    products: int


class Tracker:
    """Follows the largest eigenvalues of some operators that change.

    Args:
        seed: of the random vectors; they also depend on the operator's name and the point's number only.

    >>> import torch
    >>> tracker = Tracker(seed=0)
    >>> diagonal = torch.arange(1.0, 9.0).double()
    >>> found = tracker.follow({"A": Tracked(8, torch.device("cpu"))}, 0, lambda rows: {"A": rows["A"] * diagonal})
    >>> largest = tracker.certified(found, "A", rounding=0.0)
    >>> abs(largest.value - 8.0) <= largest.bound < 0.1
    True
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._last: dict[str, Tensor] = {}

    def follow(
        self,
        operators: Mapping[str, Tracked],
        number: int,
        products: Products,
        go_on: Callable[[], bool] = lambda: True,
    ) -> dict[str, Lanczos]:
        """The solvers after a few passes, each of which serves all operators that need it.

        Args:
            operators: by key. number: of the point. products: one pass. go_on: asked before every pass after the first
                two, whether there is time for it.

        Returns:
            A solver for each key, to be handed to :meth:`certified`.
        """
        solvers = {key: self._begun(key, one, number) for key, one in operators.items()}
        for number_of_pass in range(MOST):
            asking = {key: solver for key, solver in solvers.items() if _open(solver, number_of_pass)}
            if not asking or (number_of_pass >= LEAST and not go_on()):
                break
            made = products({key: solver.ask() for key, solver in asking.items()})
            for key, solver in asking.items():
                solver.tell(made[key])
        for key, solver in solvers.items():
            self._last[key] = solver.candidates().vectors[0].to(operators[key].dtype)
        return solvers

    def certified(self, solvers: Mapping[str, Lanczos], key: str, rounding: float) -> Largest:
        """What is proved of an operator's largest eigenvalue, given the rounding error of its products."""
        found = solvers[key].candidates()
        certificate = certify(found, tol=TOL, rounding=rounding)
        value = float(found.values[0])
        factor = missed_factor(certificate.missed_above, value)
        return Largest(value, float(certificate.error_bounds[0]), factor, found.steps)

    def forget(self) -> None:
        """Let go of all vectors."""
        self._last.clear()

    def _begun(self, key: str, one: Tracked, number: int) -> Lanczos:
        last = self._last.get(key)
        name = f"monitor {number} {key}"
        spared = one.dtype == torch.float32 and one.n > SPARED
        return Lanczos(
            one.n, Wanted(top=1), TOL, lambda draw: random_unit(one.n, self._seed, name, draw, one.device),
            basis_limit=ROWS, device=one.device, dtype=torch.float32 if spared else torch.float64,
            width=1 if last is not None else 2, starts=None if last is None else last[None].double(), copies=False,
        )  # fmt: skip


def _open(solver: Lanczos, passes: int) -> bool:
    """Whether another pass is of use: the bound is not small enough, or one may well have been overlooked."""
    if solver.basis.size >= solver.n:
        return False
    if passes < LEAST:
        return True
    found = solver.candidates()
    scale = float(scales(found.values, found.norm)[0])
    if found.residuals[0] > TOL * scale:
        return True
    return passes < SEARCHED and not excludes(found.searches["top"][0], FAR * scale, MISSED_PROBABILITY)
