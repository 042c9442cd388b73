"""Published standard errors of classical regressions, on the data that come with statsmodels.

A standard error of a maximum-likelihood fit is the square root of a diagonal entry of the inverse Hessian of the
summed negative log likelihood. The numbers below are as published: by NIST for Longley, by Stata 11 for the others (the
values statsmodels itself is tested against). Parameters are in the order of the data's columns, the constant last.

``newton`` finds the optimum with hand-written gradients and Hessians in NumPy, so neither autograd nor statsmodels'
own optimiser stands between the published number and what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

SPECTOR_LOGIT_ERRORS = (1.26294114526, 0.141554207662, 1.06456430165, 4.93132462871)
SPECTOR_PROBIT_ERRORS = (0.693882522754, 0.083890261293, 0.595037920474, 2.54247249731)
RANDHIE_POISSON_ERRORS = (
    0.00288398915279, 0.01061725196728, 0.00182833684966, 0.00161284852954, 0.01223913844387,
    0.00056476496963, 0.00925061122826, 0.01530987068312, 0.02627928267502, 0.01116266712362,
)  # fmt: skip
LONGLEY_ERRORS = (
    84.9149257747669, 0.334910077722432e-01, 0.488399681651699, 0.214274163161675, 0.226073200069370,
    455.478499142212, 890420.383607373,
)  # fmt: skip
ANES96_ERRORS = (  # one row for each party identification 1 ... 6 against 0
    (0.0342823657, 0.093626795, 0.0065248584, 0.0735865799, 0.0176336937, 0.6298376313),
    (0.0391615553, 0.1082386919, 0.0079144618, 0.0852893563, 0.0222809297, 0.7631899491),
    (0.0570382292, 0.1585481337, 0.0113313133, 0.1262913234, 0.0336142088, 1.156541492),
    (0.0437902764, 0.1288965854, 0.0084187486, 0.0941250559, 0.0261963632, 0.9575809602),
    (0.0393516553, 0.1171860107, 0.0076110152, 0.0850070091, 0.0229760791, 0.8443638283),
    (0.042138047, 0.1434089089, 0.0081338625, 0.0910979921, 0.025300888, 1.059954821),
)  # fmt: skip


@dataclass(frozen=True)
class Regression:
    """A fitted regression: design (N, d) with the constant last, response (N,), optimum and published errors."""

    design: Matrix
    response: Vector
    optimum: NDArray[np.float64]
    published: NDArray[np.float64]


def _data(name: str) -> tuple[Matrix, Vector]:
    data = getattr(sm.datasets, name).load()
    design = np.asarray(data.exog, dtype=float)
    return np.hstack([design, np.ones((len(design), 1))]), np.asarray(data.endog, dtype=float)


def newton(step: Callable[[Vector], tuple[Vector, Matrix]], start: ArrayLike, tolerance: float = 1e-12) -> Vector:
    """Newton's method on gradient and Hessian, until a step is below ``tolerance`` relative to the point."""
    point = np.array(start, dtype=float)
    for _ in range(60):
        gradient, hessian = step(point)
        move = np.linalg.solve(hessian, gradient)
        point = point - move
        if np.linalg.norm(move) <= tolerance * max(float(np.linalg.norm(point)), 1.0):
            return point
    raise AssertionError("Newton's method found no optimum")


def spector_logit() -> Regression:
    """Grades against a teaching method, 32 students, logistic regression."""
    x, y = _data("spector")

    def step(beta: Vector) -> tuple[Vector, Matrix]:
        p = 1 / (1 + np.exp(-(x @ beta)))
        return x.T @ (p - y), (x * (p * (1 - p))[:, None]).T @ x

    return Regression(x, y, newton(step, np.zeros(4)), np.array(SPECTOR_LOGIT_ERRORS))


def spector_probit() -> Regression:
    """The same students, probit: with s = 2 y - 1, the weight is m (m + s x beta), m = pdf / cdf at s x beta."""
    x, y = _data("spector")
    sign = 2 * y - 1

    def step(beta: Vector) -> tuple[Vector, Matrix]:
        z = sign * (x @ beta)
        mills = np.exp(norm.logpdf(z) - norm.logcdf(z))
        return -x.T @ (sign * mills), (x * (mills * (mills + z))[:, None]).T @ x

    return Regression(x, y, newton(step, np.zeros(4)), np.array(SPECTOR_PROBIT_ERRORS))


def randhie_poisson() -> Regression:
    """Doctor visits in the RAND health insurance experiment, 20,190 person-years, Poisson regression."""
    x, y = _data("randhie")

    def step(beta: Vector) -> tuple[Vector, Matrix]:
        rate = np.exp(x @ beta)
        return x.T @ (rate - y), (x * rate[:, None]).T @ x

    start = np.zeros(x.shape[1])
    start[-1] = np.log(y.mean())
    return Regression(x, y, newton(step, start), np.array(RANDHIE_POISSON_ERRORS))


def anes96_mnlogit() -> Regression:
    """Party identification in the 1996 election study, 944 voters, seven classes, class 0 the base; optimum (6, 6)."""
    x, y = _data("anes96")
    scale = np.abs(x).max(0)  # Newton on unit columns, scaled back at the end
    scaled, classes = x / scale, np.arange(1, 7)
    hit = (y[:, None] == classes).astype(float)

    def step(beta: Vector) -> tuple[Vector, Matrix]:
        powers = np.exp(scaled @ beta.reshape(6, -1).T)
        p = powers / (1 + powers.sum(1, keepdims=True))
        weights = np.einsum("nc,cd->ncd", p, np.eye(6)) - np.einsum("nc,nd->ncd", p, p)
        hessian = np.einsum("ncd,ni,nj->cidj", weights, scaled, scaled, optimize=True)
        return ((p - hit).T @ scaled).ravel(), hessian.reshape(beta.size, beta.size)

    optimum = newton(step, np.zeros(36)).reshape(6, -1) / scale
    return Regression(x, y, optimum, np.array(ANES96_ERRORS))


def longley() -> tuple[Regression, Vector]:
    """Longley's employment data, 16 years, least squares; and the scale of each column.

    The raw columns are conditioned so badly that their Gram matrix cannot be inverted in float64. So the design here
    has centred columns of unit norm, the constant last; NIST's errors of the six slopes are those of this design
    divided by the scales. (The published error of the constant, which centring changes, is left out.)
    """
    x, y = _data("longley")
    centred = x[:, :-1] - x[:, :-1].mean(0)
    scale = np.linalg.norm(centred, axis=0)
    design = np.hstack([centred / scale, np.ones((len(x), 1))])
    optimum, *_ = np.linalg.lstsq(design, y, rcond=None)
    return Regression(design, y, optimum, np.array(LONGLEY_ERRORS[:-1])), scale
