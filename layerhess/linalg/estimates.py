"""Records of estimates (trace, diagonal, spectral density, coupling), each with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.functional_estimates import Functionals
from layerhess.linalg.numbers import count, counted, number, rounded_up, share_with_error, standard, with_bound

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CONFIDENCE = 0.95  # of every interval and band


class Tensors(Described, dict[str, Tensor]):
    """Parameter name -> tensor, in model order; its repr has their shapes and sizes, not their entries."""

    def _describe(self) -> Description:
        first = ", ".join(f"{called(name, 30)} ({_shape(tensor)})" for name, tensor in list(self.items())[:3])
        return Description(
            f"{counted(len(self), 'tensor')}, {counted(sum(t.numel() for t in self.values()), 'entry', 'entries')}",
            (first + (f" and {len(self) - 3} more" if len(self) > 3 else ""),) if self else (),
            columns=("name", "shape", "dtype", "Euclidean norm"),
            rows=tuple(
                (called(name), _shape(t), str(t.dtype).removeprefix("torch."), number(_norm([t])))
                for name, t in self.items()
            ),
        )


@dataclass(frozen=True, repr=False)
class TraceEstimate(Described):
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

    def _describe(self) -> Description:
        exact = not self.probes and self.method == "exact"
        facts = [] if exact else [f"{CONFIDENCE:.0%} interval: {number(self.low, 6)} to {number(self.high, 6)}"]
        if not math.isnan(self.sampling_error):
            facts.append(f"other data would move it by {rounded_up(self.sampling_error)} (standard error)")
        facts += [] if exact else [found_by(self.method, self.probes)]
        return Description(
            f"Trace {with_bound(self.value, self.rounding) if exact else standard(self.value, self.standard_error)}",
            (*facts, f"status: {self.status}"),
            "" if self.converged else "NOT CONVERGED",
        )


@dataclass(frozen=True, repr=False)
class DiagonalEstimate(Described):
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

    def __post_init__(self) -> None:
        for name in ("value", "standard_error"):
            object.__setattr__(self, name, Tensors(getattr(self, name)))

    @property
    def ok(self) -> bool:
        """False when the error asked for was not reached."""
        return self.converged or not self.required

    def _describe(self) -> Description:
        parts = {name: (tensor, self.standard_error.get(name)) for name, tensor in self.value.items()}
        lowest = min((float(v.min()) for v, _ in parts.values() if v.numel()), default=math.nan)
        highest = max((float(v.max()) for v, _ in parts.values() if v.numel()), default=math.nan)
        entries = sum(v.numel() for v, _ in parts.values())
        norm = standard(_norm([v for v, _ in parts.values()]), _norm([e for _, e in parts.values()]))
        return Description(
            f"Diagonal of {counted(entries, 'entry', 'entries')}, Euclidean norm {norm}",
            (
                f"entries from {number(lowest)} to {number(highest)}, in {counted(len(parts), 'parameter')}: .value, "
                ".standard_error",
                found_by(self.method, self.probes),
                f"status: {self.status}",
            ),
            "" if self.converged else "NOT CONVERGED",
            ("parameter", "shape", "Euclidean norm", "smallest", "largest"),
            tuple(
                (
                    called(name),
                    _shape(v),
                    standard(_norm([v]), _norm([e])),
                    number(float(v.min()) if v.numel() else math.nan),
                    number(float(v.max()) if v.numel() else math.nan),
                )
                for name, (v, e) in parts.items()
            ),
        )


@dataclass(frozen=True, repr=False)
class DensityEstimate(Functionals):
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
        numel: dimension n. exhausted: (probes,) bool, the quadrature of a vector is right for every function.
        known, known_bounds: (K,) eigenvalues whose eigenvectors the first vector found, and their residuals.
        overlaps: (probes, K) squared products of the random vectors with these eigenvectors.
        rounding: absolute error of an eigenvalue because products are rounded. lowest: the smallest eigenvalue, or what
            it is at most: from the nodes, or from the solver (bound included).
        axis: "linear", or "log". On a logarithmic axis ``grid`` is |eigenvalue|, and ``value``, ``value_negative``
            (with ``low_negative``, ``high_negative``) are the densities of log10 |eigenvalue| of either sign, their
            ``bandwidth`` in decades; ``below_floor`` is the share of eigenvalues with magnitudes under ``floor`` (its
            error: ``share(-floor, floor)``). All three together have mass 1.
        resolution: bandwidth on a linear axis, whatever the axis.

    :meth:`average`, :meth:`effective_dimension`, :meth:`log_det`, :meth:`count` and :meth:`share` come from nodes and
    weights, not from the curve. Their errors hold for at least two vectors; see :mod:`layerhess.linalg.functionals`.

    >>> import numpy as np, layerhess as lh
    >>> found = lh.density(np.diag(np.repeat([0.0, 1.0, 3.0], 40)))
    >>> found.count(above=0.5)                                                          # doctest: +ELLIPSIS
    Number of eigenvalues of 0.5 or more: ... ± ...
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
    numel: int = 0
    exhausted: Bools = field(default_factory=lambda: np.empty(0, dtype=np.bool_))
    known: Floats = field(default_factory=lambda: np.empty(0))
    known_bounds: Floats = field(default_factory=lambda: np.empty(0))
    overlaps: Floats = field(default_factory=lambda: np.empty((0, 0)))
    rounding: float = 0.0
    lowest: float = math.nan
    axis: str = "linear"
    value_negative: Floats = field(default_factory=lambda: np.empty(0))
    low_negative: Floats = field(default_factory=lambda: np.empty(0))
    high_negative: Floats = field(default_factory=lambda: np.empty(0))
    below_floor: float = 0.0
    floor: float = 0.0
    resolution: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.resolution):
            object.__setattr__(self, "resolution", self.bandwidth)
        if not self.overlaps.size:
            object.__setattr__(self, "overlaps", np.empty((self.probes, 0)))
        if not len(self.exhausted):
            object.__setattr__(self, "exhausted", np.zeros(self.probes, dtype=np.bool_))

    def _describe(self) -> Description:
        if self.axis == "log":
            return self._described("|eigenvalue|, in decades", ".grid, .value, .value_negative")
        return self._described("", ".grid, .value")

    def _described(self, of: str, where: str) -> Description:
        ends = f"{number(float(self.grid[0]))} to {number(float(self.grid[-1]))}" if len(self.grid) else "nothing"
        return Description(
            f"Spectral density, mean eigenvalue {standard(self.mean, self.mean_error)}",
            (
                f"mean square {standard(self.second, self.second_error)}",
                f"{counted(len(self.grid), 'point')}{f' of {of}' if of else ''} from {ends}, bandwidth "
                f"{number(self.bandwidth, 2)}: {where}",
                "95 % band: .low, .high" if self.probes > 1 else "exact" if not self.probes else "one vector: no band",
                f"status: {self.status}",
            ),
            "" if self.finished else "STOPPED EARLY",
        )


@dataclass(frozen=True, repr=False)
class CouplingEstimate(Described):
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

    def _describe(self) -> Description:
        pairs = sorted(
            ((b, c) for b in range(len(self.blocks)) for c in range(b) if math.isfinite(self.value[b, c])),
            key=lambda pair: -float(self.value[pair]),
        )
        rows = tuple(
            (
                f"{called(self.blocks[c], 30)}, {called(self.blocks[b], 30)}",
                standard(float(self.value[b, c]), float(self.standard_error[b, c])),
            )
            for b, c in pairs[:MOST_PAIRS]
        )
        share = share_with_error(self.off_diagonal_share, self.share_error)
        unknown = bool(len(self.blocks)) and not bool(np.isfinite(self.value).all())
        return Description(
            f"Coupling of {counted(len(self.blocks), 'block')}, {share} of ||A||_F^2 off the block diagonal",
            (
                *(f"most between {pair}: ||A_bc||_F = {size}" for pair, size in rows[:1]),
                f"{count(len(self.blocks))} x {count(len(self.blocks))} norms: .value, .standard_error"
                + ("" if self.divergence is None else "; distances of the densities: .divergence"),
                f"found from {counted(self.probes, 'random vector')} a block" if self.probes else "exact",
                f"status: {self.status}",
            ),
            "INCOMPLETE" if unknown else "",
            ("pair of blocks", "||A_bc||_F ± standard error"),
            rows,
            max(0, len(pairs) - MOST_PAIRS),
        )


MOST_PAIRS = 12  # of blocks, listed in a notebook


def found_by(method: str, probes: int) -> str:
    """How an estimate was made."""
    return f"found by {method}, from {counted(probes, 'random vector')}" if probes else f"found by: {method}"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"


def _norm(tensors: list[Tensor | None]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t is not None))
