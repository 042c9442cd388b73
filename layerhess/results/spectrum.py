"""The results that users read: the spectrum of one operator, and the record of a whole analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from layerhess.errors import InputError
from layerhess.linalg.estimates import CouplingEstimate
from layerhess.results.derived import Derived, derive
from layerhess.results.record import Check, Cost, Counts, SampledGroups, SpectrumRecord

FULL_NAME = "(full)"


@dataclass(frozen=True)
class Spectrum(SpectrumRecord):
    """Eigenpairs and estimates of one operator; :class:`SpectrumRecord` lists the fields."""

    @property
    def derived(self) -> Derived:
        """Numbers derived from these: effective rank, damping, 2/lambda_max and so on, with errors.

        See :class:`layerhess.results.derived.Derived`; a number whose inputs were not asked for is NaN.
        """
        return derive(self)


Spectrum.__doc__ = SpectrumRecord.__doc__  # help() says what each field holds


@dataclass(frozen=True)
class AnalysisRecord:
    """Everything one call of :func:`layerhess.analyze` found, as it is saved.

    Attributes:
        blocks: block name -> :class:`Spectrum`, in model order.
        full: the :class:`Spectrum` of the full Hessian, or None when it was not asked for.
        full_mass: for each full-model eigenvector, parameter block -> share of its squared norm (sums to 1 with
            "(not in any block)"), in the order of ``full.eigenvalues``.
        frozen: names of parameters left out because they are frozen (``requires_grad=False``) or not floating point.
        uncovered: names of trainable parameters that no block covers (the full Hessian has them).
        loss: the loss L(theta) over the whole data set; ``loss_count`` its denominator; ``examples`` the number of
            examples where it is known (first dimension summed over batches), else 0; ``batches`` their number.
        gradient_norm: ||grad L||, NaN if not measured.
        settings: the arguments of the call (JSON types only). checks: the self-checks. notes: plain sentences.
        counts: the work done. seconds: phase -> wall-clock seconds. versions: package -> version.
        partial: empty when the analysis ran to its end, otherwise why it stopped early.
        coupling: the :class:`layerhess.linalg.estimates.CouplingEstimate` of all pairs of blocks, where asked for.
        cost: the time in units of one gradient; None if it stopped before the first pass.
        groups: of examples, by which sampling errors were measured; None where they were not.
    """

    blocks: Mapping[str, Spectrum]
    full: Spectrum | None
    full_mass: list[dict[str, float]]
    frozen: tuple[str, ...]
    uncovered: tuple[str, ...]
    loss: float
    loss_count: float
    examples: int
    batches: int
    gradient_norm: float
    settings: dict[str, Any]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    counts: Counts
    seconds: dict[str, float]
    versions: dict[str, str]
    model: str = ""
    total_numel: int = 0
    created: str = ""
    partial: str = ""
    coupling: CouplingEstimate | None = None
    cost: Cost | None = None
    groups: SampledGroups | None = None

    @property
    def converged(self) -> bool:
        """True when all that was asked for is done in every block and the full model, and nothing was refused."""
        return not self.partial and all(s.ok for s in self.spectra())

    def spectra(self) -> list[Spectrum]:
        """All blocks in model order, then the full model if there is one."""
        return [*self.blocks.values(), *([self.full] if self.full is not None else [])]

    def __getitem__(self, name: str) -> Spectrum:
        if name == FULL_NAME and self.full is not None:
            return self.full
        try:
            return self.blocks[name]
        except KeyError:
            raise InputError(
                f"there is no block named {name!r}",
                where="analysis[...]",
                what_to_do="choose one of: " + ", ".join(list(self.blocks)[:8]),
            ) from None
