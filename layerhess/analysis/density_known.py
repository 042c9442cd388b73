"""A block's density from what its solver knows of the spectrum: all of it, or where it ends."""

from __future__ import annotations

import dataclasses

import numpy as np

from layerhess.analysis.matrix_errors import is_zero
from layerhess.linalg.estimates import DensityEstimate
from layerhess.linalg.stochastic.density import Density, StochasticLanczos, exact_density, with_rounding
from layerhess.results.spectrum import Spectrum


def density_of(
    spectrum: Spectrum, options: Density, process: StochasticLanczos | None, relative: float
) -> DensityEstimate | None:
    """The density of a block: exact where all eigenvalues are known, or zero; None where nothing was told yet.

    Args:
        process: where it was estimated. relative: rounding of its products.
    """
    if spectrum.spectrum is not None:
        bound = float(np.max(spectrum.error_bounds, initial=spectrum.rounding))
        return dataclasses.replace(exact_density(spectrum.spectrum, options), rounding=bound)
    if is_zero(spectrum):
        return dataclasses.replace(exact_density(np.zeros(spectrum.numel), options), rounding=spectrum.rounding)
    if process is None or not process.started:
        return None
    made = with_rounding(process.result(), relative)
    if spectrum.bottom is None or not spectrum.settled("bottom"):
        return made
    value, bound = spectrum.bottom
    return dataclasses.replace(made, lowest=min(value - bound, made.lowest))
