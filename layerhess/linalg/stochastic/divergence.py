"""How different the spectra of two blocks are: Jensen-Shannon distances between spectral densities, with errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerhess.errors import InputError
from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.stochastic.density_grid import FINEST, gaussians, grid_of
from layerhess.linalg.stochastic.options import is_number

POINTS = 2048
NOTHING = 1e-100  # mass of a cell that adds nothing to an error, and whose reciprocal is still finite


@dataclass(frozen=True)
class Mass:
    """A density as the masses (g,) of a grid's cells, with their scatter over the random vectors.

    Attributes:
        value: sums to 1. places: (k,) the cells that have any. deviations: (m, k) of the single vectors' masses from
            ``value`` there; no rows where there is no scatter.
        known: False for a single vector, whose scatter is unknown.
    """

    value: Floats
    places: NDArray[np.int64]
    deviations: Floats
    known: bool = True


def divergences(
    densities: Sequence[DensityEstimate], *, normalise: bool = False, bandwidth: float | None = None
) -> tuple[Floats, Floats]:
    """Jensen-Shannon distances between spectral densities (0 equal, 1 without overlap), and their errors.

    The distance is the square root of the divergence in bits (Lin 1991; a metric: Endres & Schindelin 2003). Its use as
    a measure of how heterogeneous the blocks of a network are is from Zhang et al. 2024, "Why Transformers Need Adam: A
    Hessian Perspective". As there, raw eigenvalues of all blocks are put on one common grid and smoothed with one
    common bandwidth, so that only the spectra differ. Distances depend on the bandwidth: compare them within one table
    only.

    - Bandwidth: by default the largest of the densities' own. With a narrower one the quadrature nodes of that density
      would appear as separate peaks, and be counted as a difference. With raw eigenvalues two blocks whose whole
      spectra lie within the bandwidth look the same, however different they are.
    - Grid: half a bandwidth a step around all nodes of all blocks.
    - ``normalise``: every spectrum (and bandwidth) is divided by its own largest |node| first, which compares shapes
      regardless of scale; a spectrum that is all zero stays at zero.

    Two estimates of one density from other probes are not at distance 0 but at 0.05 to 0.15: noise can only push
    densities apart. So the error is the root mean square of scatter and this bias together, see :func:`distance`. It is
    about as large as the distance where two spectra cannot be distinguished.

    Args:
        densities: of B blocks, estimated or exact. bandwidth: in units of (normalised) eigenvalues.

    Returns:
        (B, B) distances, and (B, B) errors: 0 between exact densities, NaN where one has a single random vector.

    Raises:
        InputError: a bandwidth that is not positive.
    """
    if bandwidth is not None and not (is_number(bandwidth) and 0.0 < bandwidth < math.inf):
        raise InputError(f"bandwidth is {bandwidth!r}", where="bandwidth", what_to_do="use a number > 0, or None")
    table, errors = np.zeros((2, len(densities), len(densities)))
    if not len(densities):
        return table, errors
    scales = [_scale(density) if normalise else 1.0 for density in densities]
    every = np.concatenate([d.nodes[d.weights > 0.0] / scale for d, scale in zip(densities, scales, strict=True)])
    width = bandwidth or max(density.resolution / scale for density, scale in zip(densities, scales, strict=True))
    width = max(width, FINEST * float(np.abs(every).max()))
    grid = grid_of(every, width, POINTS)
    masses = [_mass(density, scale, grid, width) for density, scale in zip(densities, scales, strict=True)]
    for b, p in enumerate(masses):
        for c in range(b):
            table[b, c], errors[b, c] = table[c, b], errors[c, b] = distance(p, masses[c])
    return table, errors


def distance(p: Mass, q: Mass) -> tuple[float, float]:
    """The Jensen-Shannon distance and the root of its mean square error.

    Second order in the noise. The squared distance D2 changes with p by sum (1/2) log2(p / m) dp, m the mean of both,
    and similarly with q: its variance is that of these sums over the random vectors. Its bias is half the second
    derivative, (1 / (2 ln 2)) (1/p - 1/(2m)), times the variance of p, summed, and the same for q; it is never
    negative. The bias of D = sqrt(D2) is what D loses when the bias is subtracted from D2. Its scatter is sd(D2) / (2
    D), or the square root of sd(D2) where D is smaller than that.
    """
    value = jensen_shannon(p.value, q.value)
    if not (p.known and q.known):
        return value, math.nan
    variance = bias = 0.0
    middle = (p.value + q.value) / 2
    for side in (p, q):
        vectors = len(side.deviations)
        if not vectors:
            continue
        own, common, moves = side.value[side.places], middle[side.places], side.deviations
        shifts = moves @ (0.5 * np.log2(own / common))
        pairs = vectors * (vectors - 1)
        variance += float((shifts**2).sum()) / pairs
        bias += float(((1.0 / own - 0.5 / common) * (moves**2).sum(axis=0)).sum()) / pairs / (4.0 * math.log(2.0))
    spread = math.sqrt(variance)
    scatter = min(spread / (2.0 * value) if value else math.inf, math.sqrt(spread))
    return value, math.hypot(scatter, value - math.sqrt(max(value**2 - bias, 0.0)))


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Distance of two (g,) mass functions: sqrt((KL(p || m) + KL(q || m)) / 2), m their mean, in bits.

    >>> import numpy as np
    >>> jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    1.0
    >>> jensen_shannon(np.array([0.3, 0.7]), np.array([0.3, 0.7]))
    0.0
    """
    middle = (p + q) / 2
    return math.sqrt(min(1.0, max(0.0, (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2)))


def _relative_entropy(p: Floats, q: Floats) -> float:
    there = (p > 0.0) & (q > 0.0)  # half of the smallest float64 is zero
    return float((p[there] * np.log2(p[there] / q[there])).sum())


def _scale(density: DensityEstimate) -> float:
    largest = float(np.abs(density.nodes[density.weights > 0.0]).max(initial=0.0))
    return largest if largest > 0.0 else 1.0


def _mass(density: DensityEstimate, scale: float, grid: Floats, width: float) -> Mass:
    """The density of each random vector as masses of the grid's cells, which may differ in width; their mean."""
    steps = np.diff(grid)
    cells = np.append(steps, 0.0) + np.insert(steps, 0, 0.0)
    rows = []
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        there = weights > 0.0
        row = cells * gaussians(nodes[there] / scale, weights[there], grid, width)
        rows.append(row / row.sum())
    value = np.mean(rows, axis=0)
    places = np.flatnonzero(value > NOTHING)
    scattered = [row[places] - value[places] for row in rows if density.probes > 1]
    return Mass(value, places, np.array(scattered).reshape(-1, len(places)), known=density.probes != 1)
