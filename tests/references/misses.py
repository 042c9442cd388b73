"""How often is a larger eigenvalue missed? Stated against observed, on spectra made to be missed.

Run ``python tests/references/misses.py`` for the table.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from layerhess.linalg.bounds import MISSED_PROBABILITY, Certificate, certify
from layerhess.linalg.eigen.lanczos import Lanczos
from layerhess.linalg.eigen.process import Wanted
from layerhess.linalg.random_vectors import random_unit
from references.spectra import FAMILIES, Matrix

ADVERSARIAL = ("gap of 1e-3", "clusters", "multiple", "lambda_2 = 0.95 lambda_1", "one large negative", "network-like")


@dataclass(frozen=True)
class Misses:
    """Counts over many random starts on one family of spectra.

    Attributes:
        runs: starts tried. outside: top eigenvalue outside its error bound. beyond: top eigenvalue above the value
            that was excluded at probability ``stated``. excluded: runs in which anything was excluded at all.
        factor: median factor excluded. steps: median number of products.
    """

    family: str
    runs: int
    outside: int
    beyond: int
    excluded: int
    stated: float
    factor: float
    steps: float


def misses(family: str, n: int, runs: int, tol: float, top: int = 1, width: int = 1) -> Misses:
    """Run certified Lanczos from ``runs`` random starts on diagonal matrices of one family.

    A diagonal matrix is no restriction: the start is uniform on the sphere.
    """
    outside = beyond = excluded = 0
    factors, steps = [], []
    for seed in range(runs):
        values = FAMILIES[family](n, np.random.default_rng([seed, n, top]))
        diagonal = torch.from_numpy(values)

        def draw(number: int, seed: int = seed) -> torch.Tensor:
            return random_unit(n, seed, family, number)

        process = Lanczos(n, Wanted(top=top), tol, draw, width=width)
        while not process.proposes:
            process.tell(process.ask() * diagonal)
        candidates = process.candidates()
        certificate = certify(candidates, tol=tol, rounding=1e-14 * float(np.abs(values).max()))
        truth = np.sort(values)[::-1]
        outside += bool(np.any(np.abs(truth[:top] - candidates.values) > certificate.error_bounds))
        if np.isfinite(certificate.missed_above):
            excluded += 1
            factors.append(certificate.missed_above / candidates.values[0])
            beyond += _missed_above(truth, candidates.values, certificate)
        steps.append(candidates.steps)
    return Misses(
        family,
        runs,
        outside,
        beyond,
        excluded,
        MISSED_PROBABILITY,
        float(np.median(factors)) if factors else float("inf"),
        float(np.median(steps)),
    )


def _missed_above(truth: Matrix, found: Matrix, certificate: Certificate) -> bool:
    """Is an eigenvalue that was not reported above the excluded value?"""
    left = list(truth)
    for value, bound in zip(found, certificate.error_bounds, strict=True):
        nearest = min(left, key=lambda other: abs(other - value))
        if abs(nearest - value) <= bound:
            left.remove(nearest)
    return bool(left) and max(left) > certificate.missed_above


def table(n: int = 400, runs: int = 300, tol: float = 1e-3) -> str:
    """The side-by-side table as text."""
    lines = [
        f"{runs} random starts each, n = {n}, tol = {tol:g}; stated probability of a miss beyond the factor: "
        f"{MISSED_PROBABILITY:.0%}",
        f"{'spectrum':28s} top  width  steps  factor excluded (median)  runs that exclude  beyond  outside bound",
    ]
    for family in ADVERSARIAL:
        for top, width in ((1, 1), (1, 8), (3, 1), (3, 2)):
            m = misses(family, n, runs, tol, top, width)
            lines.append(
                f"{family:28s} {top:3d} {width:6d} {m.steps:6.0f}  {m.factor:24.3f}  {m.excluded:17d}  "
                f"{m.beyond:6d} = {m.beyond / m.runs:6.2%}  {m.outside:6d} = {m.outside / m.runs:6.2%}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
