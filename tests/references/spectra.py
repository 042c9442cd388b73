"""Random symmetric matrices with spectra that are known because they were put in, and the hard ones among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def rotated(eigenvalues: Matrix, seed: int) -> Matrix:
    """A dense symmetric matrix with the given eigenvalues and Haar-random eigenvectors."""
    n = len(eigenvalues)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    q = q * np.sign(np.diag(r))
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def _gaussian(n: int, rng: np.random.Generator) -> Matrix:
    return rng.standard_normal(n)


def _low_rank(n: int, rng: np.random.Generator) -> Matrix:
    values = np.zeros(n)
    values[: max(1, n // 8)] = rng.exponential(size=max(1, n // 8))
    return values


def _network_like(n: int, rng: np.random.Generator) -> Matrix:
    return np.concatenate([10.0 ** rng.uniform(0, 2, 5), 0.1 * rng.standard_normal(n - 5)])


def _clusters(n: int, rng: np.random.Generator) -> Matrix:
    return rng.choice(rng.standard_normal(6), size=n) + 1e-9 * rng.standard_normal(n)


def _multiple(n: int, rng: np.random.Generator) -> Matrix:
    return rng.choice(np.array([-2.0, -1.0, 0.0, 1.0, 3.0]), size=n)


def _tiny_gap(n: int, rng: np.random.Generator) -> Matrix:
    return np.concatenate([[1.001, 1.0], rng.uniform(-0.5, 0.9, n - 2)])


def _close_second(n: int, rng: np.random.Generator) -> Matrix:
    return np.concatenate([[1.0, 0.95], rng.uniform(-0.2, 0.5, n - 2)])


def _scaled(n: int, rng: np.random.Generator) -> Matrix:
    return 10.0 ** float(rng.uniform(-12, 12)) * rng.standard_normal(n)


def _one_large_negative(n: int, rng: np.random.Generator) -> Matrix:
    return np.concatenate([[-100.0], rng.uniform(0.0, 1.0, n - 1)])


FAMILIES: dict[str, Callable[[int, np.random.Generator], Matrix]] = {
    "gaussian": _gaussian,
    "low rank": _low_rank,
    "network-like": _network_like,
    "clusters": _clusters,
    "multiple": _multiple,
    "gap of 1e-3": _tiny_gap,
    "lambda_2 = 0.95 lambda_1": _close_second,
    "scaled": _scaled,
    "one large negative": _one_large_negative,
}
