"""How many eigenvalues lie above a threshold, from the quadratures of a spectral density."""

from __future__ import annotations

import math

import numpy as np

from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.stochastic.probe_statistics import half_width


def counts_above(density: DensityEstimate, numel: int, points: Floats) -> tuple[Floats, Floats, Floats]:
    """By each random vector: the number of eigenvalues above each point, at least and at most; (probes, points) each.

    What a vector sees above a point lies between its quadrature's weights beyond the next node and those from the last
    one on (inequalities of Chebyshev, Markov and Stieltjes; Szego 1939, theorem 3.41.1).
    """
    found, least, most = np.empty((3, len(density.nodes), len(points)))
    for row, (nodes, weights) in enumerate(zip(density.nodes, density.weights, strict=True)):
        kept = np.argsort(nodes)[weights[np.argsort(nodes)] > 0.0]
        beyond = numel * np.concatenate([np.cumsum(weights[kept][::-1])[::-1], [0.0, 0.0]])
        place = np.searchsorted(nodes[kept], points, side="right")
        found[row], least[row], most[row] = beyond[place], beyond[place + 1], beyond[np.maximum(place - 1, 0)]
    return found, least, most


def band_of_counts(density: DensityEstimate, numel: int, points: Floats) -> tuple[Floats, Floats]:
    """The 95 % band over the random vectors, with the error of their quadratures."""
    _, least, most = counts_above(density, numel, points)
    ends = []
    for rows, sign in ((least, -1.0), (most, 1.0)):
        error = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
        ends.append(rows.mean(axis=0) + sign * half_width(1.0, len(rows)) * error)
    return ends[0], ends[1]
