"""Quadratures drawn as a curve: a density with its band over the random vectors, on a linear or a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.stochastic.density_grid import FINEST, bandwidth_of, compressed, gaussians, grid_of
from layerhess.linalg.stochastic.probe_statistics import half_width

BELOW = 1e-8  # of the largest |node|: the floor of a logarithmic axis
NARROWEST = 0.01  # decades
NOTHING = 1e-12  # the floor where every node is zero

Rule = tuple[Floats, Floats]  # nodes and weights (rows, m)


def smoothed(
    nodes: Floats,
    weights: Floats,
    probes: int,
    status: str,
    *,
    steps: int,
    points: int,
    bandwidth: float | None = None,
    axis: str = "linear",
    floor: float | None = None,
    cruder: Sequence[Rule] = (),
) -> DensityEstimate:
    """Quadratures (rows of nodes and weights) as a density on a grid, with its band and its moments.

    Args:
        probes: random vectors; 0 for a spectrum that is known. steps: asked for. Others: see
            :class:`layerhess.linalg.stochastic.density.Density`.
        cruder: the same quadratures with a step or two less; the difference is the quadrature's own error in the band.
    """
    # Of a known spectrum: as if it were only as well known as others, so that small and large blocks can be compared.
    seen = (nodes, weights)
    if not probes:
        values, masses = compressed(nodes[0], steps)
        seen = values[None], masses[None]
    width = bandwidth_of(*seen, steps)
    if axis == "log":
        drawn = _logarithmic((nodes, weights), seen, probes, steps, points, bandwidth, floor, cruder)
    else:
        there = weights > 0.0
        width = width if bandwidth is None else max(bandwidth, FINEST * float(np.abs(nodes[there]).max()))
        grid = grid_of(nodes[there], width, points)
        value, low, high = _curve((nodes, weights), cruder, grid, width, probes)
        drawn = {"grid": grid, "value": value, "low": low, "high": high, "bandwidth": width}
    first, second = (weights * nodes).sum(axis=1), (weights * nodes**2).sum(axis=1)
    return DensityEstimate(
        **drawn,
        probes=probes,
        steps=nodes.shape[1] if probes else 0,
        nodes=nodes,
        weights=weights,
        mean=float(first.mean()),
        mean_error=float(_standard_error(first, probes)),
        second=float(second.mean()),
        second_error=float(_standard_error(second, probes)),
        status=status,
        finished=True,
        axis=axis,
        resolution=width,
    )


def _logarithmic(
    rule: Rule,
    seen: Rule,
    probes: int,
    steps: int,
    points: int,
    bandwidth: float | None,
    floor: float | None,
    cruder: Sequence[Rule],
) -> dict[str, Any]:
    """The densities of log10 |eigenvalue| of either sign, above a floor; Gaussians in decades.

    Args:
        seen: the quadratures by which the width of the Gaussian is chosen, as on a linear axis.
    """
    largest = float(np.abs(rule[0][rule[1] > 0.0]).max())
    lowest = floor or (BELOW * largest if largest > 0.0 else NOTHING)
    sides = [_decades(rule, lowest, sign) for sign in (1.0, -1.0)]
    every = np.concatenate([decades[mass > 0.0] for decades, mass in sides])
    if not len(every):
        every = np.zeros(1)
    width = bandwidth or NARROWEST
    if bandwidth is None:
        by_sign = [_decades(seen, lowest, sign) for sign in (1.0, -1.0)]
        decades, mass = (np.concatenate([side[i] for side in by_sign]) for i in (0, 1))
        there = mass.any(axis=1)
        if there.any():
            width = max(width, bandwidth_of(decades[there], mass[there], steps))
    grid = grid_of(every, width, points)
    curves = [
        _curve(side, [_decades(before, lowest, sign) for before in cruder], grid, width, probes)
        for side, sign in zip(sides, (1.0, -1.0), strict=True)
    ]
    below = np.where(np.abs(rule[0]) < lowest, rule[1], 0.0).sum(axis=1)
    names = ("value", "low", "high")
    return {
        "grid": lowest * 10.0**grid,
        **dict(zip(names, curves[0], strict=True)),
        **{f"{name}_negative": curve for name, curve in zip(names, curves[1], strict=True)},
        "bandwidth": width,
        "below_floor": float(below.mean()),
        "floor": lowest,
    }


def _decades(rule: Rule, floor: float, sign: float) -> Rule:
    """Nodes of one sign in decades above the floor, ascending; the others have no mass."""
    nodes, weights = (part[:, :: int(sign)] for part in rule)
    there = (sign * nodes >= floor) & (weights > 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(there, np.log10(sign * nodes / floor), 0.0), np.where(there, weights, 0.0)


def _curve(
    rule: Rule, cruder: Sequence[Rule], grid: Floats, width: float, probes: int
) -> tuple[Floats, Floats, Floats]:
    """The density and both ends of its band."""
    rows = _rows(*rule, grid, width)
    value = rows.mean(axis=0)
    off = np.zeros_like(value)
    for before in cruder:
        off = np.maximum(off, np.abs(value - _rows(*before, grid, width).mean(axis=0)))
    return value, *_band(value, _standard_error(rows, probes), off, probes)


def _rows(nodes: Floats, weights: Floats, grid: Floats, sigma: float) -> Floats:
    return np.array([gaussians(x, w, grid, sigma) for x, w in zip(nodes, weights, strict=True)])


def _band(value: Floats, error: Floats, off: Floats, probes: int) -> tuple[Floats, Floats]:
    """Student's interval for the logarithm of the mean (delta method), widened by the change in the last two steps.

    A random vector's weight on one eigenvalue is a chi-square variable over n: skewed, and never negative. An interval
    that is symmetric in the logarithm covers outliers seen by six vectors in 93 % of cases, the plain one in 87 %. The
    change ``off`` in the last steps stands for the quadrature's own error, which all probes share and so cannot show.
    """
    if probes < 2:
        return value + error, value + error  # zero width of an exact density, NaN of a single probe
    half = half_width(1.0, probes) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        low = value * np.exp(-(half + off) / value)
        high = value * np.exp((half + np.minimum(off, value)) / value) + np.maximum(off - value, 0.0)
    return np.where(value > 0.0, low, 0.0), np.where(value > 0.0, high, off)


def _standard_error(samples: Floats, probes: int) -> Floats:
    """Of the mean over the first axis: zero without probes (exact), NaN of one."""
    if probes < 2:
        return np.full(samples.shape[1:], math.nan if probes else 0.0)
    return np.asarray(samples.std(axis=0, ddof=1) / math.sqrt(probes))
