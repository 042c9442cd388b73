"""Power iteration with the Rayleigh quotient, one vector a block: for teaching and comparison."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from layerhess.linalg.eigen.exclusion import ENDS, Limits, Statements
from layerhess.linalg.eigen.missed import MISSED_PROBABILITY
from layerhess.linalg.eigen.process import Candidates, Powered, Source, Wanted, tolerated


class Power:
    """Power iteration: v <- A v / ||A v||, theta = v' A v, stopped by the residual ||A v - theta v||.

    It finds the eigenvalue of largest modulus. If that is negative, the iteration goes on with A + shift I, whose
    dominant eigenvalue is A's largest. Converges like |lambda_2 / lambda_1|^steps, far slower than Lanczos.

    After j steps from w the vector has the part x^j <w, u> / (product of all lengths) of an eigenvector u at x. Since
    that is at most 1, w has a small part of u if x is larger than the lengths: so eigenvalues are excluded here too, by
    1.05 times in about 200 steps.

    Args:
        n: dimension. tol: relative, see :func:`layerhess.linalg.bounds.certify`. draw: number -> random unit vector
            (n,). exclude: see :func:`layerhess.linalg.bounds.certify`; None asks for nothing.
    """

    path = "power"

    def __init__(
        self, n: int, tol: float, draw: Source, *, exclude: float | None = None, device: torch.device | None = None
    ) -> None:
        self.n = n
        self.tol = tol
        self.rounding = 0.0
        self._draw = draw
        self._said = Statements(Wanted(top=1), tol, exclude, copies=False)
        self._log, self._count = 0.0, 0  # of the steps since the last random start
        self._device = device or torch.device("cpu")
        self._v = draw(0).to(self._device)
        self._told = self._v
        self._theta = 0.0
        self._residual = float("inf")
        self._norm = 0.0
        self._shift = 0.0
        self._steps = 0

    def ask(self) -> Tensor:
        """The current unit vector, (1, n)."""
        return self._v[None]

    def tell(self, products: Tensor) -> None:
        """Rayleigh quotient and residual of the vector asked for, then one power step."""
        w = products[0]
        self._told = self._v
        self._theta = float(self._v @ w)
        self._residual = float(torch.linalg.vector_norm(w - self._theta * self._v))
        self._norm = max(self._norm, abs(self._theta))
        self._steps += 1
        step = w + self._shift * self._v
        self._count += 1
        if self._theta < 0.0 and not self._shift and self._settled():
            self._shift = self._norm + self._residual
            self._residual = float("inf")  # of the new pair nothing is known yet
            step = self._draw(1).to(self._device)
            self._log, self._count = 0.0, 0
        length = torch.linalg.vector_norm(step)
        if self._count:
            self._log += math.log(float(length)) if length > 0 else -math.inf
        self._v = step / length if length > 0 else self._draw(1 + self._steps).to(self._device)

    @property
    def proposes(self) -> bool:
        """True when the residual is within tolerance (and the pair is at the top, not at a dominant negative end)."""
        if not (self._steps > 0 and self._settled()):
            return False
        limits = self._said.limits(np.array([self._theta]), self._norm, self.rounding)
        return limits == Limits() or (self._count > 0 and limits.excluded_by(self._searched(), MISSED_PROBABILITY))

    @property
    def relative_residual(self) -> float:
        """Residual over the norm estimate."""
        return self._residual / self._norm if self._norm else 0.0

    def candidates(self) -> Candidates:
        """The one pair."""
        values = np.array([self._theta])
        return Candidates(
            values=values,
            vectors=self._told[None],
            residuals=np.array([self._residual]),
            gaps=np.array([np.nan]),
            ends=("top",),
            norm=self._norm,
            spectrum=None,
            searches=dict.fromkeys(ENDS, (self._searched(),)) if self._count and self._said.asked else {},
            steps=self._steps,
        )

    def _searched(self) -> Powered:
        return Powered(self.n, self._theta, self._shift, self._count, self._log)

    def _settled(self) -> bool:
        tolerance = float(tolerated(np.array([self._theta]), self._norm, self.tol)[0])
        return self._residual <= max(tolerance - self.rounding, self.rounding)
