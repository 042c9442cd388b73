"""Records of estimates (trace, diagonal, spectral density, coupling), each with its error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

CONFIDENCE = 0.95  # of every interval and band


@dataclass(frozen=True)
class TraceEstimate:
    """The trace of one operator.

    Attributes:
        value: sum of the eigenvalues. standard_error: of ``value`` over the random probes; 0.0 when exact.
        low, high: 95 % confidence interval (Student's t), widened by ``rounding`` on both sides.
        probes: random vectors that went into it; 0 when exact.
        method: "exact", "hutchinson", "deflated", "hutch++" or "xtrace".
        converged: the standard error is within what was asked for.
        status: a sentence.
        sampling_error: standard error of ``value`` with respect to the data (another sample of examples); NaN if it was
            not measured. Not part of the interval.
        rounding: absolute error of ``value`` because products are rounded; the only error when exact.
    """

    value: float
    standard_error: float
    low: float
    high: float
    probes: int
    method: str
    converged: bool
    status: str
    sampling_error: float = float("nan")
    rounding: float = 0.0


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal of one operator.

    Attributes:
        value, standard_error: parameter name -> float64 tensor of the parameter's shape; errors per entry, over the
            random probes, zero when exact.
        probes: random vectors that went into it; 0 when exact. method: "exact", "hutchinson", "deflated", "xdiag", or
            "assembled" from those of the blocks. status: a sentence.
        converged: the standard errors are within what was asked for, in the Euclidean norm.
        required: a diagonal that is not converged counts as unfinished. False for ``diagonal=True`` and for a fixed
            number of probes, where any error is accepted.
        rounding: largest absolute error of an entry because products are rounded; not part of the standard errors.
    """

    value: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    probes: int
    method: str
    status: str
    converged: bool = True
    required: bool = False
    rounding: float = 0.0

    @property
    def ok(self) -> bool:
        """False when the error asked for was not reached."""
        return self.converged or not self.required


@dataclass(frozen=True)
class DensityEstimate:
    """The spectral density of one operator, smoothed with a Gaussian.

    Attributes:
        grid: (g,) float64, ascending eigenvalue axis. value: (g,) density on it, of mass 1.
        low, high: (g,) pointwise 95 % band over the probes. bandwidth: standard deviation of the Gaussian.
        probes, steps: of the stochastic Lanczos quadrature; probes 0 when the whole spectrum was known.
        nodes, weights: (probes, steps) Ritz values and their weights, each row's weights sum to 1 (zero-padded).
        mean, mean_error: first moment (trace / n) and its standard error.
        second, second_error: second moment (||A||_F^2 / n) and its standard error; NaN before the second step.
        status: a sentence.
        finished: every random vector took all its steps. A density that was stopped early has right moments, but no
            other function of the spectrum: its error would be larger than the probes can show.
    """

    grid: Floats
    value: Floats
    low: Floats
    high: Floats
    bandwidth: float
    probes: int
    steps: int
    nodes: Floats
    weights: Floats
    mean: float
    mean_error: float
    second: float
    second_error: float
    status: str
    finished: bool = True


@dataclass(frozen=True)
class CouplingEstimate:
    """How the blocks interact: the Frobenius norms of all blocks H_bc.

    Attributes:
        blocks: names, in model order. value, standard_error: (B, B) float64, ||H_bc||_F, symmetric; from few vectors
            the errors are larger than the scatter, so that six of them cover.
        off_diagonal_share: share of ||H||_F^2 off the block diagonal (covered blocks only); share_error: its standard
            error.
        divergence: (B, B) Jensen-Shannon distances of the blocks' spectral densities; None where densities were not
            asked for, or one is missing or was stopped early. divergence_error: their root mean square errors over the
            random vectors, including bias (:func:`layerhess.linalg.stochastic.divergence.divergences`); NaN for a
            single vector.
        probes: random vectors per block; 0 when exact. status: a sentence.
    """

    blocks: tuple[str, ...]
    value: Floats
    standard_error: Floats
    off_diagonal_share: float
    share_error: float
    probes: int
    status: str
    divergence: Floats | None = None
    divergence_error: Floats | None = None
