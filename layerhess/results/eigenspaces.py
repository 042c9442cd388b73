"""The spaces of a block's first eigenvectors: how far they are determined, and the angles between two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from layerhess.linalg.estimates import Floats
from layerhess.linalg.principal_angles import principal_angles
from layerhess.results.spectrum import Spectrum

IF_SINGLE = ", if the last eigenvalue has no further copy (one more eigenvalue, with top=, would tell)"
UNCHECKED = "up to multiplicity"  # in the status of a spectrum whose further copies were not looked for


@dataclass(frozen=True)
class Eigenspaces:
    """What was found of two spaces.

    Attributes:
        status: a sentence. angles: (k,) radians, ascending; one NaN where there are none. bound: of each. overlap: mean
            squared cosine.
    """

    status: str
    angles: Floats = field(default_factory=lambda: np.full(1, np.nan))
    bound: float = math.nan
    overlap: float = math.nan


def compared_spaces(a: Spectrum, b: Spectrum) -> Eigenspaces:
    """The angles between the spaces of the k first eigenvectors, k the most for which both are determined.

    A computed space is off by an angle of at most arcsin(||R|| / gap), R the residuals and the gap that to the rest of
    the spectrum (Davis & Kahan 1970); it is determined where that is below 1. The gap is known where one more
    eigenvalue was computed, or is excluded. Where it is for no k, that behind ``conditional_bounds`` is taken, which a
    further copy of the last eigenvalue would close; the status says so.
    """
    known = []
    for place, spectrum in (("first", a), ("second", b)):
        found, why = _determined(spectrum)
        if not found:
            return Eigenspaces(f"{why} in the {place}")
        known.append(found)
    if _shapes(a) != _shapes(b):
        return Eigenspaces("the parameters differ in name or shape")
    both = known[0].keys() & known[1].keys()
    if not both:
        return Eigenspaces("no number of eigenvectors is told apart from the next in both")
    proved = [k for k in both if known[0][k].proved and known[1][k].proved]
    k = max(proved or both)
    try:
        angles = principal_angles(lambda: _rows(a, b, k))
    except np.linalg.LinAlgError:
        return Eigenspaces("the eigenvectors are dependent")
    bound = min(known[0][k].bound + known[1][k].bound + _stored(a, b), math.pi / 2.0)
    said = "the first eigenvector" if k == 1 else f"the spaces of the {k} first eigenvectors"
    return Eigenspaces(said + ("" if proved else IF_SINGLE), angles, bound, float(np.mean(np.cos(angles) ** 2)))


@dataclass(frozen=True)
class _Space:
    """How far a space may be off, radians, and whether its gap is more than an assumption."""

    bound: float
    proved: bool


def _determined(spectrum: Spectrum) -> tuple[dict[int, _Space], str]:
    """k -> the space of the k first eigenvectors; and why there is none."""
    if spectrum.status.startswith("zero"):
        return {}, "the curvature is zero, so that every vector is an eigenvector"
    done = [end == "top" and bool(c) for end, c in zip(spectrum.end, spectrum.converged, strict=True)]
    count = done.index(False) if False in done else len(done)
    if not count:
        return {}, "no eigenvector of a largest eigenvalue has converged"
    if len(spectrum.eigenvectors) != len(spectrum.eigenvalues):
        return {}, "the eigenvectors were not kept"
    found = {}
    for k in range(1, count + 1):
        residual = float(np.linalg.norm(spectrum.error_bounds[:k]))
        if k == spectrum.numel:
            found[k] = _Space(0.0, proved=True)
            continue
        gap, proved = _gap(spectrum, k)
        if residual < gap:
            found[k] = _Space(math.asin(residual / gap), proved)
    return found, "the gap to the next eigenvalue is below the bound, or not known,"


def _gap(spectrum: Spectrum, k: int) -> tuple[float, bool]:
    """Between the k-th eigenvalue and the rest of the spectrum, at least; NaN where it is not known.

    Also whether that is proved, up to the probability of a miss.
    """
    values, bounds = spectrum.eigenvalues, spectrum.error_bounds
    if spectrum.spectrum is not None:
        return float(values[k - 1] - spectrum.spectrum[k] - bounds[k - 1]), True
    if k < len(values) and spectrum.end[k] == "top":
        return float(values[k - 1] - values[k] - bounds[k]), UNCHECKED not in spectrum.status
    if spectrum.missed_above < values[k - 1]:
        return float(values[k - 1] - spectrum.missed_above), UNCHECKED not in spectrum.status
    if k > 1 and values[k - 2] - values[k - 1] <= bounds[k - 2] + bounds[k - 1]:
        return math.nan, False  # these bounds are not residuals
    residual, quadratic = bounds[k - 1] - spectrum.rounding, spectrum.conditional_bounds[k - 1] - spectrum.rounding
    if not quadratic > 4.0 * np.finfo(np.float64).eps * spectrum.rounding:
        return math.nan, False
    return float(residual**2 / quadratic), False


def _shapes(spectrum: Spectrum) -> dict[str, torch.Size]:
    return {name: part.shape for name, part in spectrum.eigenvectors[0].items()}


def _rows(a: Spectrum, b: Spectrum, k: int) -> Iterator[tuple[Floats, Floats]]:
    for name in a.eigenvectors[0]:
        first, second = (
            torch.stack([vector[name].reshape(-1).double() for vector in spectrum.eigenvectors[:k]]).numpy()
            for spectrum in (a, b)
        )
        yield first, second


def _stored(a: Spectrum, b: Spectrum) -> float:
    """What rounding to the dtype of the parameters does to the angles."""
    dtypes = [part.dtype for spectrum in (a, b) for part in spectrum.eigenvectors[0].values()]
    return sum(max(torch.finfo(dtype).eps for dtype in dtypes) for _ in (a, b))
