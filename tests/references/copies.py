"""Ten families of spectra with copies of an eigenvalue, and what a search states about each against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from layerhess.linalg.bounds import Certificate, certify
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Candidates, Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import Matrix

Family = Callable[[np.random.Generator], Matrix]


def _bulk(n: int, rng: np.random.Generator, low: float = -1.0, high: float = 1.0) -> Matrix:
    return rng.uniform(low, high, n)


N = 400  # more than a basis has rows, so that no search reads the whole matrix

# Multiplicities 2 to 5, at the top, further down, at both ends, nearly equal, and in rows of their own.
COPIES: dict[str, Family] = {
    "four at the top": lambda rng: np.concatenate([[5.0] * 4, [2.0], _bulk(N - 5, rng)]),
    "two at the top": lambda rng: np.concatenate([[5.0] * 2, [4.0, 3.0], _bulk(N - 4, rng)]),
    "five at the top": lambda rng: np.concatenate([[5.0] * 5, _bulk(N - 5, rng)]),
    "one, then three": lambda rng: np.concatenate([[5.0], [4.0] * 3, _bulk(N - 4, rng)]),
    "two and three": lambda rng: np.concatenate([[5.0] * 2, [4.5] * 3, _bulk(N - 5, rng)]),
    "all that differ": lambda rng: np.concatenate([np.repeat([5.0, 4.0, 3.0], 2), _bulk(N - 6, rng)]),
    "at both ends": lambda rng: np.concatenate([[5.0] * 3, [-4.0] * 3, _bulk(N - 6, rng)]),
    "nearly equal": lambda rng: np.concatenate([5.0 + 1e-4 * rng.uniform(size=4), [2.0], _bulk(N - 5, rng)]),
    "in the bulk": lambda rng: np.concatenate([np.repeat(np.linspace(1.0, 0.8, 5), 4), _bulk(N - 20, rng, -1.0, 0.75)]),
    "negative": lambda rng: np.concatenate([[-1.0] * 4, [-1.5] * 2, _bulk(N - 6, rng, -6.0, -2.0)]),
}


@dataclass(frozen=True)
class Stated:
    """What one search states, and the truth.

    Attributes:
        open_above, open_below: an eigenvalue beyond the wanted ones lies outside what is excluded at that end.
        outside: a place's eigenvalue lies outside the interval of that place.
    """

    candidates: Candidates
    certificate: Certificate
    open_above: bool
    open_below: bool
    outside: bool


def stated(
    values: Matrix, wanted: Wanted, seed: int, *, tol: float = 1e-3, exclude: float | None = 0.05, **options: int
) -> Stated:
    """Search a diagonal matrix (no restriction: the starts are uniform on the sphere) and compare."""
    n, diagonal = len(values), torch.from_numpy(values)
    process = Lanczos(n, wanted, tol, lambda i: random_unit(n, seed, "copies", i), exclude=exclude, **options)
    while not process.proposes:
        process.tell(process.ask() * diagonal)
        assert process.steps < 40 * n
    found = process.candidates()
    rounding = slack = 1e-12 * float(np.abs(values).max())
    certificate = certify(found, tol=tol, rounding=rounding, exclude=exclude)
    down = np.sort(values)[::-1]
    truth = np.concatenate([down[: wanted.top], down[n - wanted.bottom :]])
    upper = found.values + certificate.error_bounds
    lower = found.values - certificate.error_bounds
    tops = np.arange(len(truth)) < wanted.top
    upper = np.where(tops, np.maximum(upper, certificate.missed_above), upper)
    lower = np.where(tops, lower, np.minimum(lower, certificate.missed_below))
    return Stated(
        found,
        certificate,
        bool(down[wanted.top] > certificate.missed_above + slack),
        bool(down[n - wanted.bottom - 1] < certificate.missed_below - slack),
        bool(np.any((truth > upper) | (truth < lower))),
    )
