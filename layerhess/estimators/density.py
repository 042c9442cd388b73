"""Spectral density by stochastic Lanczos quadrature, with a band over the random vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from layerhess.errors import InputError, checked_integer
from layerhess.estimates import CONFIDENCE, DensityEstimate, Floats
from layerhess.estimators.options import is_number
from layerhess.solvers.process import Source

BREAKDOWN = 1e-10  # of the largest coefficient so far: below this what is left of the recurrence is rounding
MARGIN = 5.0  # bandwidths beyond the outermost node
REFINED = np.linspace(-5.0, 5.0, 41)  # bandwidths around a node where the grid is made finer


@dataclass(frozen=True)
class Density:
    """How a spectral density is made.

    Args:
        probes: random vectors; their spread is the band, so one gives none.
        steps: Lanczos steps for each, one product a step. A block of fewer dimensions takes as many as it has.
        points: of the uniform part of the grid. bandwidth: standard deviation of the Gaussian, in units of eigenvalues;
            by default the range of the Ritz values over twice the number of steps.

    Raises:
        InputError: fewer than two steps, no probe, or a bandwidth that is not positive.
    """

    probes: int = 6
    steps: int = 24
    points: int = 256
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        checked_integer(self.probes, "probes", 1)
        if checked_integer(self.steps, "steps", 1) < 2:
            raise InputError(
                "a density needs at least 2 Lanczos steps; 1 gives the mean eigenvalue only",
                where=f"steps={self.steps}",
                what_to_do="use steps=24, or lh.Trace for the mean",
            )
        checked_integer(self.points, "points", 16)
        if self.bandwidth is not None and not (is_number(self.bandwidth) and 0.0 < self.bandwidth < math.inf):
            raise InputError(
                f"bandwidth is {self.bandwidth!r}", where="bandwidth", what_to_do="use a number > 0, or None"
            )


class StochasticLanczos:
    """Lanczos from several random vectors at once, asking for products instead of making them.

    The eigenvalues theta of the tridiagonal T and the squared first components w of its eigenvectors are the Gauss
    quadrature of the density that the vector v sees: sum w f(theta) = v'f(A)v for polynomials f up to degree
    2 steps - 1, so mean over v is tr f(A) / n (Golub & Welsch 1969; Ubaru, Chen & Saad 2017; Ghorbani, Krishnan & Xiao
    2019).

    The short recurrence keeps three vectors of each probe and no basis, so orthogonality is lost: converged Ritz values
    come back as ghost copies, each with a share of the weight. A density does not mind (Greenbaum 1989); as a list of
    eigenvalues the nodes would be wrong, and nothing here reads them as such: eigenvalues come from the solver that
    reorthogonalises.

    Cost: steps x probes products, memory 3 x probes x n float64.

    Args:
        n: dimension. options: see :class:`Density`. draw: number -> random unit vector (n,).
    """

    def __init__(self, n: int, options: Density, draw: Source) -> None:
        self.n = n
        self.options = options
        self.steps = min(options.steps, n)
        self._current = torch.stack([draw(number) for number in range(options.probes)])
        self._previous = torch.zeros_like(self._current)
        self._alpha: list[list[float]] = [[] for _ in range(options.probes)]
        self._beta: list[list[float]] = [[] for _ in range(options.probes)]
        self._alive = list(range(options.probes))

    @property
    def done(self) -> bool:
        """True when every probe has taken its steps, or spans an invariant subspace."""
        return not self._alive

    def ask(self) -> Tensor:
        """The (s, n) current vectors of the unfinished probes."""
        return self._current

    def tell(self, products: Tensor) -> None:
        """One step of the three-term recurrence for each of them."""
        alpha = (products * self._current).sum(dim=1)
        before = torch.tensor([self._beta[i][-1] if self._beta[i] else 0.0 for i in self._alive]).to(products)
        rest = products - alpha[:, None] * self._current - before[:, None] * self._previous
        beta = torch.linalg.vector_norm(rest, dim=1)
        going = []
        for row, probe in enumerate(self._alive):
            self._alpha[probe].append(float(alpha[row]))
            scale = max(map(abs, [*self._alpha[probe], *self._beta[probe]]))
            if len(self._alpha[probe]) < self.steps and float(beta[row]) > BREAKDOWN * scale:
                self._beta[probe].append(float(beta[row]))
                going.append(row)
        self._alive = [self._alive[row] for row in going]
        self._previous = self._current[going]
        self._current = rest[going] / beta[going, None]

    def result(self) -> DensityEstimate:
        """The density of what was told so far (at least one step)."""
        probes = self.options.probes
        longest = max(len(alpha) for alpha in self._alpha)
        nodes, weights = np.zeros((probes, longest)), np.zeros((probes, longest))
        for probe, (alpha, beta) in enumerate(zip(self._alpha, self._beta, strict=True)):
            m = len(alpha)
            off = np.array(beta[: m - 1])
            values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(off, 1) + np.diag(off, -1))
            nodes[probe, :m], weights[probe, :m] = values, vectors[0] ** 2
        if self.options.steps > self.n:
            status = f"{longest} steps, all that a block of {self.n} allows, from {probes} random vectors"
        else:
            status = f"{longest} Lanczos steps from {probes} random vector{'s' * (probes > 1)}"
        if longest < self.steps and not self.done:
            status = f"stopped early: {status}"
        if probes == 1:
            status += "; a single vector gives no band"
        return smoothed(nodes, weights, self.options, probes=probes, status=status)


def exact_density(spectrum: Floats, options: Density) -> DensityEstimate:
    """The density of a spectrum that is known, smoothed in the same way; no probes, no error."""
    values = np.sort(np.asarray(spectrum, dtype=np.float64))
    weights = np.full((1, len(values)), 1.0 / len(values))
    return smoothed(values[None], weights, options, probes=0, status="exact: the whole spectrum is known")


def smoothed(nodes: Floats, weights: Floats, options: Density, *, probes: int, status: str) -> DensityEstimate:
    """Quadratures (rows of nodes and weights) as a density on a grid, with its band and its moments."""
    there = weights > 0.0
    low, high = float(nodes[there].min()), float(nodes[there].max())
    sigma = options.bandwidth or _bandwidth(low, high, nodes.shape[1])
    grid = _grid(nodes[there], low, high, sigma, options.points)
    rows = np.array([_gaussians(x, w, grid, sigma) for x, w in zip(nodes, weights, strict=True)])
    value = rows.mean(axis=0)
    half = np.zeros_like(value)
    if probes > 1:
        t = float(stdtrit(probes - 1, (1 + CONFIDENCE) / 2))
        half = t * rows.std(axis=0, ddof=1) / math.sqrt(probes)
    elif probes == 1:
        half = np.full_like(value, np.nan)
    first, second = (weights * nodes).sum(axis=1), (weights * nodes**2).sum(axis=1)
    return DensityEstimate(
        grid=grid,
        value=value,
        low=np.maximum(value - half, 0.0) if probes != 1 else half,
        high=value + half,
        bandwidth=sigma,
        probes=probes,
        steps=nodes.shape[1] if probes else 0,
        nodes=nodes,
        weights=weights,
        mean=float(first.mean()),
        mean_error=_standard_error(first, probes),
        second=float(second.mean()),
        second_error=_standard_error(second, probes),
        status=status,
    )


def check_moments(
    density: DensityEstimate, *, trace: tuple[float, float] | None, frobenius2: tuple[float, float] | None, n: int
) -> tuple[bool, str]:
    """Whether the density's moments agree with a trace and a squared Frobenius norm that were estimated apart.

    Args:
        trace, frobenius2: (value, standard error), or None where there is none. n: dimension.

    Returns:
        (agree within four combined standard errors, a sentence).
    """
    parts, agree = [], True
    for name, moment, error, other in (
        ("mean eigenvalue", density.mean, density.mean_error, trace),
        ("mean square", density.second, density.second_error, frobenius2),
    ):
        if other is None:
            continue
        value, other_error = other[0] / n, other[1] / n
        combined = math.hypot(error, other_error)
        off = abs(moment - value)
        good = off <= 4.0 * combined + 1e-6 * max(abs(moment), abs(value))
        agree = agree and good
        parts.append(
            f"{name} {moment:.3g} against {value:.3g} ({off / combined if combined else 0.0:.1f} standard errors)"
        )
    return agree, "; ".join(parts) or "nothing to compare with"


def _standard_error(samples: Floats, probes: int) -> float:
    if probes == 0:
        return 0.0
    return float(samples.std(ddof=1) / math.sqrt(probes)) if probes > 1 else math.nan


def _bandwidth(low: float, high: float, steps: int) -> float:
    """Half the mean distance of the nodes: wide enough that the bulk's nodes do not look like outliers."""
    spread = high - low
    scale = max(abs(low), abs(high))
    return max(spread / (2.0 * max(steps, 2)), 1e-3 * scale, 1e-12)


def _grid(nodes: Floats, low: float, high: float, sigma: float, points: int) -> Floats:
    """Uniform over the range, and finer around each node, so that no peak falls between two points."""
    uniform = np.linspace(low - MARGIN * sigma, high + MARGIN * sigma, points)
    if uniform[1] - uniform[0] <= sigma / 4.0:
        return uniform
    distinct = np.unique(np.round(nodes / sigma)) * sigma
    fine = (distinct[:, None] + sigma * REFINED).ravel()
    return np.unique(np.concatenate([uniform, fine]))


def _gaussians(nodes: Floats, weights: Floats, grid: Floats, sigma: float) -> Floats:
    scaled = (grid[:, None] - nodes) / sigma
    return np.asarray(np.exp(-0.5 * scaled**2) @ weights / (sigma * math.sqrt(2.0 * math.pi)))
