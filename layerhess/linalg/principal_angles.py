"""Principal angles between two spaces that are spanned by rows, small angles to full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.linalg import solve_triangular

from layerhess.linalg.estimates import Floats

Parts = Iterable[tuple[Floats, Floats]]


def principal_angles(parts: Callable[[], Parts]) -> Floats:
    """The (k,) principal angles between the spaces of two sets of k rows, ascending, in radians.

    Cosines are the singular values of Q_a Q_b', sines those of Q_b - (Q_b Q_a') Q_a; each angle is taken from the one
    that has its digits (Bjorck & Golub 1973). Rows need not be orthonormal. Long ones come in parts, three times.

    Args:
        parts: gives both sets' rows, (k, n_i) and (k, n_i), for parts of the columns.

    Raises:
        numpy.linalg.LinAlgError: the rows of one set are dependent.

    >>> import numpy as np
    >>> rows = np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])
    >>> print(float(principal_angles(lambda: [rows])[0] / np.pi))
    0.25
    """
    first, second, cross = (sum(products, np.zeros(())) for products in zip(*map(_products, parts()), strict=True))
    lower, other = np.linalg.cholesky(first), np.linalg.cholesky(second)
    inner = solve_triangular(other, solve_triangular(lower, cross, lower=True).T, lower=True)  # Q_b Q_a'

    def rests() -> Iterable[Floats]:
        for a, b in parts():
            yield solve_triangular(other, b, lower=True) - inner @ solve_triangular(lower, a, lower=True)

    zero = np.zeros_like(inner)
    turned = np.linalg.eigh(sum((rest @ rest.T for rest in rests()), zero))[1].T  # its small values have no digits
    squares = sum((((turned @ rest) ** 2).sum(axis=1) for rest in rests()), zero[0])
    cosines = np.minimum(np.linalg.svd(inner, compute_uv=False), 1.0)
    sines = np.minimum(np.sqrt(np.sort(squares)), 1.0)
    angles: Floats = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))
    return angles


def _products(rows: tuple[Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    a, b = rows
    return a @ a.T, b @ b.T, a @ b.T
