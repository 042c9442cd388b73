"""How different the spectra of two blocks are: Jensen-Shannon distances between spectral densities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from layerhess.estimates import DensityEstimate, Floats

POINTS = 2048
WIDTH = 1 / 200  # of the common range: the standard deviation that every spectrum is smoothed with


def divergences(densities: Sequence[DensityEstimate], *, normalise: bool = False) -> Floats:
    """(B, B) Jensen-Shannon distances, between 0 (the same) and 1 (disjoint): roots of the divergences in bits.

    Heterogeneity of blocks (Zhang et al. 2024, "Why Transformers need Adam: a Hessian perspective"). All spectra are
    put on one grid of 2,048 points over the range of all their quadrature nodes, raw eigenvalues, each smoothed with
    the same Gaussian (1/200 of that range) and normalised to mass 1 on the grid. One bandwidth for all, so that what
    differs is the spectra. That paper fixes its grid and its bandwidth too, but their values are a choice: distances
    are to be compared within one table.

    Args:
        normalise: divide each spectrum by its own largest |node| first, to compare shapes regardless of scale.
    """
    spectra = [_nodes(density, normalise) for density in densities]
    low = min((float(nodes.min()) for nodes, _ in spectra), default=0.0)
    high = max((float(nodes.max()) for nodes, _ in spectra), default=0.0)
    span = high - low if high > low else 1.0
    sigma = WIDTH * span
    grid = np.linspace(low - 5 * sigma, high + 5 * sigma, POINTS)
    masses = [_on_grid(nodes, weights, grid, sigma) for nodes, weights in spectra]
    table = np.zeros((len(masses), len(masses)))
    for b, p in enumerate(masses):
        for c in range(b):
            table[b, c] = table[c, b] = jensen_shannon(p, masses[c])
    return table


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Distance of two (g,) mass functions: sqrt((KL(p || m) + KL(q || m)) / 2), m their mean, in bits (Lin 1991)."""
    middle = (p + q) / 2
    return float(np.sqrt(max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)))


def _relative_entropy(p: Floats, q: Floats) -> float:
    there = p > 0.0
    return float((p[there] * np.log2(p[there] / q[there])).sum())


def _nodes(density: DensityEstimate, normalise: bool) -> tuple[Floats, Floats]:
    there = density.weights > 0.0
    nodes, weights = density.nodes[there], density.weights[there]
    largest = float(np.abs(nodes).max(initial=0.0))
    return (nodes / largest if normalise and largest > 0.0 else nodes), weights / weights.sum()


def _on_grid(nodes: Floats, weights: Floats, grid: Floats, sigma: float) -> Floats:
    mass = np.exp(-0.5 * ((grid[:, None] - nodes) / sigma) ** 2) @ weights
    return np.asarray(mass / mass.sum())
