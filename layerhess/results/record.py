"""Plain records of an analysis: the eigenpairs of each block with error bounds, the checks, and the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from layerhess.linalg.described import Described, Description, called
from layerhess.linalg.estimates import DensityEstimate, DiagonalEstimate, Tensors, TraceEstimate
from layerhess.linalg.numbers import (
    count,
    counted,
    duration,
    number,
    rounded_up,
    share,
    standard,
    with_bound,
    with_reach,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Eigenvectors(Described, list[dict[str, Tensor]]):
    """One dict of parameter-shaped tensors for each pair; its repr has no entries."""

    def _describe(self) -> Description:
        one = f", each of {repr(self[0]).splitlines()[0]}" if self else ""
        return Description(f"{counted(len(self), 'eigenvector')}{one}", ("[i][name] gives a tensor",) if self else ())


@dataclass(frozen=True, repr=False)
class SpectrumRecord(Described):
    """Eigenpairs of one operator: a diagonal block ``H_bb``, or the full Hessian.

    Attributes:
        name: block name; ``"(full)"`` for the whole model.
        operator: the matrix whose eigenvalues these are, for example ``"hessian"``.
        parameters: names of the parameter tensors in the block, in model order.
        numel: number of scalar parameters P_b.
        eigenvalues: (k,) float64, descending: the ``top`` largest, then the ``bottom`` smallest. Units: loss per
            squared parameter, for the mean loss over the whole data set.
        error_bounds: (k,) float64, absolute: ||A v - theta v|| plus rounding (the larger one's where those of close
            pairs overlap). The i-th eigenvalue lies within it, unless one was missed.
        conditional_bounds: (k,) float64: r^2/gap plus rounding (Parlett 1998, th. 11.7.1); holds only if nothing was
            missed between the computed eigenvalues and the rest of the spectrum; NaN where no gap is known.
        converged: (k,) bool: the error bound is within the tolerance, and nothing further is left open beyond what
            ``exclude`` allows.
        end: (k,) "top" or "bottom": which end of the spectrum each eigenvalue was asked for.
        status: "converged" | "converged, limited by dtype" | "complete" | "zero" | "not converged" | "not excluded" |
            "refused", followed by ": " and a sentence where there is more to say.
        complete: the whole spectrum was computed (dense): nothing can have been missed.
        spectrum: (P_b,) float64 descending when complete, else None.
        eigenvectors: one dict per pair, parameter name -> tensor of the parameter's shape and dtype, on the CPU;
            unit norm over the block, largest component positive.
        rounding: the rounding part of ``error_bounds``, absolute.
        rounding_source: where that comes from: "measured" against another precision, "perturbed" (read off products at
            weights moved by their last digit), "assumed" or "not measured".
        missed_factor: with probability at least ``1 - missed_probability`` no eigenvalue beyond ``missed_factor *
            eigenvalues[0]`` was missed at the top (below 1 where two or more were asked for, and a further one of that
            size is excluded); 1.0 when complete, inf when nothing is excluded, NaN when no top eigenvalue was asked for
            or it is not positive.
        missed_above: the same as an absolute value (a top eigenvalue above it is excluded).
        missed_below: the same at the bottom end (an eigenvalue below it is excluded).
        missed_probability: the probability p of that statement; 0.0 when complete.
        steps: operator products spent on this block by the solver.
        path: how the eigenpairs were computed: "dense", "lanczos", "power", "zero test"; followed by " on factors"
            where the products came from factors. licence: on how many examples these were compared with exact products,
            or why they were not used; empty where that was not considered.
        weight_norm_squared: ||theta_b||^2 of the block's parameters (float64), for lambda_max ||W||^2.
        trace, diagonal, density: estimates where they were asked for, else None.
        sampling_errors: (k,) float64, standard error of each eigenvalue with respect to the data (another sample of as
            many examples; first order: v'(dH)v); NaN where it was not measured. Not part of ``error_bounds``.
        sampling_sums: (k, G) float64, what each of G groups of examples adds to an eigenvalue, v'H_g v; their sum over
            ``loss_count`` is the eigenvalue. (k, 0) where that was not measured.
    """

    name: str
    operator: str
    parameters: tuple[str, ...]
    numel: int
    eigenvalues: Floats
    error_bounds: Floats
    conditional_bounds: Floats
    converged: Bools
    end: tuple[str, ...]
    status: str
    complete: bool = False
    spectrum: Floats | None = None
    eigenvectors: list[dict[str, Tensor]] = field(default_factory=list)
    rounding: float = 0.0
    rounding_source: str = "not measured"
    missed_factor: float = float("nan")
    missed_above: float = float("inf")
    missed_below: float = float("-inf")
    missed_probability: float = float("nan")
    steps: int = 0
    path: str = ""
    licence: str = ""
    weight_norm_squared: float = float("nan")
    trace: TraceEstimate | None = None
    diagonal: DiagonalEstimate | None = None
    density: DensityEstimate | None = None
    sampling_errors: Floats = field(default_factory=lambda: np.empty(0))
    sampling_sums: Floats = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def interval(self) -> Floats:
        """(k, 2) float64: lower and upper end of the i-th eigenvalue, counted with multiplicity.

        At the top [theta - bound, max(theta + bound, missed_above)], at the bottom mirrored: a larger one that was not
        excluded counts too. Each end of the spectrum holds with probability ``1 - missed_probability``.
        """
        lower, upper = self.eigenvalues - self.error_bounds, self.eigenvalues + self.error_bounds
        if not self.complete:
            bottom = np.array([end == "bottom" for end in self.end], dtype=bool)
            upper = np.where(bottom, upper, np.maximum(upper, self.missed_above))
            lower = np.where(bottom, np.minimum(lower, self.missed_below), lower)
        return np.stack([lower, upper], axis=1)

    def __post_init__(self) -> None:
        if not isinstance(self.eigenvectors, Eigenvectors):
            object.__setattr__(self, "eigenvectors", Eigenvectors(map(Tensors, self.eigenvectors)))
        if not len(self.sampling_errors):
            object.__setattr__(self, "sampling_errors", np.full(len(self.eigenvalues), np.nan))
        if not self.sampling_sums.size:
            object.__setattr__(self, "sampling_sums", np.empty((len(self.eigenvalues), 0)))

    @property
    def solved(self) -> bool:
        """True when every eigenvalue asked for has converged (a refused block is not solved)."""
        return not self.status.startswith(("refused", "not converged", "not excluded")) and bool(np.all(self.converged))

    @property
    def ok(self) -> bool:
        """True when everything asked for is done: eigenvalues and trace converged, the density with all its steps.

        A diagonal counts where its error was asked for; see :class:`layerhess.linalg.estimates.DiagonalEstimate`.
        """
        traced = self.trace is None or self.trace.converged
        drawn = self.density is None or self.density.finished
        return self.solved and traced and drawn and (self.diagonal is None or self.diagonal.ok)

    @property
    def top(self) -> tuple[float, float] | None:
        """Largest eigenvalue and its error bound; None when it was not asked for and is not known."""
        if "top" in self.end:
            return float(self.eigenvalues[0]), float(self.error_bounds[0])
        return self._of_spectrum(0)

    @property
    def bottom(self) -> tuple[float, float] | None:
        """Smallest eigenvalue and its error bound; None when it was not asked for and is not known."""
        if "bottom" in self.end:
            return float(self.eigenvalues[-1]), float(self.error_bounds[-1])
        return self._of_spectrum(-1)

    def settled(self, end: str) -> bool:
        """Whether the largest ("top") or the smallest ("bottom") eigenvalue has converged, whatever the others did."""
        if end in self.end:
            return bool(self.converged[0 if end == "top" else -1])
        return self.spectrum is not None and self.solved

    @property
    def highest(self) -> float:
        """What the largest eigenvalue is at most, see :attr:`interval`; NaN where none is known."""
        return float(self.interval[0, 1]) if "top" in self.end else self._end_of_spectrum(0, 1.0)

    @property
    def deepest(self) -> float:
        """What the smallest eigenvalue is at least, see :attr:`interval`; NaN where none is known."""
        return float(self.interval[-1, 0]) if "bottom" in self.end else self._end_of_spectrum(-1, -1.0)

    def _end_of_spectrum(self, index: int, sign: float) -> float:
        pair = self._of_spectrum(index)
        return float("nan") if pair is None else pair[0] + sign * pair[1]

    def _of_spectrum(self, index: int) -> tuple[float, float] | None:
        # Of a matrix read whole the rounding is that of any eigenvalue, and residuals are no more than rounding.
        if self.spectrum is None or not len(self.spectrum):
            return None
        return float(self.spectrum[index]), float(np.max(self.error_bounds, initial=self.rounding))

    @property
    def alarm(self) -> str:
        """What is not done, in capitals: "NOT CONVERGED", "TRACE NOT CONVERGED", "REFUSED", ...; empty if all is."""
        if not self.solved:
            word = self.status.split(":")[0].upper()
            return "NOT CONVERGED" if word.startswith(("CONVERGED", "COMPLETE")) or not word else word
        undone = [
            ("TRACE NOT CONVERGED", self.trace is not None and not self.trace.converged),
            ("DIAGONAL NOT CONVERGED", self.diagonal is not None and not self.diagonal.ok),
            ("DENSITY STOPPED EARLY", self.density is not None and not self.density.finished),
        ]
        return ", ".join(words for words, open_ in undone if open_)

    def _describe(self) -> Description:
        of = "full model" if self.name == "(full)" else f"block {called(self.name)}"
        values = []
        for words, pair, reach in (
            ("largest eigenvalue", self.top, self.highest),
            ("smallest eigenvalue", self.bottom, self.deepest),
        ):
            if pair is not None:
                values.append(f"{words} {with_reach(*pair, reach)}")
        alarm = self.alarm
        facts = ["; ".join(values) or "no eigenvalue", *([f"status: {self.status}"] if alarm else [])]
        facts += [f"estimates: {'; '.join(self._estimates())}"] if self._estimates() else []
        if len(self.eigenvalues) > len(values):
            facts.append(f"{counted(len(self.eigenvalues), 'eigenvalue')}: .eigenvalues, .error_bounds, .eigenvectors")
        facts += [] if alarm else [f"status: {self.status}"]
        facts += [self._how()] if self._how() else []
        return Description(
            f"Spectrum of the {of} ({self.operator}, {counted(self.numel, 'parameter')})",
            tuple(facts),
            alarm,
            ("eigenvalue", "end", "lower", "upper", "converged"),
            tuple(
                (
                    with_bound(float(value), float(self.error_bounds[i])),
                    self.end[i],
                    *(number(float(end), 6) for end in self.interval[i]),
                    "yes" if self.converged[i] else "NO",
                )
                for i, value in enumerate(self.eigenvalues)
            ),
        )

    def _estimates(self) -> list[str]:
        told = []
        if self.trace is not None:
            told.append(f"trace {standard(self.trace.value, self.trace.standard_error)}")
        told += [name for name in ("diagonal", "density") if getattr(self, name) is not None]
        if len(self.sampling_errors) and math.isfinite(self.sampling_errors[0]):
            told.append(f"other data would move the first by {rounded_up(float(self.sampling_errors[0]))}")
        return told

    def _how(self) -> str:
        """By which path, and what can have been missed."""
        told = f"found by {self.path}, {counted(self.steps, 'product')}" if self.path else ""
        if self.complete:
            return f"{told or 'all eigenvalues were computed'}; nothing can have been missed"
        if not told or not math.isfinite(self.missed_factor):
            return told
        chance = share(self.missed_probability)
        return f"{told}; none above {number(self.missed_factor, 3)} times the largest, except with probability {chance}"


@dataclass(frozen=True, repr=False)
class SampledGroups(Described):
    """The groups of examples by which sampling errors were measured.

    Attributes:
        fingerprint: equal in two results whose groups have the same examples. counts: (G,) each one's share of the
            loss's denominator.
    """

    fingerprint: str
    counts: Floats

    def _describe(self) -> Description:
        return Description(f"{counted(len(self.counts), 'group')} of examples, fingerprint {self.fingerprint}")


@dataclass(frozen=True, repr=False)
class Check(Described):
    """One self-check: its name, whether it passed, and a sentence with the measured figure."""

    name: str
    passed: bool
    detail: str
    block: str = ""
    module: str = ""

    def _describe(self) -> Description:
        places = [f"{kind} {called(name)}" for kind, name in (("block", self.block), ("module", self.module)) if name]
        return Description(
            f"Check of {called(self.name)}" + (", passed" if self.passed else ""),
            (*([", ".join(places)] if places else []), self.detail),
            "" if self.passed else "FAILED",
        )


@dataclass(frozen=True, repr=False)
class Counts(Described):
    """How much work the analysis took.

    Attributes:
        passes: passes over the data (kept graphs count as a pass too).
        forwards: forward evaluations of one batch.
        backwards: first backward passes of one batch (gradients).
        products: Hessian-vector products of one batch, of a block or full.
        full_products: of these, products with the full Hessian.
        by_phase: "survey", "checks", "rounding", "solve" or "sampling" -> its forwards, backwards and products.
    """

    passes: int
    forwards: int
    backwards: int
    products: int
    full_products: int
    by_phase: dict[str, dict[str, int]]

    def _describe(self) -> Description:
        kinds = ("forwards", "backwards", "products")
        rows = tuple((called(phase), *(count(done.get(k, 0)) for k in kinds)) for phase, done in self.by_phase.items())
        return Description(
            f"Counts: {counted(self.passes, 'pass', 'passes')} over the data",
            (
                f"{counted(self.products, 'product')} of one batch, {count(self.full_products)} of them with the full "
                "matrix",
                f"{counted(self.forwards, 'forward pass', 'forward passes')}, {counted(self.backwards, 'gradient')}",
                *([f"by phase: {', '.join(row[0] for row in rows)}"] if rows else []),
            ),
            columns=("phase", *kinds),
            rows=rows,
        )


@dataclass(frozen=True, repr=False)
class Cost(Described):
    """The time an analysis took, in units of one gradient over the same data.

    Attributes:
        gradient_seconds: one plain gradient of the loss over the data, timed on one batch.
        gradients: phase -> its seconds over that.
        one_by_one: the cost of the solvers' products if they had been exact products, each block and step separately;
            an estimate from their number, right to about 30 %.
    """

    gradient_seconds: float
    gradients: dict[str, float]
    one_by_one: float

    @property
    def total(self) -> float:
        """The sum over all phases."""
        return sum(self.gradients.values())

    def _describe(self) -> Description:
        phases = tuple(
            (called(phase), number(size, 3), duration(size * self.gradient_seconds))
            for phase, size in self.gradients.items()
        )
        total = f"{number(self.total, 3)} gradients of {duration(self.gradient_seconds)}"
        return Description(
            f"Cost: {total} each, {duration(self.total * self.gradient_seconds)} in all",
            ((", ".join(f"{phase} {size}" for phase, size, _ in phases),) if phases else ())
            + ((f"exact products block by block: about {number(self.one_by_one, 2)}",) if self.one_by_one else ()),
            columns=("phase", "gradients", "time"),
            rows=phases,
        )
