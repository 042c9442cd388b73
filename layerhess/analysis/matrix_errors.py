"""What is left open in a block's trace, diagonal, density and couplings, because its products are rounded or vanish.

A zero block A, n by n, has ||A||_2 <= bound, with the stated probability. So every entry of its diagonal is at most the
bound, its trace at most n times that, its Frobenius norm at most sqrt(n) times it. Of a block that was read whole the
error of the matrix was measured (:mod:`layerhess.checks.matrix_rounding`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from layerhess.checks.matrix_rounding import MatrixRounding, RowRounding
from layerhess.curvature.data_pass import FULL
from layerhess.linalg.estimates import CouplingEstimate, DensityEstimate
from layerhess.linalg.stochastic.trace import widened
from layerhess.objective.blocks import Block
from layerhess.results.spectrum import Spectrum


def matrix_errors(spectra: Mapping[str, Spectrum], measured: Mapping[str, MatrixRounding]) -> dict[str, MatrixRounding]:
    """Block -> the errors of its matrix, for zero blocks and for those read whole."""
    zeros = {name: _of_zero(spectrum) for name, spectrum in spectra.items() if is_zero(spectrum)}
    return {**measured, **zeros}


def with_errors(
    spectra: Mapping[str, Spectrum], errors: Mapping[str, MatrixRounding], *, summed: bool, assembled: bool
) -> dict[str, Spectrum]:
    """The spectra, with estimates that are at least as wide as these errors.

    Args:
        summed, assembled: the full model's trace and diagonal are made of the blocks'.
    """
    if FULL in spectra:
        blocks = [found for name, found in errors.items() if name != FULL]
        own = errors.get(FULL, MatrixRounding(0.0, 0.0, 0.0, 0.0))
        trace = math.fsum(found.trace for found in blocks) if summed else 0.0
        entry = max((found.entry for found in blocks), default=0.0) if assembled else 0.0
        whole = dataclasses.replace(own, trace=max(own.trace, trace), entry=max(own.entry, entry))
        errors = {**errors, FULL: whole}
    return {
        name: spectrum if name not in errors else _widened(spectrum, errors[name]) for name, spectrum in spectra.items()
    }


def couplings_with_errors(
    found: CouplingEstimate, errors: Mapping[str, MatrixRounding], rows: RowRounding, blocks: Mapping[str, Block]
) -> CouplingEstimate:
    """The couplings, with what rounding leaves open in their standard errors.

    An entry's error is at most that of either block's rows.

    Args:
        errors: of the blocks' own matrices. rows: of the full matrix. blocks: those coupled.
    """
    square = np.square(found.value)
    norms = np.sqrt(square.sum(axis=1))  # of the rows of a block
    sides = np.hypot(rows.relative * norms, [rows.of(blocks[name].parameters) for name in found.blocks])
    rounding = np.minimum(sides[:, None], sides[None, :])
    for place, name in enumerate(found.blocks):
        if name in errors:
            rounding[place, place] = errors[name].frobenius
    whole = float(np.sqrt(square.sum()))
    share = min(2.0 * float(np.sqrt(np.square(sides).sum())) / whole, 1.0) if whole > 0.0 else 0.0
    return dataclasses.replace(
        found,
        standard_error=np.hypot(found.standard_error, rounding),
        share_error=math.hypot(found.share_error, share),
    )


def is_zero(spectrum: Spectrum) -> bool:
    """Whether the block counts as zero."""
    return spectrum.status.startswith("zero")


def _of_zero(spectrum: Spectrum) -> MatrixRounding:
    bound, n = spectrum.rounding, spectrum.numel
    return MatrixRounding(bound, n * bound, bound, math.sqrt(n) * bound)


def _widened(spectrum: Spectrum, error: MatrixRounding) -> Spectrum:
    trace, diagonal, density = spectrum.trace, spectrum.diagonal, spectrum.density
    if trace is not None:
        trace = widened(trace, max(error.trace - trace.rounding, 0.0))
    if diagonal is not None:
        diagonal = dataclasses.replace(diagonal, rounding=max(diagonal.rounding, error.entry))
    if density is not None:
        density = _density(density, spectrum, error)
    return dataclasses.replace(spectrum, trace=trace, diagonal=diagonal, density=density)


def _density(found: DensityEstimate, spectrum: Spectrum, error: MatrixRounding) -> DensityEstimate:
    if found.probes or not error.spectral:
        return found
    off = error.spectral * (2.0 * math.sqrt(max(found.second, 0.0)) + error.spectral)
    status = f"all eigenvalues are 0 to {error.spectral:.1e}" if is_zero(spectrum) else found.status
    mean_error = min(error.spectral, max(error.trace, found.mean_error) / spectrum.numel)
    return dataclasses.replace(found, mean_error=mean_error, second_error=off, status=status)
