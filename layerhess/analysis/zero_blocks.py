"""What the bound of a zero block's eigenvalues says of its other numbers.

A zero block A, n by n, has ||A||_2 <= bound, with the stated probability. So every entry of its diagonal is at most the
bound, its trace at most n times that, its squared Frobenius norm at most n times its square, and so on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from layerhess.curvature.data_pass import FULL
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate, DiagonalEstimate, TraceEstimate
from layerhess.linalg.stochastic.trace import widened
from layerhess.results.spectrum import Spectrum


def with_levels(spectra: Mapping[str, Spectrum], *, summed: bool, assembled: bool) -> dict[str, Spectrum]:
    """The spectra, in which the estimates of zero blocks have the blocks' bounds as their errors.

    Args:
        summed, assembled: the full model's trace and diagonal are made of the blocks'.
    """
    bounds = {name: spectrum.rounding for name, spectrum in spectra.items() if is_zero(spectrum)}
    if not any(bounds.values()):
        return dict(spectra)
    made = {}
    for name, spectrum in spectra.items():
        bound = bounds.get(name, 0.0)
        most, total = bound, spectrum.numel * bound
        if name == FULL:
            most = max(bounds.values()) if assembled else 0.0
            total = sum(spectra[zero].numel * value for zero, value in bounds.items()) if summed else 0.0
        made[name] = dataclasses.replace(
            spectrum,
            trace=_trace(spectrum.trace, total),
            diagonal=_diagonal(spectrum.diagonal, most),
            density=_density(spectrum.density, bound),
        )
    return made


def couplings_with_levels(found: CouplingEstimate, spectra: Mapping[str, Spectrum]) -> CouplingEstimate:
    """The couplings, in which a zero block's own entry has the bound of its Frobenius norm as its error at least."""
    error = found.standard_error.copy()
    for place, name in enumerate(found.blocks):
        if name in spectra and is_zero(spectra[name]):
            least = math.sqrt(spectra[name].numel) * spectra[name].rounding
            error[place, place] = np.fmax(error[place, place], least)
    return dataclasses.replace(found, standard_error=error)


def is_zero(spectrum: Spectrum) -> bool:
    """Whether the block counts as zero."""
    return spectrum.status.startswith("zero")


def _trace(found: TraceEstimate | None, extra: float) -> TraceEstimate | None:
    if found is None or not extra:
        return found
    return widened(found, extra)


def _diagonal(found: DiagonalEstimate | None, least: float) -> DiagonalEstimate | None:
    if found is None or not least:
        return found
    return dataclasses.replace(found, rounding=max(found.rounding, least))


def _density(found: DensityEstimate | None, bound: float) -> DensityEstimate | None:
    if found is None or not bound:
        return found
    status = f"all eigenvalues are 0 to {bound:.1e}"
    return dataclasses.replace(found, mean_error=bound, second_error=bound**2, status=status)
