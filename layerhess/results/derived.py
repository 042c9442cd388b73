"""Numbers derived from a block's eigenvalues, trace and density (stable rank, damping, ...), each with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from layerhess.linalg.described import Described, Description
from layerhess.linalg.estimates import Floats
from layerhess.linalg.numbers import number, with_bound
from layerhess.results.record import SpectrumRecord

SEMIDEFINITE = ("empirical_fisher", "empirical_fisher:token")


@dataclass(frozen=True, repr=False)
class Figure(Described):
    """A number and its error: a bound if it comes from bounds, a standard error if it comes from random probes.

    Attributes:
        value: NaN where the inputs are missing. error: absolute, half the width; NaN if the value is.
        kind: "bound", "standard error" or "exact".
    """

    value: float
    error: float
    kind: str

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    def _describe(self) -> Description:
        return Description(f"{self.text} ({self.kind})" if self.known else "not known: its inputs were not asked for")

    @property
    def text(self) -> str:
        """The number and its error."""
        return number(self.value, 6) if self.error == 0.0 else with_bound(self.value, self.error)


UNKNOWN = Figure(math.nan, math.nan, "")


@dataclass(frozen=True, repr=False)
class Derived(Described):
    """Numbers derived from one operator's eigenvalues, trace and density (A the operator, n its dimension).

    Attributes:
        trace: sum of all eigenvalues.
        mean_curvature: trace / n, the average second derivative over the parameters (HAWQ-V2, Dong et al. 2020).
        top_sum: sum of the eigenvalues found at the top. top_share: that over the trace.
        top_condition: largest over smallest of the eigenvalues found at the top (two or more).
        frobenius_squared: ||A||_F^2; from the density, and never less than the squares of the eigenvalues found.
        stable_rank: ||A||_F^2 / ||A||_2^2, between 1 and the rank.
        effective_rank: exp of the entropy of |lambda| / sum |lambda| (Roy & Vetterli 2007).
        damping: makes A + damping I positive semidefinite: the size of the most negative eigenvalue, bound included; 0
            if there is none.
        critical_learning_rate: 2 / lambda_max, above which gradient descent on the quadratic model diverges.
    """

    trace: Figure = UNKNOWN
    mean_curvature: Figure = UNKNOWN
    top_sum: Figure = UNKNOWN
    top_share: Figure = UNKNOWN
    top_condition: Figure = UNKNOWN
    frobenius_squared: Figure = UNKNOWN
    stable_rank: Figure = UNKNOWN
    effective_rank: Figure = UNKNOWN
    damping: Figure = UNKNOWN
    critical_learning_rate: Figure = UNKNOWN

    def _describe(self) -> Description:
        figures = {item.name: getattr(self, item.name) for item in fields(self)}
        known = {name: figure for name, figure in figures.items() if figure.known}
        unknown = [name for name in figures if name not in known]
        return Description(
            f"Derived numbers: {len(known)} of {len(figures)} are known",
            (
                "; ".join(f"{name} {figure.text}" for name, figure in known.items()),
                f"not known, as their inputs were not asked for: {', '.join(unknown)}" if unknown else "",
            ),
            columns=("number", "value ± error", "kind of error"),
            rows=tuple((name, figure.text, figure.kind) for name, figure in known.items()),
        )


def derive(spectrum: SpectrumRecord) -> Derived:
    """All figures that can be computed from ``spectrum``; the others are unknown (NaN).

    Args:
        spectrum: of a block or the full model. Only converged eigenvalues are used.
    """
    with np.errstate(all="ignore"):  # near the limits of float64 the result is inf or NaN
        return _derived(spectrum)


def _derived(spectrum: SpectrumRecord) -> Derived:
    top, errors = _at_the_top(spectrum)
    trace = _trace(spectrum)
    frobenius = _frobenius_squared(spectrum)
    return Derived(
        trace=trace,
        mean_curvature=_scaled(trace, 1.0 / max(spectrum.numel, 1)),
        top_sum=Figure(float(top.sum()), float(errors.sum()), "bound") if len(top) else UNKNOWN,
        top_share=_top_share(top, errors, trace),
        top_condition=_top_condition(top, errors),
        frobenius_squared=frobenius,
        stable_rank=_stable_rank(spectrum, frobenius),
        effective_rank=_effective_rank(spectrum),
        damping=_damping(spectrum),
        critical_learning_rate=_critical_learning_rate(top, errors),
    )


def compare_learning_rate(spectrum: SpectrumRecord, learning_rate: float) -> str:
    """A sentence comparing a learning rate with 2 / lambda_max (Cohen et al. 2021 call lambda_max = 2/lr the edge).

    Args:
        learning_rate: of plain gradient descent, > 0.
    """
    critical = derive(spectrum).critical_learning_rate
    if not critical.known:
        return "2 / lambda_max is not known: no positive top eigenvalue has converged"
    ratio = learning_rate / critical.value
    margin = critical.error / critical.value
    place = "at the edge of stability" if abs(ratio - 1.0) <= max(0.1, margin) else "above" if ratio > 1.0 else "below"
    return (
        f"the learning rate {learning_rate:g} is {ratio:.2g} times 2 / lambda_max = {critical.value:.3g}: {place}"
        + ("" if place.startswith("at") else " the largest that is stable on the quadratic model")
    )


def _at_the_top(spectrum: SpectrumRecord) -> tuple[Floats, Floats]:
    asked = spectrum.end.count("top")
    leading = int(np.cumprod(spectrum.converged[:asked]).sum())  # up to the first that has not converged
    return spectrum.eigenvalues[:leading], spectrum.error_bounds[:leading]


def _trace(spectrum: SpectrumRecord) -> Figure:
    if spectrum.spectrum is not None:
        n = spectrum.numel
        return Figure(float(spectrum.spectrum.sum()), n * float(np.max(spectrum.error_bounds, initial=0.0)), "bound")
    if spectrum.trace is None:
        return UNKNOWN
    found = spectrum.trace
    if found.method == "exact":
        return Figure(found.value, found.rounding, "bound" if found.rounding else "exact")
    return Figure(found.value, math.hypot(found.standard_error, found.rounding), "standard error")


def _frobenius_squared(spectrum: SpectrumRecord) -> Figure:
    if spectrum.spectrum is not None:
        return Figure(float(np.square(spectrum.spectrum).sum()), 0.0, "exact")
    if spectrum.density is None or math.isnan(spectrum.density.second):
        return UNKNOWN
    n = spectrum.numel
    # An estimate from few probes can be less than the sum of the squares of the eigenvalues found.
    least = float(np.square(spectrum.eigenvalues[spectrum.converged]).sum())
    kind = "standard error" if spectrum.density.probes else "bound"  # without probes: of a block that counts as zero
    return Figure(max(n * spectrum.density.second, least), n * spectrum.density.second_error, kind)


def _scaled(figure: Figure, factor: float) -> Figure:
    return Figure(figure.value * factor, figure.error * factor, figure.kind) if figure.known else UNKNOWN


def _top_share(top: Floats, errors: Floats, trace: Figure) -> Figure:
    if not len(top) or not trace.known or trace.value == 0.0:
        return UNKNOWN
    share = float(top.sum()) / trace.value
    relative = float(errors.sum()) / max(abs(float(top.sum())), 1e-300) + trace.error / abs(trace.value)
    return Figure(share, abs(share) * relative, trace.kind)


def _top_condition(top: Floats, errors: Floats) -> Figure:
    if len(top) < 2 or top[-1] - errors[-1] <= 0.0:
        return UNKNOWN
    value = float(top[0] / top[-1])
    return Figure(value, value * float(errors[0] / top[0] + errors[-1] / (top[-1] - errors[-1])), "bound")


def _stable_rank(spectrum: SpectrumRecord, frobenius: Figure) -> Figure:
    norm = _norm(spectrum)
    if not frobenius.known or not norm:
        return UNKNOWN
    return Figure(frobenius.value / norm**2, frobenius.error / norm**2, frobenius.kind)


def _norm(spectrum: SpectrumRecord) -> float:
    """||A||_2 if both ends are known, or one end and that the other cannot be larger; else 0."""
    if spectrum.spectrum is not None and len(spectrum.spectrum):
        return float(np.abs(spectrum.spectrum).max())
    top, bottom = spectrum.top, spectrum.bottom
    if top is None or not np.all(spectrum.converged):
        return 0.0
    if bottom is not None:
        return max(abs(top[0]), abs(bottom[0]))
    return top[0] if spectrum.operator in SEMIDEFINITE else 0.0


def _effective_rank(spectrum: SpectrumRecord) -> Figure:
    if spectrum.spectrum is not None:
        sizes = np.abs(spectrum.spectrum)
        return Figure(_rank(float(sizes.sum()), float(_x_log_x(sizes).sum())), 0.0, "exact")
    density = spectrum.density
    if density is None or density.probes < 2 or not density.finished:
        return UNKNOWN
    n = spectrum.numel
    # Both sums are linear in the density, so their means over probes are unbiased; a mean of single ranks would not be.
    sizes = np.array([float((n * w * np.abs(x)).sum()) for x, w in zip(density.nodes, density.weights, strict=True)])
    logs = np.array([float((n * w * _x_log_x(x)).sum()) for x, w in zip(density.nodes, density.weights, strict=True)])
    if not sizes.any():
        return Figure(0.0, 0.0, "standard error")
    whole = _rank(sizes.mean(), logs.mean())
    without = np.array([_rank(*_means_without(sizes, logs, i)) for i in range(len(sizes))])
    jackknife = math.sqrt((len(without) - 1) * float(without.var()))
    return Figure(whole, jackknife, "standard error")


def _rank(size: float, log: float) -> float:
    """exp of the entropy, from S = sum |lambda| and L = sum |lambda| log |lambda|: log S - L / S."""
    return size * math.exp(-log / size) if size > 0.0 else 0.0


def _means_without(sizes: Floats, logs: Floats, left_out: int) -> tuple[float, float]:
    return float(np.delete(sizes, left_out).mean()), float(np.delete(logs, left_out).mean())


def _x_log_x(values: Floats) -> Floats:
    size = np.abs(values)
    return np.asarray(size * np.log(np.where(size > 0.0, size, 1.0)))


def _damping(spectrum: SpectrumRecord) -> Figure:
    bottom = spectrum.bottom
    if bottom is None or not spectrum.settled("bottom"):
        return UNKNOWN
    value, bound = bottom
    return Figure(max(0.0, bound - value) if value < bound else 0.0, bound, "bound")


def _critical_learning_rate(top: Floats, errors: Floats) -> Figure:
    if not len(top) or top[0] - errors[0] <= 0.0:
        return UNKNOWN
    value = 2.0 / float(top[0])
    return Figure(value, value * float(errors[0] / (top[0] - errors[0])), "bound")
