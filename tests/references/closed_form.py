"""Hessians known in closed form, written with NumPy alone.

Parameters are ordered as ``torch`` orders those of the matching model: weight matrices (out, in) row by row, then
biases. All losses are means, as in ``torch``'s criteria.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix = NDArray[np.float64]


def _with_bias_last(matrix_over_rows: Matrix, outputs: int, width: int) -> Matrix:
    """Reorders (out, in + 1) row-major parameters, the bias as last column, to weight rows first and biases last."""
    grid = np.arange(outputs * (width + 1)).reshape(outputs, width + 1)
    order = np.concatenate([grid[:, :-1].ravel(), grid[:, -1]])
    return matrix_over_rows[np.ix_(order, order)]


def _with_ones(x: Matrix) -> Matrix:
    return np.hstack([x, np.ones((len(x), 1))])


def softmax_probabilities(logits: Matrix) -> Matrix:
    """Softmax along the rows, (N, C)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def softmax_regression(x: Matrix, weight: Matrix, bias: Matrix) -> Matrix:
    """Cross entropy of a linear classifier: the mean of (diag p - p p^T) kron (x 1)(x 1)^T (Boehning 1992)."""
    p = softmax_probabilities(x @ weight.T + bias)
    outer = np.einsum("nc,cd->ncd", p, np.eye(p.shape[1])) - np.einsum("nc,nd->ncd", p, p)
    features = _with_ones(x)
    full = np.einsum("ncd,ni,nj->cidj", outer, features, features, optimize=True) / len(x)
    size = p.shape[1] * features.shape[1]
    return _with_bias_last(full.reshape(size, size), p.shape[1], x.shape[1])


def logistic_regression(x: Matrix, weight: Matrix, bias: float) -> Matrix:
    """Binary cross entropy of a linear logit: the mean of p (1 - p) (x 1)(x 1)^T; weight (d,), bias last."""
    p = 1 / (1 + np.exp(-(x @ weight + bias)))
    features = _with_ones(x)
    return (features * (p * (1 - p))[:, None]).T @ features / len(x)


def linear_regression(x: Matrix, outputs: int) -> Matrix:
    """Squared error of a linear map, the mean over examples *and* outputs: 2 / (N K) of I_K kron sum (x 1)(x 1)^T."""
    features = _with_ones(x)
    gram = 2 * features.T @ features / (len(x) * outputs)
    return _with_bias_last(np.kron(np.eye(outputs), gram), outputs, x.shape[1])


def two_layer_linear_at_zero(x: Matrix, y: Matrix, hidden: int) -> tuple[Matrix, Matrix]:
    """Squared error of V W x at V = W = 0: the full Hessian (W rows, then V rows) and its positive eigenvalues.

    Both diagonal blocks vanish; the coupling is -C kron I with C = 2 Y^T X / (N K), so the spectrum is plus and minus
    each singular value of C, every one ``hidden`` times, and zero otherwise (Saxe, McClelland, Ganguli 2014).
    """
    n, width = x.shape
    outputs = y.shape[1]
    correlation = 2 * y.T @ x / (n * outputs)
    # d2 L / dW[h, j] dV[k, g] = -C[k, j] where h == g
    coupling = -np.einsum("kj,hg->hjkg", correlation, np.eye(hidden)).reshape(hidden * width, outputs * hidden)
    full = np.block([
        [np.zeros((hidden * width, hidden * width)), coupling],
        [coupling.T, np.zeros((outputs * hidden, outputs * hidden))],
    ])  # fmt: skip
    singular = np.linalg.svd(correlation, compute_uv=False)
    return full, np.repeat(singular, hidden)


def matrix_factorisation(u: Matrix, v: Matrix, target: Matrix) -> Matrix:
    """Mean squared error of U V^T against a matrix: U rows first, then V rows.

    H_UU = I kron V^T V, H_VV = I kron U^T U, and the coupling carries the residual E = U V^T - M:
    d2 / dU[i, a] dV[j, b] = U[i, b] V[j, a] + E[i, j] [a == b], all times 2 / (number of entries).
    """
    (rows, rank), columns = u.shape, len(v)
    error = u @ v.T - target
    coupling = np.einsum("ib,ja->iajb", u, v) + np.einsum("ij,ab->iajb", error, np.eye(rank))
    coupling = coupling.reshape(rows * rank, columns * rank)
    full = np.block([[np.kron(np.eye(rows), v.T @ v), coupling], [coupling.T, np.kron(np.eye(columns), u.T @ u)]])
    return 2 * full / target.size


def worked_example() -> Matrix:
    """The 2-2-1 linear net W = [[2, 3], [4, 1]], V = [2, 1] at x = (1, 1), y = 14: 6 x 6, W row by row, then V.

    The output is 15, so the error is 1: H_WW = 2 (V kron x)(V kron x)^T, H_VV = 2 (W x)(W x)^T with W x = (5, 5).
    """
    return np.array(
        [
            [8, 8, 4, 4, 22, 20],
            [8, 8, 4, 4, 22, 20],
            [4, 4, 2, 2, 10, 12],
            [4, 4, 2, 2, 10, 12],
            [22, 22, 10, 10, 50, 50],
            [20, 20, 12, 12, 50, 50],
        ],
        dtype=float,
    )


WORKED_EXAMPLE_SPECTRUM = np.array(
    [60 + 2 * np.sqrt(962), 2 * np.sqrt(2), 0, 0, 60 - 2 * np.sqrt(962), -2 * np.sqrt(2)], dtype=float
)


@dataclass(frozen=True)
class Surface:
    """A test function of optimisation: its value for any array library, its Hessian by hand, and points to look at."""

    name: str
    value: Callable[[Any], Any]
    hessian: Callable[[Matrix], Matrix]
    points: tuple[tuple[float, ...], ...]


def _rosenbrock(x: Any) -> Any:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def _rosenbrock_hessian(x: Matrix) -> Matrix:
    h = np.zeros((len(x), len(x)))
    for i in range(len(x) - 1):
        h[i, i] += 1200 * x[i] ** 2 - 400 * x[i + 1] + 2
        h[i + 1, i + 1] += 200
        h[i, i + 1] = h[i + 1, i] = -400 * x[i]
    return h


def _himmelblau_hessian(x: Matrix) -> Matrix:
    off = 4 * (x[0] + x[1])
    return np.array([[12 * x[0] ** 2 + 4 * x[1] - 42, off], [off, 12 * x[1] ** 2 + 4 * x[0] - 26]])


def _beale_hessian(x: Matrix) -> Matrix:
    """With r_i = c_i - a (1 - b^i): sum of 2 grad r grad r^T + 2 r Hess r."""
    a, b = x
    h = np.zeros((2, 2))
    for i, c in ((1, 1.5), (2, 2.25), (3, 2.625)):
        r, ra, rb = c - a * (1 - b**i), b**i - 1, a * i * b ** (i - 1)
        rab, rbb = i * b ** (i - 1), a * i * (i - 1) * b ** max(i - 2, 0)
        h += 2 * np.array([[ra * ra, ra * rb + r * rab], [ra * rb + r * rab, rb * rb + r * rbb]])
    return h


def _powell_hessian(x: Matrix) -> Matrix:
    """Powell's singular function: two squares of linear forms, two fourth powers of linear forms."""
    quartic = ((1.0, np.array([0, 1, -2, 0.0]), 4), (10.0, np.array([1, 0, 0, -1.0]), 4))
    square = ((1.0, np.array([1, 10, 0, 0.0]), 2), (5.0, np.array([0, 0, 1, -1.0]), 2))
    h = np.zeros((4, 4))
    for factor, form, power in quartic + square:
        h += factor * power * (power - 1) * (form @ x) ** (power - 2) * np.outer(form, form)
    return h


def _wood_hessian(x: Matrix) -> Matrix:
    a, b, c, d = x
    return np.array([
        [1200 * a**2 - 400 * b + 2, -400 * a, 0, 0],
        [-400 * a, 220.2, 0, 19.8],
        [0, 0, 1080 * c**2 - 360 * d + 2, -360 * c],
        [0, 19.8, -360 * c, 200.2],
    ])  # fmt: skip


SURFACES: tuple[Surface, ...] = (
    Surface("rosenbrock", _rosenbrock, _rosenbrock_hessian,
            ((1.0, 1.0), (-1.2, 1.0), (0.3, -0.7, 1.1, 0.2, -1.5, 0.9))),
    Surface("himmelblau", lambda x: (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2, _himmelblau_hessian,
            ((3.0, 2.0), (-0.270845, -0.923039), (1.0, -4.0))),
    Surface("beale", lambda x: (1.5 - x[0] * (1 - x[1])) ** 2 + (2.25 - x[0] * (1 - x[1] ** 2)) ** 2
            + (2.625 - x[0] * (1 - x[1] ** 3)) ** 2, _beale_hessian, ((3.0, 0.5), (1.0, 1.0), (-2.0, 0.3))),
    Surface("powell", lambda x: (x[0] + 10 * x[1]) ** 2 + 5 * (x[2] - x[3]) ** 2 + (x[1] - 2 * x[2]) ** 4
            + 10 * (x[0] - x[3]) ** 4, _powell_hessian, ((3.0, -1.0, 0.0, 1.0), (0.2, 0.4, -0.3, 0.5))),
    Surface("wood", lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 + 90 * (x[3] - x[2] ** 2) ** 2
            + (1 - x[2]) ** 2 + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2) + 19.8 * (x[1] - 1) * (x[3] - 1),
            _wood_hessian, ((1.0, 1.0, 1.0, 1.0), (-3.0, -1.0, -3.0, -1.0))),
    Surface("styblinski-tang", lambda x: ((x**4 - 16 * x**2 + 5 * x) / 2).sum(), lambda x: np.diag(6 * x**2 - 16),
            ((-2.903534, 1.0, 0.0, 2.0, -1.5), (0.5, 0.25, -0.1))),
)  # fmt: skip


def descending(matrix: ArrayLike) -> NDArray[np.float64]:
    """All eigenvalues of a symmetric matrix, the largest first."""
    return np.linalg.eigvalsh(np.asarray(matrix, dtype=float))[::-1]
