"""Spectral density by stochastic Lanczos quadrature, with a band over the random vectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from layerhess.errors import InputError, checked_integer
from layerhess.linalg.eigen.process import Source
from layerhess.linalg.estimates import DensityEstimate, Floats
from layerhess.linalg.gauss_rules import quadrature
from layerhess.linalg.stochastic.known_pairs import FEWEST, KnownPairs, known_pairs
from layerhess.linalg.stochastic.options import is_number
from layerhess.linalg.stochastic.smoothing import smoothed

AXES = ("linear", "log")
BREAKDOWN = 1e-10  # of the largest coefficient so far: below this the rest in the recurrence is rounding
RECURRENCE = 1e-14  # of the largest |node|: what the float64 steps themselves round away
DISAGREE = 5e-6  # probability, by Student's t, that two right estimates of one moment are called different
ARITHMETIC = 1e-6  # relative: float32 products differ by that much between two ways to compute the same number


@dataclass(frozen=True)
class Density:
    """How a spectral density is made.

    Args:
        probes: random vectors; the band is their spread, so one has none (its band is NaN, and the status says so).
        steps: Lanczos steps for each, one product a step. A block of fewer dimensions takes as many as it has.
        points: of the uniform part of the grid.
        bandwidth: standard deviation of the Gaussian, in units of eigenvalues; by default three quarters of the
            distance between neighbouring nodes where the mass is, see
            :func:`layerhess.linalg.stochastic.density_grid.bandwidth_of`. Below 1e-9 of the largest |node| it is
            widened to that. On a logarithmic axis in decades.
        axis: "linear", or "log": the density of log10 |eigenvalue|, for either sign.
        floor: |eigenvalue| below which a logarithmic axis does not tell numbers apart; by default 1e-8 of the largest
            |node|.

    Raises:
        InputError: fewer than two steps, no probe, a bandwidth or floor that is not positive, an unknown axis, or a
            floor without a logarithmic axis.
    """

    probes: int = 10
    steps: int = 30
    points: int = 512
    bandwidth: float | None = None
    axis: str = "linear"
    floor: float | None = None

    def __post_init__(self) -> None:
        checked_integer(self.probes, "probes", 1)
        if is_number(self.steps) and self.steps < 2:
            raise InputError(
                "a density needs at least 2 Lanczos steps; 1 gives the mean eigenvalue only",
                where=f"steps={self.steps}",
                what_to_do="use steps=30, or lh.Trace for the mean",
            )
        checked_integer(self.steps, "steps", 2)
        checked_integer(self.points, "points", 16)
        for name in ("bandwidth", "floor"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0.0 < value < math.inf):
                raise InputError(f"{name} is {value!r}", where=name, what_to_do="use a number > 0, or None")
        if not isinstance(self.axis, str) or self.axis not in AXES:
            known = " or ".join(map(repr, AXES))
            raise InputError(f"there is no axis {self.axis!r}", where="axis", what_to_do=f"use {known}")
        if self.floor is not None and self.axis != "log":
            raise InputError(
                "a linear axis has no floor", where=f"floor={self.floor!r}", what_to_do='use axis="log" with it'
            )


class StochasticLanczos:
    """Lanczos from several random vectors at once, asking for products instead of making them.

    The eigenvalues theta of the tridiagonal T and the squared first components w of its eigenvectors are the Gauss
    quadrature of the density that the unit vector v sees: sum w f(theta) = v'f(A)v for polynomials f up to degree
    2 steps - 1, and the mean of v'f(A)v over v is tr f(A) / n (Golub & Welsch 1969; Ubaru, Chen & Saad 2017; Ghorbani,
    Krishnan & Xiao 2019). So the first two moments of each probe are exactly v'Av and ||Av||^2.

    With ``keep`` every probe keeps its basis and is orthogonalised fully, so that its nodes do not depend on the order
    of summation. Else it keeps three vectors: orthogonality is lost and converged Ritz values come back as ghost
    copies, which share the weight of the one eigenvalue. A density does not mind (Greenbaum 1989); a list of
    eigenvalues would be wrong. Never read top eigenvalues, or their multiplicities, off the nodes: they come from the
    solver that reorthogonalises, with a residual for each.

    With ``pairs`` the first probe's basis is kept, whatever becomes of the others', and so are those of its Ritz
    vectors that are eigenvectors: functions of the spectrum then need chance for the rest of the space alone.

    Cost: at most steps x probes products, memory 5 x together x n float64; bases take steps x together x n more, the
    first one alone steps x n.

    Args:
        n: dimension. options: see :class:`Density`. draw: number -> random unit vector (n,) float64, the same one each
            time. together: how many probes take their steps at the same time; all of them by default. keep: their
            bases. pairs: find the first probe's eigenpairs, where at least two others are left as samples.
    """

    def __init__(
        self,
        n: int,
        options: Density,
        draw: Source,
        together: int | None = None,
        keep: bool = False,
        pairs: bool = False,
    ) -> None:
        self.n = n
        self.options = options
        self.steps = min(options.steps, n)
        self._draw = draw
        self._together = together or options.probes
        self._current = self._previous = torch.empty((0, n), dtype=torch.float64)
        self._keeps = keep
        self._finds = pairs and options.probes >= FEWEST
        self._pairs: KnownPairs | None = None
        self._known: dict[str, Any] = {}
        self._basis: list[Tensor] = []  # if kept: the vectors of all steps, (s, n) each
        self._alpha: list[list[float]] = [[] for _ in range(options.probes)]
        self._beta: list[list[float]] = [[] for _ in range(options.probes)]
        self._waiting = list(range(options.probes))
        self._alive: list[int] = []
        self._resolved: set[int] = set()  # probes whose quadrature is exact for every function

    @property
    def done(self) -> bool:
        """True when every probe has taken its steps, or spans an invariant subspace."""
        return not self._alive and not self._waiting

    @property
    def asked(self) -> list[int]:
        """Numbers of the probes at work, in the order of the rows of :meth:`ask`."""
        return list(self._alive)

    def ask(self) -> Tensor:
        """The (s, n) float64 vectors of the probes at work."""
        if not self._alive and self._waiting:
            self._alive, self._waiting = self._waiting[: self._together], self._waiting[self._together :]
            self._current = torch.stack([self._draw(number) for number in self._alive])
            self._previous = torch.zeros_like(self._current)
        return self._current

    def tell(self, products: Tensor) -> None:
        """One step of the three-term recurrence for each of them, from their (s, n) products."""
        alpha = (products * self._current).sum(dim=1)
        lengths = [self._beta[i][-1] if self._beta[i] else 0.0 for i in self._alive]
        before = torch.tensor(lengths, dtype=products.dtype).to(products.device)
        rest = products - alpha[:, None] * self._current - before[:, None] * self._previous
        kept = self._kept
        if kept:
            self._basis.append(self._current[:kept])
            rest[:kept] = _outside(rest[:kept], self._basis)
        beta = torch.linalg.vector_norm(rest, dim=1)
        going = []
        for row, probe in enumerate(self._alive):
            self._alpha[probe].append(float(alpha[row]))
            scale = max(map(abs, [*self._alpha[probe], *self._beta[probe]]))
            if float(beta[row]) <= BREAKDOWN * scale:  # n steps are no proof: orthogonality may be lost by then
                self._resolved.add(probe)
            elif len(self._alpha[probe]) < self.steps:
                self._beta[probe].append(float(beta[row]))
                going.append(row)
        if self._finds and self._alive[0] == 0 and 0 not in going:
            basis = torch.stack([vectors[0] for vectors in self._basis])
            self._pairs = known_pairs(np.array(self._alpha[0]), np.array(self._beta[0]), float(beta[0]), basis)
        if len(going) < len(self._alive):
            left = [row for row in going if row < kept]
            self._basis = [vectors[left] for vectors in self._basis] if left else []
        self._alive = [self._alive[row] for row in going]
        self._previous = self._current[going]
        self._current = rest[going] / beta[going, None]

    @property
    def _kept(self) -> int:
        """How many of the probes at work, the first ones, have their bases kept."""
        return len(self._alive) if self._keeps else int(self._finds and self._alive[0] == 0)

    @property
    def started(self) -> bool:
        """True once there is a :meth:`result`."""
        return bool(self._alpha[0])

    def result(self, spectrum: Floats | None = None) -> DensityEstimate:
        """The density of what was told so far, at least one product.

        Args:
            spectrum: all eigenvalues (n,), if they have become known; the density is then exact.

        Raises:
            RuntimeError: nothing was told yet; see :attr:`started`.
        """
        if spectrum is not None:
            return exact_density(spectrum, self.options)
        if not self.started:
            raise RuntimeError("there is no density before the first product")
        probes, longest = sum(map(bool, self._alpha)), max(len(alpha) for alpha in self._alpha)
        whole = self._quadratures(longest, less=0)
        cruder = [self._quadratures(longest, less) for less in (1, 2)]
        made = _at_least_known(_drawn(*whole, self.options, probes, self._status(longest), cruder), self.n)
        exact = np.array([probe in self._resolved for probe in range(probes)])
        made = dataclasses.replace(made, numel=self.n, exhausted=exact, lowest=_lowest(made))
        if self.done:
            return dataclasses.replace(made, **self._known_now())
        made = dataclasses.replace(made, finished=False)
        # One step knows v'Av alone.
        return made if longest > 1 else dataclasses.replace(made, second=math.nan, second_error=math.nan)

    def _known_now(self) -> dict[str, Any]:
        """What is known of eigenpairs once all probes are done; their vectors, which are large, are let go."""
        if self._pairs is not None:
            found, self._pairs = self._pairs, None
            overlaps = found.overlaps(self.options.probes, self._draw)
            self._known = {"known": found.values, "known_bounds": found.bounds, "overlaps": overlaps}
        return self._known

    @property
    def magnitude(self) -> float:
        """Mean |eigenvalue| from the quadratures so far: the nuclear norm over n."""
        nodes, weights = self._quadratures(max(len(alpha) for alpha in self._alpha), less=0)
        return float((weights * np.abs(nodes)).sum(axis=1).mean())

    def _quadratures(self, longest: int, less: int) -> tuple[Floats, Floats]:
        """Nodes and weights (probes, longest), without the last ``less`` steps unless the quadrature is exact."""
        begun = sum(map(bool, self._alpha))
        nodes, weights = np.zeros((2, begun, longest))
        for probe, (alpha, beta) in enumerate(zip(self._alpha[:begun], self._beta[:begun], strict=True)):
            m = len(alpha) if probe in self._resolved else max(1, len(alpha) - less)
            nodes[probe, :m], weights[probe, :m] = quadrature(np.array(alpha[:m]), np.array(beta[: m - 1]))
        return nodes, weights

    def _status(self, longest: int) -> str:
        probes, steps = sum(map(bool, self._alpha)), self.options.steps
        status = f"{longest} Lanczos step{'s' * (longest != 1)} from {probes} random vector{'s' * (probes > 1)}"
        if not self.done:
            status = f"stopped early, after {status} of the {self.steps} steps asked for"
        elif longest < self.steps:
            status += f" reached every eigenvalue they see; {steps} were asked for"
        elif steps > self.n:
            status += f", all that a block of {self.n} allows"
        return status if probes > 1 else f"{status}; a single vector gives no band"


def _outside(rows: Tensor, basis: Sequence[Tensor]) -> Tensor:
    """(s, n) rows, each without its part in its own orthonormal vectors, (s, n) a step; subtracted twice."""
    q = torch.stack(list(basis), dim=1)  # (s, steps, n)
    for _ in range(2):
        rows = rows - torch.bmm(torch.bmm(rows[:, None], q.transpose(1, 2)), q)[:, 0]
    return rows


def _at_least_known(density: DensityEstimate, n: int) -> DensityEstimate:
    """Errors of the moments that are no smaller than what the nodes prove.

    Where one eigenvalue carries a moment, a few vectors may all have little of it, and then their spread is small as
    well (a chi-square variable: the mean of ten was 11 of its own standard errors off). But their nodes show it: the
    largest and the smallest are Ritz values, so the spectrum reaches at least as far, and a power sum of its
    eigenvalues over n is at least theirs. For a uniform unit vector v'Bv has the variance
    2 (tr B^2 / n - (tr B / n)^2) / (n + 2).
    """
    seen = density.nodes[density.weights > 0.0]
    ends = np.array([max(float(seen.max()), 0.0), min(float(seen.min()), 0.0)])

    def error(power: int, moment: float) -> float:
        twice = (density.weights * density.nodes ** (2 * power)).sum(axis=1).mean()
        square = max(float(twice), float((ends ** (2 * power)).sum()) / n)
        spread = square - moment**2
        return math.sqrt(2.0 * spread / ((n + 2) * density.probes)) if spread > ARITHMETIC**2 * square else 0.0

    return dataclasses.replace(
        density,
        mean_error=float(np.maximum(density.mean_error, error(1, density.mean))),
        second_error=float(np.maximum(density.second_error, error(2, density.second))),
    )


def exact_density(spectrum: Floats, options: Density) -> DensityEstimate:
    """The density of a known spectrum (n,), smoothed as its quadrature would be; no probes, no error."""
    values = np.sort(np.asarray(spectrum, dtype=np.float64))
    weights = np.full((1, len(values)), 1.0 / len(values))
    status = f"exact: all {len(values)} eigenvalues are known" if len(values) > 1 else "exact: the only eigenvalue"
    made = _drawn(values[None], weights, options, 0, status)
    return dataclasses.replace(made, numel=len(values), lowest=_lowest(made))


def with_rounding(density: DensityEstimate, relative: float) -> DensityEstimate:
    """The density, with the rounding of an eigenvalue: of products with a relative error, in units of the largest."""
    return dataclasses.replace(density, rounding=max(relative, RECURRENCE) * float(np.abs(density.nodes).max()))


def _lowest(density: DensityEstimate) -> float:
    return float(density.nodes[density.weights > 0.0].min())


def check_moments(
    density: DensityEstimate, *, trace: tuple[float, float] | None, frobenius2: tuple[float, float] | None, n: int
) -> tuple[bool, str]:
    """Compare the density's moments with a trace and a squared Frobenius norm that were estimated separately.

    Args:
        trace, frobenius2: (value, standard error) of tr A and ||A||_F^2, or None where there is none. n: dimension.

    Returns:
        (agree, a sentence): whether they are as close as their combined standard errors let expect. The tails are wide
        where the probes are few, because standard errors of a skewed sample are too small. What has no standard error
        (a single probe) is not compared.
    """
    parts, agree = [], True
    tolerated = float(stdtrit(max(density.probes - 1, 1), 1.0 - DISAGREE))
    for name, moment, error, other in (
        ("the mean eigenvalue", density.mean, density.mean_error, trace),
        ("the mean square", density.second, density.second_error, frobenius2),
    ):
        if other is None:
            continue
        if math.isnan(moment):
            continue
        value, combined = other[0] / n, math.hypot(error, other[1] / n)
        text = f"{name} is {moment:.3g} by the density and {value:.3g} by other probes"
        if not math.isfinite(combined):
            parts.append(f"{text} (no standard error to judge by)")
            continue
        off = abs(moment - value)
        agree = agree and off <= tolerated * combined + ARITHMETIC * max(abs(moment), abs(value))
        parts.append(f"{text} ({off / combined:.1f} standard errors apart)" if combined else text)
    if not parts:
        return True, "there is nothing to compare the moments with"
    return agree, ("the moments agree: " if agree else "the moments disagree: ") + "; ".join(parts)


def _drawn(
    nodes: Floats,
    weights: Floats,
    options: Density,
    probes: int,
    status: str,
    cruder: Sequence[tuple[Floats, Floats]] = (),
) -> DensityEstimate:
    """Quadratures as a density on the grid that was asked for."""
    asked = dataclasses.asdict(options)
    del asked["probes"]
    return smoothed(nodes, weights, probes, status, cruder=cruder, **asked)
