"""Turns quadrature nodes into a smooth density: the width of the Gaussian, the grid, and the values on it."""

from __future__ import annotations

import math

import numpy as np

from layerhess.linalg.estimates import Floats
from layerhess.linalg.gauss_rules import quadrature, tridiagonal

REACH = 6.0  # bandwidths around a node beyond which its Gaussian is negligible (2e-9 of its mass)
FADED = 8.5  # where even a gap of 1e9 bandwidths, integrated from its two ends, adds less than 1e-6
PER_BANDWIDTH = 2  # grid points: the trapezoidal rule is then exact to 1e-30, as for every analytic function
WIDTH = 0.75  # of the distance between two nodes
FLOOR = 1e-5  # of the largest |node|: products in float32 move nodes by up to 1e-6 of it
FINEST = 1e-9  # the same where the caller chose the bandwidth: a narrower one has no grid in float64
SAME = 1e-6  # of the range: nodes this close are one (ghost copies are)
OF_NOTHING = 1e-12  # bandwidth where every node is zero: any width is arbitrary, this one is visibly a point


def bandwidth_of(nodes: Floats, weights: Floats, steps: int) -> float:
    """The standard deviation at which a quadrature of ``steps`` nodes looks like a density and not like its nodes.

    Three quarters of the distance between neighbouring nodes, where the mass is: the median over all mass of each
    node's distance to its farther neighbour. Gaussians of half that width already hide evenly spaced nodes (a ripple of
    2 exp(-2 pi^2 / 4) = 1.4 %); three quarters also hide what the nodes cannot resolve of a density that is steep
    between two of them. The median, not range over steps, because an outlier a hundred times the bulk costs the
    quadrature one node and does not change its resolution of the bulk. Never above range over steps, which is the
    accuracy of a quadrature in general (Chen, Trogdon & Ubaru 2021), and the value used where there are few distinct
    eigenvalues; never below 1e-5 of the largest |node|.

    Args:
        nodes, weights: (rows, m) float64, rows ascending and zero-padded. steps: asked for.
    """
    there = weights > 0.0
    scale = float(np.abs(nodes[there]).max())
    spread = float(np.ptp(nodes[there]))
    if scale == 0.0:
        return OF_NOTHING
    if spread == 0.0:
        return FLOOR * scale
    distances, masses = [np.empty(0)], [np.empty(0)]
    for row, weight in zip(nodes, weights, strict=True):
        x, w = _merged(row[weight > 0.0], weight[weight > 0.0], SAME * spread)
        between = np.diff(x)
        if len(between):
            distances.append(np.maximum(np.append(between, 0.0), np.insert(between, 0, 0.0)))
            masses.append(w)
    typical = _median(np.concatenate(distances), np.concatenate(masses))
    return max(min(WIDTH * typical, spread / steps), FLOOR * scale)


def grid_of(nodes: Floats, sigma: float, points: int) -> Floats:
    """An ascending grid (g,) on which Gaussians of width ``sigma`` around the nodes can be drawn and integrated.

    Uniform, with ``points`` or more, where steps of half a bandwidth are affordable. Otherwise the points are taken
    from one lattice of that step: all of them around every node, so that no peak falls between two points and the
    trapezoidal rule stays as exact as on a uniform grid, and about ``points`` of them in between.

    Args:
        nodes: (m,) those with mass.
    """
    low, high = float(nodes.min()) - REACH * sigma, float(nodes.max()) + REACH * sigma
    last = math.ceil((high - low) / sigma * PER_BANDWIDTH)
    if last < 2 * points:
        return np.linspace(low, high, max(points, last + 1))
    step = (high - low) / last
    reach = math.ceil(FADED * PER_BANDWIDTH)
    near = np.unique(np.rint((nodes - low) / step).astype(np.int64))
    around = np.clip(near[:, None] + np.arange(-reach, reach + 1), 0, last)
    between = np.rint(np.linspace(0, last, points)).astype(np.int64)
    return low + step * np.unique(np.concatenate([around.ravel(), between])).astype(np.float64)


def gaussians(nodes: Floats, weights: Floats, grid: Floats, sigma: float) -> Floats:
    """The density (g,) of a sum of Gaussians: sum_i w_i N(grid; node_i, sigma^2)."""
    scaled = (grid[:, None] - nodes) / sigma
    return np.asarray(np.exp(-0.5 * scaled**2) @ weights / (sigma * math.sqrt(2.0 * math.pi)))


def compressed(values: Floats, steps: int) -> tuple[Floats, Floats]:
    """The quadrature of at most ``steps`` nodes of a known spectrum (n,), as a run of Lanczos would give it.

    Cost O(n steps^2).
    """
    return quadrature(*tridiagonal(values, np.full(len(values), 1.0 / len(values)), steps))


def _merged(nodes: Floats, weights: Floats, near: float) -> tuple[Floats, Floats]:
    """Ascending nodes, with those closer than ``near`` to their neighbour merged."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(nodes) > near]))
    mass = np.add.reduceat(weights, starts)
    return np.add.reduceat(weights * nodes, starts) / mass, mass


def _median(values: Floats, weights: Floats) -> float:
    """The weighted median, the lower one of two; infinite without values."""
    if not len(values):
        return math.inf
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    half = 0.5 * (1.0 - 1e-9) * below[-1]  # with equal weights, rounding would decide between two
    return float(values[order][np.searchsorted(below, half)])
